"""Measure the bundled model and the first prototype in one run, on the held-out pictures."""

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from training.corpus import read_prompts, read_synonyms
from training.dataset import read_folders
from training.features import Features, perceptual_distance
from training.measures import Crop, Probe, crop_real, fit_probe, measure_kid, measure_psnr
from training.parts import place
from training.pipeline import BATCH, Pipeline, load_ours, load_prototype
from training.progress import choose_device, half_precision
from training.sampling import FULL
from training.sheet import draw_sheet

Figures = dict[str, float]


@dataclass(frozen=True, slots=True)
class Reality:
    """Real pictures, measured once.

    Attributes:
        middles: one crop of each held-out picture, for the autoencoder.
        held_out: features of every held-out crop, (M, 1280).
        probe: fitted on the training pictures.
    """

    middles: list[Crop]
    held_out: Tensor
    probe: Probe
    figures: Figures


def observe_reality(folders: list[Path], features: Features, device: torch.device) -> Reality:
    """Features of real crops, the probe, and how good it is."""
    pictures = read_folders(folders)
    known = crop_real([p for p in pictures if not p.held_out], device, every=True)
    unseen = crop_real([p for p in pictures if p.held_out], device, every=True)
    known_features, unseen_features = extract(features, known), extract(features, unseen)
    probe = fit_probe(known_features, [crop.picture.category for crop in known])
    figures = {
        "probe_real": probe.share_named(unseen_features, [crop.picture.category for crop in unseen]),
        "kid_of_training_pictures": measure_kid(known_features, unseen_features),
    }
    middles = crop_real([p for p in pictures if p.held_out], device, every=False)
    return Reality(middles, unseen_features, probe, figures)


def extract(features: Features, crops: list[Crop]) -> Tensor:
    """Pooled features of crops, (N, 1280)."""
    return torch.cat(
        [
            _pool(features, torch.stack([c.image for c in crops[i : i + BATCH]]))
            for i in range(0, len(crops), BATCH)
        ]
    )


@torch.no_grad()
def _pool(features: Features, image: Tensor) -> Tensor:
    with half_precision(image.device):
        return features(image).float()


def measure_autoencoder(pipeline: Pipeline, features: Features, crops: list[Crop]) -> Figures:
    """PSNR, perceptual distance and colour cast of crops that go through the autoencoder."""
    images = [crop.image[None] for crop in crops]
    pairs = [(pipeline.restore(image), image) for image in images]
    tone = torch.stack([(back - image).mean(dim=(0, 2, 3)) for back, image in pairs]).mean(0) / 2 * 255
    with torch.no_grad():
        distances = torch.cat([perceptual_distance(features, back, image) for back, image in pairs])
    return {
        "psnr_median_db": torch.cat([measure_psnr(back, image) for back, image in pairs]).median().item(),
        "perceptual_median": distances.median().item(),
        "colour_cast_of_255": tone.abs().max().item(),
    }


def measure_pictures(
    pipeline: Pipeline, features: Features, reality: Reality, folders: list[Path], count: int
) -> Figures:
    """KID, and the share that the probe names as their category, of pictures generated from the held-out captions."""
    held_out = [picture for picture in read_folders(folders) if picture.held_out]
    chosen = [held_out[index % len(held_out)] for index in range(count)]
    generated = generate_features(pipeline, features, [picture.caption for picture in chosen])
    return {
        "kid": measure_kid(generated, reality.held_out),
        "probe_painted": reality.probe.share_named(generated, [picture.category for picture in chosen]),
    }


def generate_features(pipeline: Pipeline, features: Features, captions: list[str]) -> Tensor:
    """Features of one picture for each caption."""
    starts = range(0, len(captions), BATCH)
    return torch.cat(
        [_pool(features, pipeline.generate(captions[i : i + BATCH], seed=1000 + i)) for i in starts]
    )


def measure_synonyms(pipeline: Pipeline, features: Features, probe: Probe, each: int) -> Figures:
    """How often pictures of unseen words, and of their known twins, are named as their category."""
    rows = [row for row in read_synonyms() for _ in range(each)]
    categories = [category for *_, category in rows]
    unseen = generate_features(pipeline, features, [word for word, _, _ in rows])
    twins = generate_features(pipeline, features, [twin for _, twin, _ in rows])
    return {
        "synonyms_named": probe.share_named(unseen, categories),
        "twins_named": probe.share_named(twins, categories),
    }


def draw_prompts(pipeline: Pipeline, path: Path, side: int = 64) -> None:
    """The 40 pictures of the model card."""
    prompts = read_prompts()
    starts = range(0, len(prompts), 20)
    images = [
        image for i in starts for image in pipeline.generate(prompts[i : i + 20], seed=7 + i, side=side)
    ]
    draw_sheet(images, prompts, 8, 256, path)


def evaluate(
    folders: list[Path], pipelines: list[Pipeline], out: Path, count: int, each: int, device: torch.device
) -> dict[str, Figures]:
    """All figures by variant; sheets and `figures.json` in `out`."""
    features = place(Features(), device, torch.channels_last)
    reality = observe_reality(folders, features, device)
    table = {"real": reality.figures}
    print("real", reality.figures, flush=True)
    for pipeline in pipelines:
        draw_prompts(pipeline, out / f"sheet-{pipeline.name.replace(' ', '-')}.jpg")
        figures = measure_pictures(pipeline, features, reality, folders, count)
        figures |= measure_synonyms(pipeline, features, reality.probe, each)
        figures |= measure_autoencoder(pipeline, features, reality.middles)
        table[pipeline.name] = figures
        print(pipeline.name, figures, flush=True)
    (out / "figures.json").write_text(json.dumps(table, indent=1))
    return table


def main() -> None:
    """Command line: `python -m training.evaluate SHARD [SHARD ...] --model FOLDER --out OUT`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("shards", type=Path, nargs="+")
    parser.add_argument("--model", type=Path, required=True, help="folder with vae/, unet/, unet_full/ ...")
    parser.add_argument("--prototype", type=Path)
    parser.add_argument("--prototype-states", type=Path, help="written by `python -m training.teacher`")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument(
        "--guidance-scale", type=float, default=FULL.guidance_scale, help="of the full variant"
    )
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--each", type=int, default=16, help="pictures of each synonym")
    chosen = parser.parse_args()
    device = choose_device()
    pipelines = load_ours(chosen.model, device, chosen.guidance_scale)
    if chosen.prototype:
        pipelines.append(load_prototype(chosen.prototype, chosen.prototype_states, device))
    chosen.out.mkdir(parents=True, exist_ok=True)
    evaluate(chosen.shards, pipelines, chosen.out, chosen.count, chosen.each, device)


if __name__ == "__main__":
    main()
