"""From pictures to the figures of the table."""

from collections.abc import Callable
from dataclasses import asdict
from statistics import fmean, stdev

import torch
from torch import Tensor

from benchmarks.quality.measures import (
    blur,
    cut_cells,
    find_differences,
    find_error,
    measure_seam,
    measure_texture,
)
from benchmarks.quality.pictures import Kind, Made
from benchmarks.quality.prompts import TEXTURES
from benchmarks.quality.reality import (
    CROP_PX,
    CUTS,
    Reality,
    extract,
    measure_nearest,
    reduce_square,
    share_bands,
)
from training.features import Features
from training.measures import measure_kid, measure_psnr

Figures = dict[str, float]


def measure_pictures(made: list[Made], reality: Reality | None, features: Features) -> Figures:
    """All figures of the large pictures of one size, and of the small ones that they are compared with.

    Args:
        reality: without it, only what needs no real pictures.
    """
    scenes, natives, textures = (_choose(made, kind) for kind in ("scene", "native", "texture"))
    figures: Figures = {}
    if scenes:
        figures |= {"scene seconds": fmean(each.notes.seconds for each in scenes), **measure_seams(scenes)}
        figures |= measure_agreement(scenes, natives)
    if textures:
        figures |= {
            "texture seconds": fmean(each.notes.seconds for each in textures),
            **measure_seams(textures),
        }
        figures |= measure_textures(textures, reality)
    if scenes and reality:
        figures |= measure_likeness(scenes, natives, reality, features)
        figures |= measure_detail(scenes, reality, features)
    return figures


def _choose(made: list[Made], kind: Kind) -> list[Made]:
    return [each for each in made if each.subject.kind == kind]


def measure_agreement(scenes: list[Made], natives: list[Made]) -> Figures:
    """PSNR, dB, of reduced scenes to the small picture of the same prompt and noise, which a cascade begins with; 100 of
    equal ones."""
    leads = {(each.subject.prompt, each.subject.seed): each for each in natives}
    pairs = [(each, leads[each.subject.prompt, each.subject.seed]) for each in scenes]
    values = [
        measure_psnr(*(reduce_square(each.image, CROP_PX)[None] / 127.5 - 1 for each in pair))
        .clamp(max=100)
        .item()
        for pair in pairs
    ]
    return average("agreement", values)


def measure_likeness(
    scenes: list[Made], natives: list[Made], reality: Reality, features: Features
) -> Figures:
    """KID of whole scenes, of the small pictures, and of native crops; errors by leaving out each prompt."""
    whole, small = (
        Sample.take(pictures, lambda image: extract(features, reduce_square(image, CROP_PX)[None]))
        for pictures in (scenes, natives)
    )
    crops = Sample.take(scenes, lambda image: extract(features, cut_cells(image, CROP_PX)))
    real = reality.landscapes

    def compare(left_out: str) -> float:
        return measure_kid(whole.omit(left_out), real) / measure_kid(small.omit(left_out), real)

    figures = describe("kid whole", lambda left_out: measure_kid(whole.omit(left_out), real), whole)
    figures |= describe("kid native", lambda left_out: measure_kid(small.omit(left_out), real), small)
    figures |= describe("kid ratio", compare, whole)
    return figures | describe(
        "kid crops", lambda left_out: measure_kid(crops.omit(left_out), reality.crops), crops
    )


class Sample:
    """Features of pictures, by prompt."""

    def __init__(self, features: list[Tensor], prompts: list[str]) -> None:
        self._features, self._prompts = features, prompts

    @classmethod
    def take(cls, pictures: list[Made], measure: Callable[[Tensor], Tensor]) -> "Sample":
        """Each picture is read once, and not held."""
        return cls([measure(each.image) for each in pictures], [each.subject.prompt for each in pictures])

    @property
    def prompts(self) -> list[str]:
        return sorted(set(self._prompts))

    def omit(self, prompt: str) -> Tensor:
        """Features of all pictures but those of one prompt."""
        pairs = zip(self._features, self._prompts, strict=True)
        return torch.cat([features for features, each in pairs if each != prompt])


def describe(name: str, statistic: Callable[[str], float], sample: Sample) -> Figures:
    """The figure, and its error where enough pictures are left."""
    figures = {name: statistic("")}
    prompts = sample.prompts
    if len(prompts) > 1 and all(len(sample.omit(prompt)) > 1 for prompt in prompts):
        figures[f"{name} error"] = find_error([statistic(prompt) for prompt in prompts])
    return figures


def measure_detail(scenes: list[Made], reality: Reality, features: Features) -> Figures:
    """High bands, and the nearest far-apart crops, over those of real pictures."""
    side = scenes[0].subject.side_px
    shares = share_bands(each.image for each in scenes)
    nearest = fmean(measure_nearest(features, each.image, side) for each in scenes)
    bands = zip(CUTS, shares, reality.bands[side], strict=True)
    return {f"band {cut:g}": share / real for cut, share, real in bands} | {
        "nearest": nearest / reality.nearest[side]
    }


def measure_textures(textures: list[Made], reality: Reality | None) -> Figures:
    """Means over the pictures, and their ratio to real tileable pictures of the same categories."""
    figures = [asdict(measure_texture(each.image)) for each in textures]
    means = {name: fmean(each[name] for each in figures) for name in figures[0]}
    result = {f"texture {name}": value for name, value in means.items()}
    if reality:
        real = [reality.textures[TEXTURES[each.subject.prompt]] for each in textures]
        result |= {
            f"texture {name} ratio": value / fmean(each[name] for each in real)
            for name, value in means.items()
        }
    return result


def measure_seams(pictures: list[Made]) -> Figures:
    """Means over the pictures and their errors, sharp and blurred; of the tile lines, those of the step farthest from 1."""
    kind = pictures[0].subject.kind
    ratios: dict[tuple[str, str], list[float]] = {}
    for each in pictures:
        image = each.image
        for suffix, shown in (("", image), (" blurred", blur(image))):
            differences = find_differences(shown)
            for lines in each.notes.lines:
                ratio = measure_seam(differences, lines.rows, lines.columns)
                if ratio is not None:
                    ratios.setdefault((lines.name, suffix), []).append(ratio)
    return keep_worst(ratios, kind)


def keep_worst(ratios: dict[tuple[str, str], list[float]], kind: str) -> Figures:
    """Means of `ratios`, by (lines, suffix), and their errors; of the tile lines, those of the step farthest from 1."""
    figures: Figures = {}
    for (name, suffix), values in ratios.items():
        key, mean = f"{kind} seam {name.split()[0]}{suffix}", fmean(values)
        if abs(mean - 1) >= abs(figures.get(key, 1.0) - 1):
            figures |= average(key, values)
    return figures


def average(name: str, values: list[float]) -> Figures:
    """The mean, and its standard error where there are enough values."""
    error = {f"{name} error": stdev(values) / len(values) ** 0.5} if len(values) > 1 else {}
    return {name: fmean(values)} | error
