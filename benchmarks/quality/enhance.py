"""Enhance x4: photographs reduced by area, enlarged again, and compared with what they were.

    python -m benchmarks.quality.enhance PHOTO... --out runs/enhance --fidelity 0.2 1.0

Of each photograph the middle is taken, at most `--side` px a side, and its mean over every 4x4 px is the source. It is
enlarged without a prompt by Lanczos' kernel, by the model's defaults (*ours*), by the cascade that was there before the
conditioned stage (*cascade*: the bundled model's of then, by the weights of today), and with each `--fidelity`. *VAE* is
the original, encoded and decoded: as near as the model can come. Pictures stay in `--out` and are not made again: give
other code, weights or `--side` another folder. There is a sheet of their middles. Errors are standard errors over photographs.

- *Distance* to the original: of unit features at four stages of EfficientNet-Lite0, in the form of LPIPS.
- *KID* of native 512 px crops (EfficientNet-Lite0) to those of the originals. Both are of the same photographs, so
  for equal crops it is below 0: VAE shows what can be reached.
- *Energy* of grey above 1/8 and 1/4 of the sampling rate over that above 1/16, of all native 512 px crops together;
  over the same of the originals.
- *PSNR* of the result, reduced again, to the source. *Colour*: the worst channel's mean less the source's, of 255.
- *Seam ratio*, as `benchmarks.quality` has it, over that of the original on the same lines; of the step farthest from 1.
"""

import argparse
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from api_schemas.layout import Cascade
from benchmarks.quality.derived import list_lines, make_picture, save_image
from benchmarks.quality.figures import Figures, Sample, average, describe, keep_worst
from benchmarks.quality.measures import cut_cells, find_differences, measure_seam
from benchmarks.quality.pictures import Lines, read_image
from benchmarks.quality.reality import CROP_PX, CUTS, extract, share_bands
from benchmarks.quality.table import Row, draw_table
from training.features import Features, perceptual_distance
from training.measures import measure_kid, measure_psnr
from training.sheet import draw_sheet
from worker.adapters.source import ModelSource
from worker.process.warmup import Ready, make_ready

TIMES, SHOWN_PX = 4, 320
WAYS = ["Lanczos", "cascade", "ours", "VAE"]
_UNIT_PX = 32 * TIMES  # sides that the features, and the canvas of the source, take
_BEFORE = Cascade(steps=[5, 2, 2], strength=0.4)
_SEAM = "1.00 ± .03"
ROWS = (
    Row("distance to the original", "below Lanczos", "distance", 3),
    Row("native 512 px crops: KID to the originals'", "below Lanczos", "kid", 4),
    Row("energy above 1/8 of the sampling rate, over the originals'", "0.8 to 1.2", "band 0.125"),
    Row("energy above 1/4, over the originals'", "0.8 to 1.2", "band 0.25"),
    Row("reduced again: PSNR to the source, dB", "", "psnr", 1),
    Row("mean colour, worst channel, off the source's, of 255", "≤ 1", "colour"),
    Row("seam ratio on tile lines, over the original's", _SEAM, "photo seam tile"),
    Row("seam ratio on decode lines, over the original's", _SEAM, "photo seam decode"),
)


@dataclass(frozen=True, slots=True)
class Photograph:
    """The original (3, H, W), and its mean over every 4x4 px; uint8."""

    name: str
    original: Tensor
    source: Tensor


@dataclass(frozen=True, slots=True)
class Way:
    """How a picture of the original's size is made: what is asked of a model, with the source or the original."""

    ready: Ready
    asked: Mapping[str, object]
    given: Literal["source", "original"] = "source"

    def make(self, photograph: Photograph) -> Tensor:
        return make_picture(self.ready, self.asked, {"source_image": getattr(photograph, self.given)})

    def list_lines(self, photograph: Photograph) -> list[Lines]:
        return list_lines(self.ready, self.asked, {"source_image": getattr(photograph, self.given)})


@dataclass(frozen=True, slots=True)
class Originals:
    """What all ways are compared with: the photographs, features of their crops, and what `share_bands` says of them."""

    photographs: list[Photograph]
    crops: Sample
    shares: list[float]

    @classmethod
    def measure(cls, photographs: list[Photograph], features: Features) -> "Originals":
        images = [each.original for each in photographs]
        return cls(photographs, extract_crops(photographs, images, features), share_bands(images))


def main() -> None:
    options = parse()
    options.out.mkdir(parents=True, exist_ok=True)
    known = list_ways(make_ready(ModelSource(options.model), options.device), options.fidelity)
    ways = {name: way for name, way in known.items() if name in options.ways or name not in WAYS}
    photographs = [read_photograph(path, options.side) for path in options.photos]
    images = {
        name: [make(each, name, way, options.out) for each in photographs] for name, way in ways.items()
    }
    draw(photographs, images, options.out / "sheet.jpg")
    features = Features()
    originals = Originals.measure(photographs, features)
    columns = {name: summarize(originals, way, images[name], features) for name, way in ways.items()}
    print(draw_table(f"{len(photographs)} photographs", columns, ROWS))


