"""From a checked folder to a diffusers pipeline on its device."""

import inspect
import re
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Protocol, TypedDict, TypeVar, cast

import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from torch import nn
from transformers import PreTrainedModel

from api_schemas.model_files import ModelIndex
from worker.adapters.config_types import check_numbers
from worker.adapters.configuration import check_configuration
from worker.adapters.errors import ModelFolderError
from worker.adapters.model_index import read_index
from worker.adapters.placement import (
    check_offload,
    choose_quantization,
    multiply_denoisers_in_float8,
    place,
    store_in_float8,
    tell_what_gains_nothing,
)
from worker.adapters.precision import choose_dtypes
from worker.adapters.prompt_length import limit_tokenizers
from worker.adapters.settings import read_settings

Pipe = TypeVar("Pipe", bound=DiffusionPipeline)
# Parts that a folder may state to be null, whether or not diffusers says so of the pipeline.
_DISPENSABLE = {"safety_checker", "feature_extractor", "image_encoder", "text_encoder_3", "tokenizer_3"}
# The second of each alone gives all the text that the denoiser reads.
_DISPENSABLE_OF = {"StableDiffusionXLPipeline": {"text_encoder", "tokenizer"}}


def load_pipeline(
    kind: type[Pipe], folder: Path, device: torch.device, **parts: nn.Module | bool | None
) -> Pipe:
    """Load as the folder's `chorale.json` asks; safetensors only, and no part that is null or never read.

    Args:
        parts: of the pipeline that are to be left out or are loaded already, and options of it.

    Raises:
        ModelFolderError: diffusers cannot load the folder, or not as asked or not whole, or makes no picture of it.
    """
    settings = read_settings(folder)
    check_offload(folder, settings.offload, device)
    tell_what_gains_nothing(folder, settings, device)
    check_numbers(folder)
    absent = _leave_out(kind, folder, read_index(folder), parts)
    quantization = choose_quantization(folder, settings)
    try:
        loaded = cast(FromPretrained, kind).from_pretrained(
            str(folder), dtype=choose_dtypes(folder, settings, device), quantization_config=quantization,
            use_safetensors=True, local_files_only=True, **{**absent, **parts},
        )  # fmt: skip
    except Exception as error:  # whatever diffusers, transformers and safetensors make of a broken folder
        raise ModelFolderError(f"{folder} cannot be loaded as a {kind.__name__}: {error}") from error
    pipe = cast(Pipe, loaded)
    require_whole_weights(pipe, folder)
    check_configuration(pipe)
    limit_tokenizers(pipe)
    if settings.quantization == "float8":
        store_in_float8(pipe)
    place(pipe, settings.offload, device)
    multiply_denoisers_in_float8(pipe, folder, settings, device)
    return pipe


def _leave_out(
    kind: type[DiffusionPipeline], folder: Path, index: ModelIndex, known: Collection[str]
) -> dict[str, None]:
    """The absent parts, as the arguments that diffusers needs for them; those `known` are the caller's."""
    absent = index.absent & inspect.signature(kind.__init__).parameters.keys() - known
    kept = absent - _DISPENSABLE.union(*(_DISPENSABLE_OF.get(each.__name__, ()) for each in kind.__mro__))
    if kept:
        raise ModelFolderError(
            f"{folder}/model_index.json: {_join(kept)} is null, and a {kind.__name__} cannot do without"
        )
    for tokenizer in (name for name in absent if name.startswith("tokenizer")):
        encoder = tokenizer.replace("tokenizer", "text_encoder")
        if encoder not in absent:
            raise ModelFolderError(
                f"{folder}/model_index.json: {tokenizer} is null, and {encoder} cannot read without it"
            )
    return dict.fromkeys(absent)


def _join(names: Iterable[str]) -> str:
    return ", ".join(sorted(names))


# What looks at pictures or writes text: folders leave it out, since no prompt needs it.
_UNREAD = re.compile(r"(.+\.)?(lm_head|visual|vision_tower|multi_modal_projector|logit_scale)(\..+)?")


def require_whole_weights(pipe: DiffusionPipeline, folder: Path) -> None:
    """Refuse a pipeline of which files lack weights.

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


M = TypeVar("M", bound=nn.Module)


class LoadingReport(TypedDict):
    """Which weights did not fit."""

    missing_keys: Collection[str]
    unexpected_keys: Collection[str]


def load_with_report(kind: type[M], folder: Path, **options: object) -> tuple[M, LoadingReport]:
    """One network of diffusers or transformers, from safetensors alone."""
    load = cast(FromPretrained, kind)
    loaded = load.from_pretrained(
        str(folder), use_safetensors=True, local_files_only=True, output_loading_info=True, **options
    )
    return cast(tuple[M, LoadingReport], loaded)


class FromPretrained(Protocol):
    """Both libraries declare that the network comes alone, with a report or without."""

    def from_pretrained(self, folder: str, **options: object) -> object: ...


def _find_missing(part: nn.Module, folder: Path) -> list[str]:
    """transformers keeps no report of what it loaded, so it loads again, shapes alone: that takes milliseconds."""
    if not isinstance(part, PreTrainedModel):
        return [name for name, weight in part.named_parameters() if weight.is_meta]
    _, report = load_with_report(type(part), folder, device_map="meta")
    return [name for name in report["missing_keys"] if not _UNREAD.fullmatch(name)]
