"""Put the trained parts together as a standard StableDiffusionPipeline folder, with digests."""

import argparse
import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import cast

import torch
from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny
from torch import Tensor
from torch.nn import functional

from training.dataset import read_folders
from training.latents import encode_pixels
from training.measures import crop_real
from training.parts import load_autoencoder
from training.sampling import build_few_step_scheduler, build_full_scheduler

COMPONENTS: dict[str, list[str | None]] = {
    "feature_extractor": [None, None],
    "image_encoder": [None, None],
    "safety_checker": [None, None],
    "scheduler": ["diffusers", None],  # the variant's
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderTiny"],
}
# Of a cascade's later stages: no pipeline of diffusers has both it and a UNet, so the index does not name it.
UPSCALER = "latent_upscaler"
UPSCALER_STEPS = 4
LIMIT_BYTES, FILE_LIMIT_BYTES = 70_000_000, 30_000_000
UNDIGESTED = frozenset(["SHA256SUMS", "MODEL_CARD.md", "__init__.py"])


class BundleError(Exception):
    """The folder would be too large to ship; the message says by how much."""


def bundle(
    parts: Path, shards: list[Path], out: Path, few_steps: bool, steps: int, guidance_scale: float
) -> None:
    """Write `out/` from the folders of the stages.

    Args:
        few_steps: ship the distilled denoiser; else the full one, which needs guidance.

    Raises:
        BundleError: the folder is over 70 MB, or a file over 30 MB.
    """
    for name in ("vae", "text_encoder", "tokenizer"):
        _copy(parts / name, out / name)
    _load_as_float32(out / "text_encoder" / "config.json")
    _copy(parts / ("unet" if few_steps else "unet_full"), out / "unet")
    shutil.rmtree(out / UPSCALER, ignore_errors=True)
    if (parts / UPSCALER).is_dir():
        _copy(parts / UPSCALER, out / UPSCALER)
    scheduler = build_few_step_scheduler() if few_steps else build_full_scheduler()
    scheduler.save_pretrained(out / "scheduler")  # pyright: ignore[reportUnknownMemberType]
    components = COMPONENTS | {"scheduler": ["diffusers", type(scheduler).__name__]}
    index = {"_class_name": "StableDiffusionPipeline", "requires_safety_checker": False, **components}
    _write_json(out / "model_index.json", index)
    _write_json(out / "chorale.json", _describe(out, shards, steps, guidance_scale))
    write_digests(out)
    check_sizes(out)


def _copy(source: Path, target: Path) -> None:
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target)


def _load_as_float32(config: Path) -> None:
    """Stored in fp16, loaded like the other parts: transformers takes the dtype from here, diffusers takes float32."""
    _write_json(config, json.loads(config.read_text(encoding="utf-8")) | {"dtype": "float32"})


def _describe(out: Path, shards: list[Path], steps: int, guidance_scale: float) -> dict[str, object]:
    weight, bias = fit_latent_rgb(load_autoencoder(out / "vae"), shards)
    rounded = [_round(row) for row in weight]
    return {
        "name": "chorale-textures",
        "native_size_px": 512,
        "default_steps": steps,
        "default_guidance_scale": guidance_scale,
        "tile_sizes_px": [512, 1024],
        "layout": "flat",
        "cascade": describe_cascade(steps, conditioned=(out / UPSCALER).is_dir()),
        "latent_rgb": {"weight": rounded, "bias": _round(bias)},
        "license": "CC-BY-SA-4.0",
    }


def describe_cascade(steps: int, *, conditioned: bool) -> dict[str, object]:
    """Of `chorale.json`: later stages from the enlarged picture on, or from noise and seeing it."""
    if not conditioned:
        return {"steps": [steps, steps // 2, steps // 2], "strength": 0.4}
    return {"steps": [steps, UPSCALER_STEPS], "conditioned": True, "enlarges": 4, "augmentation": 0.1}


def _round(values: Tensor) -> list[float]:
    return [round(value.item(), 5) for value in values]


@torch.no_grad()
def fit_latent_rgb(vae: AutoencoderTiny, shards: list[Path], count: int = 48) -> tuple[Tensor, Tensor]:
    """Least squares from scaled latents to pictures shrunk to an eighth, in [0, 1]; (3, C) and (3,)."""
    pictures = [picture for picture in read_folders(shards) if not picture.held_out]
    crops = crop_real(pictures[:: max(1, len(pictures) // count)], torch.device("cpu"), every=False)
    rows: list[tuple[Tensor, Tensor]] = []
    for crop in crops:
        latent = encode_pixels(vae, crop.image[None])[0].flatten(1).T
        colour = functional.avg_pool2d((crop.image + 1) / 2, 8).flatten(1).T
        rows.append((torch.cat([latent, torch.ones(len(latent), 1)], dim=1), colour))
    inputs, colours = (torch.cat(part) for part in zip(*rows, strict=True))
    solution = cast(Tensor, torch.linalg.lstsq(inputs, colours).solution)  # pyright: ignore[reportUnknownMemberType]
    error = (inputs @ solution - colours).abs().mean().item()
    print(f"latent to RGB: mean error {error * 255:.1f} of 255")
    return solution[:-1].T, solution[-1]


def write_digests(folder: Path) -> None:
    """SHA256SUMS in the format of `sha256sum`, over all files but itself, the card and its pictures."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and _is_digested(path))
    lines = [
        f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.relative_to(folder).as_posix()}"
        for path in files
    ]
    (folder / "SHA256SUMS").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _is_digested(path: Path) -> bool:
    return path.name not in UNDIGESTED and path.suffix not in {".jpg", ".webp", ".pyc"}


def check_sizes(folder: Path) -> None:
    """Refuse what could not be shipped.

    Raises:
        BundleError: names the sizes.
    """
    sizes = {path: path.stat().st_size for path in folder.rglob("*") if path.is_file()}
    total, largest = sum(sizes.values()), max(sizes, key=lambda path: sizes[path])
    print(
        f"{total / 1e6:.1f} MB in {len(sizes)} files; the largest is {largest.name}, {sizes[largest] / 1e6:.1f} MB"
    )
    if total > LIMIT_BYTES or sizes[largest] > FILE_LIMIT_BYTES:
        raise BundleError(
            f"{total} bytes of at most {LIMIT_BYTES}; {largest.name} has {sizes[largest]} of {FILE_LIMIT_BYTES}"
        )


def _write_json(path: Path, content: Mapping[str, object]) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    """Command line: `python -m training.bundle PARTS SHARD [SHARD ...] --out worker/bundled`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", type=Path)
    parser.add_argument("shards", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--few-steps", action="store_true", help="ship the distilled denoiser")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--guidance-scale", type=float, default=1.0)
    chosen = parser.parse_args()
    try:
        bundle(chosen.parts, chosen.shards, chosen.out, chosen.few_steps, chosen.steps, chosen.guidance_scale)
    except BundleError as error:
        raise SystemExit(f"bundle: {error}") from error


if __name__ == "__main__":
    main()
