"""Weights that a folder lacks: transformers invents them, anew in every process, and diffusers leaves them empty."""

import re
from pathlib import Path

from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from torch import nn
from transformers import PreTrainedModel

from worker.adapters.errors import ModelFolderError

# What looks at pictures or writes text: folders leave it out, since no prompt needs it.
_UNREAD = re.compile(r"(.+\.)?(lm_head|visual|vision_tower|multi_modal_projector|logit_scale)(\..+)?")


def require_whole_weights(pipe: DiffusionPipeline, folder: Path) -> None:
    """
    Raises:
        ModelFolderError: names the part and the first weight that its files do not hold.
    """
    for name, part in pipe.components.items():
        missing = sorted(_find_missing(part, folder / name)) if isinstance(part, nn.Module) else []
        if missing:
            raise ModelFolderError(
                f"{folder}/{name}: {len(missing)} weights of its {type(part).__name__} are missing, the first is "
                f"{missing[0]!r}; allowed: files that hold them all"
            )


def _find_missing(part: nn.Module, folder: Path) -> list[str]:
    """transformers does not keep what it found, so it is asked again, for shapes alone: that takes milliseconds."""
    if not isinstance(part, PreTrainedModel):
        return [name for name, weight in part.named_parameters() if weight.is_meta]
    _, found = type(part).from_pretrained(  # pyright: ignore[reportGeneralTypeIssues]  # typed as the model alone
        folder, device_map="meta", output_loading_info=True, local_files_only=True, use_safetensors=True
    )
    return [name for name in found["missing_keys"] if not _UNREAD.fullmatch(name)]
