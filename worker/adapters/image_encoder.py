"""The image encoder that lies beside an IP-Adapter."""

from pathlib import Path

import torch
from transformers import CLIPVisionModelWithProjection

_OF_TEXT = ("text_", "logit_scale")  # a whole CLIP is often what lies there


def load_image_encoder(folder: Path, dtype: torch.dtype) -> CLIPVisionModelWithProjection:
    """
    Raises:
        ValueError: it is not whole; transformers would invent what is missing.
    """
    encoder, found = CLIPVisionModelWithProjection.from_pretrained(  # pyright: ignore[reportGeneralTypeIssues]
        folder, dtype=dtype, local_files_only=True, use_safetensors=True, output_loading_info=True
    )
    left = (key for key in found["unexpected_keys"] if not key.startswith(_OF_TEXT))
    wrong = sorted([*found["missing_keys"], *(key for key in left if not key.endswith("position_ids"))])
    if wrong:
        raise ValueError(
            f"{folder.name}: {len(wrong)} keys are missing or unknown, the first is {wrong[0]!r}; supported: a "
            "whole CLIPVisionModelWithProjection"
        )
    return encoder
