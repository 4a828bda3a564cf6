"""Interpolate the weights of a denoiser before and after fine-tuning (WiSE-FT, Wortsman et al. 2022, equation 1)."""

import argparse
from pathlib import Path

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor

from training.parts import load_denoiser, write_half


@torch.no_grad()
def interpolate(first: UNet2DConditionModel, second: UNet2DConditionModel, share: float) -> None:
    """Move `first` by this `share` of the way to `second`, in place.

    Raises:
        ValueError: their layers differ.
    """
    mine, others = first.state_dict(), second.state_dict()
    if _shapes(mine) != _shapes(others):
        raise ValueError("these denoisers have other layers: one has to be trained on from the other")
    first.load_state_dict({name: weight.lerp(others[name], share) for name, weight in mine.items()})


def _shapes(state: dict[str, Tensor]) -> dict[str, torch.Size]:
    return {name: weight.shape for name, weight in state.items()}


def main() -> None:
    """Command line: `python -m training.interpolate UNET UNET --share 0.5 --out BETWEEN`."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("first", type=Path, help="unet folder")
    parser.add_argument("second", type=Path, help="unet folder")
    parser.add_argument("--share", type=float, default=0.5, help="of the second one")
    parser.add_argument("--out", type=Path, required=True)
    chosen = parser.parse_args()
    first, second = load_denoiser(chosen.first), load_denoiser(chosen.second)
    interpolate(first, second, chosen.share)
    write_half(first, chosen.out)


if __name__ == "__main__":
    main()