def make(photograph: Photograph, name: str, way: Way | None, folder: Path) -> Tensor:
    """What is there is read."""
    path = folder / f"{photograph.name} {name}.png"
    if not path.is_file():
        save_image(way.make(photograph) if way else enlarge_lanczos(photograph.source), path)
        print(path.stem, file=sys.stderr, flush=True)
    return read_image(path)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.quality.enhance",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("photos", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--side", type=int, default=1024, metavar="PX", help="of the originals, at most")
    parser.add_argument("--fidelity", type=float, nargs="*", default=[])
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS)
    parser.add_argument("--model", default="worker/bundled")
    parser.add_argument("--device", default="auto", help="as a worker's: auto, cpu, cuda:0")
    return parser.parse_args()


def list_ways(ready: Ready, fidelities: list[float]) -> dict[str, Way | None]:
    """By name; None is Lanczos' kernel."""
    before = replace(ready, card=ready.card.model_copy(update={"cascade": _BEFORE}))
    enhanced: dict[str, object] = {"source": {}, "upscale": TIMES, "seed": 1}
    return {
        "Lanczos": None,
        "cascade": Way(before, enhanced),
        "ours": Way(ready, enhanced),
        **{f"fidelity {each:g}": Way(ready, enhanced | {"fidelity": each}) for each in fidelities},
        "VAE": Way(ready, {"source": {}, "strength": 0}, "original"),
    }


def read_photograph(path: Path, side_px: int) -> Photograph:
    """Its middle."""
    image = read_image(path)
    sides = [min(length, side_px) // _UNIT_PX * _UNIT_PX for length in image.shape[1:]]
    top, left = ((length - side) // 2 for length, side in zip(image.shape[1:], sides, strict=True))
    original = image[:, top : top + sides[0], left : left + sides[1]].contiguous()
    return Photograph(path.stem, original, reduce_area(original))


def reduce_area(image: Tensor) -> Tensor:
    """The mean over every 4x4 px, uint8."""
    return functional.avg_pool2d(image.float(), TIMES).round().to(torch.uint8)


def enlarge_lanczos(image: Tensor) -> Tensor:
    """(3, h, w) to (3, 4h, 4w), uint8."""
    small = Image.fromarray(image.permute(1, 2, 0).numpy())
    large = small.resize((small.width * TIMES, small.height * TIMES), Image.Resampling.LANCZOS)
    return torch.as_tensor(np.array(large)).permute(2, 0, 1)


def summarize(originals: Originals, way: Way | None, images: list[Tensor], features: Features) -> Figures:
    """Means over the photographs, and the figures of all their crops."""
    made = extract_crops(originals.photographs, images, features)
    pairs = list(zip(originals.photographs, images, strict=True))
    shares = zip(CUTS, share_bands(images), originals.shares, strict=True)
    real = originals.crops
    return {
        **average("distance", [measure_distance(features, *pair) for pair in pairs]),
        **describe("kid", lambda left_out: measure_kid(made.omit(left_out), real.omit(left_out)), made),
        **{f"band {cut:g}": share / own for cut, share, own in shares},
        **average("psnr", [measure_reduced(*pair) for pair in pairs]),
        **average("colour", [measure_colour(*pair) for pair in pairs]),
        **(compare_seams(way, pairs) if way else {}),
    }


def extract_crops(photographs: list[Photograph], images: list[Tensor], features: Features) -> Sample:
    """Features of native crops, by photograph."""
    found = [extract(features, cut_cells(image, CROP_PX)) for image in images]
    return Sample(found, [each.name for each in photographs])


def measure_distance(features: Features, photograph: Photograph, image: Tensor) -> float:
    """Perceptual distance to the original."""
    return perceptual_distance(features, _scale(image), _scale(photograph.original)).item()


def measure_reduced(photograph: Photograph, image: Tensor) -> float:
    """Decibels."""
    return measure_psnr(_scale(reduce_area(image)), _scale(photograph.source)).item()


def measure_colour(photograph: Photograph, image: Tensor) -> float:
    """Of 255."""
    made, source = (each.float().mean((1, 2)) for each in (image, photograph.source))
    return (made - source).abs().max().item()


def _scale(image: Tensor) -> Tensor:
    """(3, H, W), uint8, to (1, 3, H, W) in [-1, 1]."""
    return image[None].float() / 127.5 - 1


def compare_seams(way: Way, pairs: list[tuple[Photograph, Tensor]]) -> Figures:
    """Each picture's seam ratio over that of its original on the same lines."""
    ratios: dict[tuple[str, str], list[float]] = {}
    for photograph, image in pairs:
        both = [find_differences(each) for each in (image, photograph.original)]
        for lines in way.list_lines(photograph):
            made, own = (measure_seam(each, lines.rows, lines.columns) for each in both)
            if made is not None and own:
                ratios.setdefault((lines.name, ""), []).append(made / own)
    return keep_worst(ratios, "photo")


def draw(photographs: list[Photograph], made: dict[str, list[Tensor]], path: Path) -> None:
    """Middles at 1:1: a row for each photograph."""
    images, labels = list[Tensor](), list[str]()
    for index, photograph in enumerate(photographs):
        shown = {name: made[name][index] for name in ("Lanczos", "ours") if name in made}
        for name, image in (shown | {"original": photograph.original}).items():
            images.append(cut_middle(image) / 127.5 - 1)
            labels.append(f"{photograph.name}: {name}")
    draw_sheet(images, labels, len(images) // len(photographs), SHOWN_PX, path)


def cut_middle(image: Tensor) -> Tensor:
    """320 px a side."""
    top, left = ((length - SHOWN_PX) // 2 for length in image.shape[1:])
    return image[:, top : top + SHOWN_PX, left : left + SHOWN_PX]


if __name__ == "__main__":
    main()
