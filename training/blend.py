"""Blend two denoisers of one descent: a point on the straight line between their weights.

Weights that went on from common ones can be averaged (Wortsman et al. 2022, "Robust fine-tuning of zero-shot
models", section 3): here a sharpened denoiser with one that is smoother.
"""

import argparse
from pathlib import Path

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

from training.denoiser import write_half


def blend(sharp: Path, smooth: Path, share: float, out: Path) -> None:
    """Write the denoiser of `sharp` with `share` of the one of `smooth` as `out` (fp16); all three are unet folders.

    Raises:
        RuntimeError, ValueError: their layers differ.
    """
    model, other = (
        UNet2DConditionModel.from_pretrained(folder, torch_dtype=torch.float32) for folder in (sharp, smooth)
    )
    with torch.no_grad():
        for weight, theirs in zip(model.parameters(), other.parameters(), strict=True):
            weight.lerp_(theirs, share)
    write_half(model, out)


def main() -> None:
    """Command line: `python -m training.blend SHARP SMOOTH --share 0.15 --out OUT`, all unet folders."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sharp", type=Path)
    parser.add_argument("smooth", type=Path)
    parser.add_argument("--share", type=float, required=True, help="of the smooth one, 0 to 1")
    parser.add_argument("--out", type=Path, required=True)
    chosen = parser.parse_args()
    blend(chosen.sharp, chosen.smooth, chosen.share, chosen.out)


if __name__ == "__main__":
    main()
