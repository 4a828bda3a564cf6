"""Choose the guidance scale of the full variant: KID and the share that the probe names at several, the best KID wins."""

import argparse
from dataclasses import replace
from pathlib import Path

from training.evaluate import measure_pictures, observe_reality
from training.features import Features
from training.pipeline import Pipeline, load_ours
from training.progress import choose_device
from training.sampling import FULL

SCALES = (1.5, 2.0, 2.5, 3.0)


def with_guidance(pipeline: Pipeline, scale: float) -> Pipeline:
    """The same model under another guidance scale."""
    return replace(pipeline, recipe=replace(pipeline.recipe, guidance_scale=scale))


def main() -> None:
    """Command line: `python -m training.tune SHARD [SHARD ...] --model PARTS`; the last line is the best scale."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("shards", type=Path, nargs="+")
    parser.add_argument("--model", type=Path, required=True, help="folder with vae/, unet_full/ ...")
    parser.add_argument("--count", type=int, default=512)
    chosen = parser.parse_args()
    device = choose_device()
    features = Features().to(device)
    reality = observe_reality(chosen.shards, features, device)
    full = next(
        pipeline for pipeline in load_ours(chosen.model, device) if pipeline.recipe.steps == FULL.steps
    )
    kids: dict[float, float] = {}
    for scale in SCALES:
        figures = measure_pictures(with_guidance(full, scale), features, reality, chosen.shards, chosen.count)
        kids[scale] = figures["kid"]
        print(f"guidance {scale}: {figures}", flush=True)
    print(min(kids, key=lambda scale: kids[scale]))


if __name__ == "__main__":
    main()
