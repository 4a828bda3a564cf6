"""A texture's middle made again: whether it has the tone, contrast and sharpness of what is around it.

    python -m benchmarks.inpaint --prompts "grey cobblestones" "green grass" --out runs/inpaint

Each prompt's texture is made, and then the middle half of it, a side, once more with each other seed, without
`sync_strength` and with it. Pictures stay in `--out`. What is measured is of what was made, over the same of what lies
around it, on average over seeds, and in brackets the mean of its distance from 1; beside it the same of the texture itself:

- *Tone*: mean of grey. *Contrast*: deviation of grey in squares of 32 px. *Gradient*: mean difference of neighbours.
- *Border*: mean difference across the part's border between means of squares of 16 px, over that of the texture itself.
"""

import argparse
from pathlib import Path
from statistics import fmean

import torch
from torch import Tensor

from benchmarks.quality.derived import make_picture, save_image
from benchmarks.quality.figures import Figures
from worker.adapters.source import ModelSource
from worker.process.warmup import Ready, make_ready

_CELL_PX, _SQUARE_PX = 32, 16
_STRENGTHS = (0.0, 1.0)


def main() -> None:
    options = parse()
    options.out.mkdir(parents=True, exist_ok=True)
    ready = make_ready(ModelSource(options.model), options.device)
    for prompt in options.prompts:
        whole, kept = make_whole(ready, prompt, options)
        print(prompt, describe([compare(whole, whole)]), flush=True)
        for strength in _STRENGTHS:
            parts = [
                make_part(ready, prompt, whole, kept, strength, seed, options.out) for seed in options.seeds
            ]
            print(f"  sync {strength:g}", describe([compare(part, whole) for part in parts]), flush=True)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.inpaint",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--prompts", nargs="+", required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[4, 5])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--side", type=int, default=1024, metavar="PX", help="a multiple of 128")
    parser.add_argument("--model", default="worker/bundled")
    parser.add_argument("--device", default="auto", help="as a worker's: auto, cpu, cuda:0")
    return parser.parse_args()


def make_whole(ready: Ready, prompt: str, options: argparse.Namespace) -> tuple[Tensor, Path]:
    """The texture (3, H, W), uint8, and its final state."""
    kept, side = options.out / f"{prompt}.safetensors", options.side
    asked = {"prompt": prompt, "width_px": side, "height_px": side, "seed": 3, "layout": "flat"}
    whole = make_picture(ready, asked, {}, keep=kept)
    save_image(whole, options.out / f"{prompt}.png")
    return whole, kept


def make_part(
    ready: Ready, prompt: str, whole: Tensor, kept: Path, strength: float, seed: int, folder: Path
) -> Tensor:
    """The texture with another middle, as a re-roll makes it."""
    quarter = whole.shape[1] // 4
    middle = {"left_px": quarter, "top_px": quarter, "width_px": 2 * quarter, "height_px": 2 * quarter}
    asked = {
        "prompt": prompt, "seed": seed, "source": {}, "strength": 1.0, "layout": "flat",
        "mask": {"rectangle": middle, "feather_px": 0}, "advanced": {"sync_strength": strength},
    }  # fmt: skip
    part = make_picture(ready, asked, {"source_image": whole}, state=kept)
    save_image(part, folder / f"{prompt}, sync {strength:g}, seed {seed}.png")
    return part


def compare(part: Tensor, whole: Tensor) -> Figures:
    """The middle of a picture (3, H, W) over what lies around it."""
    grey, side = part.float().mean(0), part.shape[1]
    middle = torch.zeros(side, side, dtype=torch.bool)
    middle[side // 4 : side * 3 // 4, side // 4 : side * 3 // 4] = True
    contrast = _cut(grey, _CELL_PX).std(2)
    made = _cut(middle, _CELL_PX).all(2)
    across, down = grey.diff(dim=1).abs()[:-1], grey.diff(dim=0).abs()[:, :-1]
    gradient, inner = (across + down) / 2, middle[:-1, :-1] & middle[1:, 1:]
    return {
        "tone": float(grey[middle].mean() / grey[~middle].mean()),
        "contrast": float(contrast[made].mean() / contrast[~made].mean()),
        "gradient": float(gradient[inner].mean() / gradient[~middle[:-1, :-1]].mean()),
        "border": measure_border(part) / measure_border(whole),
    }


def measure_border(image: Tensor) -> float:
    """Of 255."""
    squares = _cut(image.float().mean(0), _SQUARE_PX).mean(2)
    first, end = len(squares) // 4, len(squares) * 3 // 4
    lines = [squares.diff(dim=0)[:, first:end], squares.diff(dim=1)[first:end].T]
    return fmean(float(line[place - 1].abs().mean()) for line in lines for place in (first, end))


def _cut(image: Tensor, side: int) -> Tensor:
    """(H, W) to squares, (h, w, pixels)."""
    return image.unfold(0, side, side).unfold(1, side, side).flatten(2)


def describe(found: list[Figures]) -> str:
    columns = {name: [each[name] for each in found] for name in found[0]}
    return ", ".join(
        f"{name} {fmean(values):.3f} ({fmean(abs(value - 1) for value in values):.3f})"
        for name, values in columns.items()
    )


if __name__ == "__main__":
    main()
