"""Style transfer: whether the source's structure is kept, and the style taken.

    python -m benchmarks.style --sources a.jpg b.jpg --styles c.jpg d.jpg --prompts lava snow --out runs/style

Each source takes each style picture (one that is itself is left out) and each style in words, by the defaults. Pictures
and a sheet of them stay in `--out`. What is measured, for each result and on average:

- *Edges*: both pictures in grey, reduced to 32 px on the short side; correlation of the magnitudes of their gradients
  (Sobel), which says whether edges are at the same places, whatever the tones to either side. 1 is the same.
- *Style*: mean and deviation of each channel of four feature maps (EfficientNet-Lite0), as Huang and Belongie (2017)
  compare styles in eq. 13: distance to the style picture over distance to the source. Below 1 it is nearer to the style. Of
  a style in words, the style picture is what the model makes of those words alone.
"""

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from statistics import fmean

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from api_schemas.generation import PicturePart
from benchmarks.quality.derived import make_picture
from benchmarks.quality.pictures import read_image
from training.features import Features
from training.sheet import draw_sheet
from worker.adapters.source import ModelSource
from worker.process.warmup import Ready, make_ready

SHORT_PX, SHOWN_PX, SEEN_PX = 32, 384, 512


@dataclass(frozen=True, slots=True)
class Restyled:
    """A source, its style, and the result: (3, H, W), uint8."""

    name: str
    source: Tensor
    style: Tensor
    result: Tensor


def main() -> None:
    options = parse()
    options.out.mkdir(parents=True, exist_ok=True)
    ready = make_ready(ModelSource(options.model), options.device)
    features, edges, styles = Features(), list[float](), list[float]()
    images, labels = list[Tensor](), list[str]()
    for each in restyle_all(ready, options):
        edges.append(correlate_edges(each.source, each.result))
        styles.append(compare_styles(features, each))
        print(f"{each.name}: edges {edges[-1]:.2f}, style {styles[-1]:.2f}", flush=True)
        shown = (each.source, each.style, each.result)
        images += [reduce(image, SHOWN_PX)[:, :SHOWN_PX, :SHOWN_PX] / 127.5 - 1 for image in shown]
        labels += ["source", "style", f"{each.name}: {edges[-1]:.2f}, {styles[-1]:.2f}"]
    draw_sheet(images, labels, 6, SHOWN_PX, options.out / "sheet.jpg")
    print(
        f"edges {fmean(edges):.2f} (least {min(edges):.2f}), style {fmean(styles):.2f} (most {max(styles):.2f})"
    )


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.style",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--sources", type=Path, nargs="+", required=True)
    parser.add_argument("--styles", type=Path, nargs="*", default=[])
    parser.add_argument("--prompts", nargs="*", default=[])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--side", type=int, default=1024, metavar="PX", help="short side of the results")
    parser.add_argument("--model", default="worker/bundled")
    parser.add_argument("--device", default="auto", help="as a worker's: auto, cpu, cuda:0")
    return parser.parse_args()


def restyle_all(ready: Ready, options: argparse.Namespace) -> Iterator[Restyled]:
    """Every source in every style; results are kept as PNG."""
    words = {prompt: make_picture(ready, {"prompt": prompt, "seed": 2}, {}) for prompt in options.prompts}
    for path in options.sources:
        source = reduce(read_image(path), options.side)
        for style, prompt in [*product(options.styles, [None]), *product([None], options.prompts)]:
            if style == path:
                continue
            name = f"{path.stem} as {style.stem if style else prompt}"
            pictures: dict[PicturePart, Tensor] = {"source_image": source}
            if style:
                pictures["style_image"] = read_image(style)
            asked = {"source": {}, "seed": 1, "style": {"style_image": True} if style else {"prompt": prompt}}
            result = make_picture(ready, asked, pictures)
            Image.fromarray(result.permute(1, 2, 0).numpy()).save(options.out / f"{name}.png")
            yield Restyled(name, source, pictures["style_image"] if style else words[prompt], result)


def reduce(image: Tensor, side_px: int) -> Tensor:
    """The whole of (3, H, W), its short side at `side_px`; uint8."""
    scale = side_px / min(image.shape[1:])
    size = [max(round(length * scale), side_px) for length in image.shape[1:]]
    resized = functional.interpolate(image[None].float(), size=size, mode="bicubic", antialias=True)
    return resized[0].round().clamp(0, 255).to(torch.uint8)


def correlate_edges(one: Tensor, other: Tensor) -> float:
    """Of two pictures (3, H, W) of one shape, uint8."""
    return float(np.corrcoef(_find_edges(one).flatten(), _find_edges(other).flatten())[0, 1])


def _find_edges(image: Tensor) -> Tensor:
    grey = reduce(image, SHORT_PX).float().mean(0)[None, None]
    down = torch.tensor([[-1.0, -2.0, -1.0], [0.0, 0.0, 0.0], [1.0, 2.0, 1.0]])
    kernels = torch.stack([down, down.T])[:, None]
    return functional.conv2d(grey, kernels).square().sum(1).sqrt()


def compare_styles(features: Features, each: Restyled) -> float:
    """Distance of the result's style to the style picture's, over that to the source's; the mean of the four maps' ratios."""
    found = [_describe(features, image) for image in (each.result, each.style, each.source)]
    return fmean(
        float((result - style).norm() / (result - source).norm())
        for result, style, source in zip(*found, strict=True)
    )


@torch.no_grad()
def _describe(features: Features, image: Tensor) -> list[Tensor]:
    """Mean and deviation of each channel of each map."""
    seen = reduce(image, SEEN_PX)
    height, width = (length // 32 * 32 for length in seen.shape[1:])
    maps = features.stages(seen[None, :, :height, :width].float() / 127.5 - 1)
    return [torch.cat([each[0].mean((1, 2)), each[0].std((1, 2))]) for each in maps]


if __name__ == "__main__":
    main()
