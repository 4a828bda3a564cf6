"""Go part of the way from one denoiser's weights to another's.

A denoiser that was fine-tuned from the other and paints what a critic likes too well loses its patterns half
way, and keeps most of what it gained (weight-space ensembles, Wortsman et al. 2022, section 3).
"""

import argparse
from pathlib import Path

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

from training.denoiser import write_half


@torch.no_grad()
def blend(first: UNet2DConditionModel, second: UNet2DConditionModel, share: float) -> UNet2DConditionModel:
    """The first, moved by `share` of the way to the second; both have one shape."""
    torch._foreach_lerp_(list(first.parameters()), list(second.parameters()), share)
    return first


def main() -> None:
    """Command line: `python -m training.blend UNET UNET --share 0.5 --out UNET`."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("first", type=Path)
    parser.add_argument("second", type=Path)
    parser.add_argument("--share", type=float, required=True, help="of the second, 0 to 1")
    parser.add_argument("--out", type=Path, required=True)
    chosen = parser.parse_args()
    first, second = (
        UNet2DConditionModel.from_pretrained(folder, torch_dtype=torch.float32)
        for folder in (chosen.first, chosen.second)
    )
    write_half(blend(first, second, chosen.share), chosen.out)


if __name__ == "__main__":
    main()
