"""Seams and decode error of a model's pictures, one table.

    .venv/bin/python benchmarks/quality.py --size 2048 --prompt "glowing orange lava"

Seam ratio: mean |difference across| the lines where tiles meet, over the same on lines half a stride
away; again after a Gaussian blur of 8 px, which keeps only steps of tone. 1.00 is no seam. It is
taken on the borders of every step's grid (the worst is shown), on decode-tile lines and across the
join of a canvas that wraps. Decode error: tiled against whole, of 255, at 1024 px a side.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from api_schemas.generation import ResolvedRequest
from worker.adapters.model import Conditions, LoadedModel
from worker.adapters.registry import load_model
from worker.engine.canvas import Plane
from worker.engine.denoise import denoise
from worker.engine.ensemble import Ensemble
from worker.engine.generate import PreparedModel
from worker.engine.noise import initial_noise
from worker.engine.plan import DecodePlan, GenerationPlan
from worker.engine.vae.decode import DecodedTile, decode
from worker.engine.vae.operations import Decoder
from worker.planner import plan_generation

BLUR_PX = 8


def main() -> None:
    options = parse()
    model = load_model(str(options.model), "cpu")
    request = ask(model, options)
    plan = plan_generation(request, model.card, 1 << 30, Path("."))
    plan = replace(plan, decode=replace(plan.decode, spill_dir=None))
    prepared = model.prepare(Conditions(request.prompt, guidance_scale=request.guidance_scale))
    latent = sing(plan, prepared)
    image = paint(latent, prepared.decoder, plan.canvas, plan.decode)
    print(f"{request.prompt!r}, {options.size} px, {request.steps} steps")
    for name, lines, stride in seam_lines(plan, model.card.vae_scale, request.steps):
        sharp, blurred = (seam_ratio(x, lines, stride) for x in (image, blur(image)))
        print(f"seam ratio, {name:<28} {sharp:5.2f}   blurred {blurred:5.2f}")
    for mode in ("exact", "bounded"):
        mean, p99 = decode_error(
            latent[:, : 1024 // model.card.vae_scale, : 1024 // model.card.vae_scale], prepared.decoder, mode
        )
        print(f"decode error, {mode:<10} mean {mean:.4f}/255   p99 {p99:.4f}/255")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, default=Path("worker/bundled"))
    parser.add_argument("--prompt", default="glowing orange lava")
    parser.add_argument("--size", type=int, default=2048)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--seamless", default="both", choices=["none", "x", "y", "both"])
    return parser.parse_args()


def ask(model: LoadedModel, options: argparse.Namespace) -> ResolvedRequest:
    return ResolvedRequest(
        prompt=options.prompt,
        model=model.card.name,
        width_px=options.size,
        height_px=options.size,
        steps=options.steps or model.card.default_steps,
        guidance_scale=model.card.default_guidance_scale,
        seed=options.seed,
        seamless=options.seamless,
    )


def sing(plan: GenerationPlan, prepared: PreparedModel) -> Tensor:
    (stage,) = plan.stages
    ensemble = Ensemble(prepared.make_replica(stage), stage.canvas, stage.modules)
    scheduler = prepared.make_scheduler(stage)
    latent = initial_noise(plan.seed, plan.channels, plan.canvas.height, plan.canvas.width)
    latent *= scheduler.initial_scale
    steps = denoise(latent, stage.denoise, ensemble, scheduler, torch.Generator().manual_seed(plan.seed))
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value


def paint(latent: Tensor, decoder: Decoder, canvas: Plane, plan: DecodePlan) -> Tensor:
    scale = decoder.scale
    image = torch.empty(3, latent.shape[1] * scale, latent.shape[2] * scale)
    for event in decode(latent, decoder, canvas, plan):
        if isinstance(event, DecodedTile):
            event.place.slice(image).copy_(event.image)
    return image


def seam_lines(plan: GenerationPlan, scale: int, steps: int) -> list[tuple[str, list[int], int]]:
    """(name, columns where tiles meet, stride), pixels."""
    stride = plan.stages[-1].denoise.tile_size * scale
    grids = [plan.stages[-1].denoise.grid_at(index, steps) for index in range(steps)]
    lines = [
        (f"tile lines of step {index + 1}", sorted({tile.left * scale for tile in grid.tiles}), stride)
        for index, grid in enumerate(grids)
    ]
    decode_px = plan.decode.tile_size * scale
    lines.append(
        ("decode-tile lines", list(range(decode_px, plan.canvas.width * scale, decode_px)), decode_px)
    )
    if plan.canvas.wrap[1]:
        lines.append(("the join of the wrap", [0], stride))
    return lines


def seam_ratio(image: Tensor, lines: list[int], stride: int) -> float:
    """Lines count in both axes of a square picture; it is taken as wrapping, so line 0 has two sides."""
    across = steps_at(image, lines) + steps_at(image.transpose(1, 2), lines)
    width = image.shape[2]
    halfway = sorted(
        {(line + stride // 2 + start) % width for line in lines for start in range(0, width, stride)}
    )
    beside = steps_at(image, halfway) + steps_at(image.transpose(1, 2), halfway)
    return across / beside


def steps_at(image: Tensor, lines: list[int]) -> float:
    width = image.shape[2]
    index = torch.tensor(lines)
    return float((image[:, :, index % width] - image[:, :, (index - 1) % width]).abs().mean())


def blur(image: Tensor) -> Tensor:
    reach = 3 * BLUR_PX
    kernel = torch.exp(-torch.arange(-reach, reach + 1).float().square() / (2 * BLUR_PX**2))
    kernel = (kernel / kernel.sum()).expand(3, 1, -1)
    padded = F.pad(image[None], (reach,) * 4, mode="circular")
    across = F.conv2d(padded, kernel[:, :, None, :], groups=3)
    return F.conv2d(across, kernel[:, :, :, None], groups=3)[0]


def decode_error(latent: Tensor, decoder: Decoder, mode: str) -> tuple[float, float]:
    """(mean, 99th percentile) of |tiled - whole|, of 255."""
    canvas = Plane(*latent.shape[-2:])
    whole = paint(latent, decoder, canvas, DecodePlan(tile_size=10_000, mode="exact", memory_bytes=1 << 40))
    tiled = paint(latent, decoder, canvas, DecodePlan(tile_size=16, mode=mode, memory_bytes=1 << 24))
    error = (whole - tiled).abs().flatten() * 127.5
    return float(error.mean()), float(error.kthvalue(int(len(error) * 0.99)).values)


if __name__ == "__main__":
    main()
