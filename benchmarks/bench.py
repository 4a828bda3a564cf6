"""Shared by the measurements: a model on a device, requests for it, seconds and memory."""

import argparse
import tempfile
import time
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline

from api_schemas.generation import ResolvedRequest
from worker.adapters.family_model import FamilyModel
from worker.adapters.model import Conditions
from worker.engine.canvas import Plane
from worker.engine.generate import Progress, generate
from worker.engine.plan import DecodeMode, DecodePlan, GenerationPlan
from worker.engine.ranks import Group
from worker.engine.stitch import stitch
from worker.engine.vae.decode import decode
from worker.engine.vae.operations import Decoder
from worker.planner import plan_generation
from worker.process.warmup import warm_up, warm_up_every_shape

Layout = Literal["flat", "cascade"]
GIB = 2**30
FEW_STEPS = [{"steps": 4}, *[{"steps": 2, "strength": 0.5}] * 3]


@dataclass(slots=True)
class Gauge:
    """What a measure took."""

    seconds: float = 0.0
    peak_gib: float = 0.0


class Spans:
    """Seconds and peak memory of a picture's parts, one after the other."""

    def __init__(self, bench: "Bench") -> None:
        self._bench, self._began = bench, time.perf_counter()
        self._name, self._done = "", list[tuple[str, float, float]]()

    def begin(self, name: str) -> None:
        """The part before ends here, unless it has this name."""
        if name == self._name:
            return
        self._bench.pool_moments()
        now, cuda = time.perf_counter(), self._bench.device.type == "cuda"
        if self._name:
            peak = torch.cuda.max_memory_allocated() / GIB if cuda else 0.0
            self._done.append((self._name, now - self._began, peak))
        if cuda:
            torch.cuda.reset_peak_memory_stats()
        self._name, self._began = name, now

    @property
    def peak_gib(self) -> float:
        return max(peak for _, _, peak in self._done)

    def describe(self) -> str:
        return ", ".join(f"{name} {seconds:.2f} s ({peak:.1f} GiB)" for name, seconds, peak in self._done)


class Bench:
    """One model on one device."""

    def __init__(
        self,
        pipe: DiffusionPipeline,
        model: FamilyModel,
        device: torch.device,
        group: Group,
        options: argparse.Namespace,
    ) -> None:
        self.pipe, self.model = pipe, model
        self.device, self.group, self.modules = device, group, options.modules
        self._shrink = 16 if options.tiny else 1
        self.decode_bytes = int(options.decode_gib * GIB)
        self.ceiling: float | None = None
        self.weights_gib = torch.cuda.memory_allocated() / GIB if device.type == "cuda" else 0.0
        if options.attention == "cudnn":
            torch.backends.cuda.enable_flash_sdp(False)
        self.warm_up()

    def report(self, name: str, value: str) -> None:
        """Print one line, on the first rank alone."""
        if self.group.rank == 0:
            print(f"{name:<28} {value}", flush=True)

    def size(self, side_px: int) -> int:
        return side_px // self._shrink

    @contextmanager
    def gauge(self) -> Generator[Gauge]:
        """Seconds until the device is idle again."""
        gauge = Gauge()
        self.pool_moments()
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        began = time.perf_counter()
        yield gauge
        self.pool_moments()
        gauge.seconds = time.perf_counter() - began
        if self.device.type == "cuda":
            gauge.peak_gib = torch.cuda.max_memory_allocated() / GIB

    def warm_up(self) -> None:
        """As a worker does at its start; then a decode as exact as the measured ones."""
        with self.gauge() as first:
            warm_up(self.model, self.device)
        with self.gauge() as others:
            warm_up_every_shape(self.model, self.model.card, self.decode_bytes)
        self.report(
            "warm-up",
            f"{first.seconds + others.seconds:.1f} s: first picture {first.seconds:.1f}, every batch and a picture "
            f"of twice the side {others.seconds:.1f}",
        )
        self.decode(1024, "exact")

    def decode(self, side_px: int, mode: DecodeMode, decoder: Decoder | None = None) -> None:
        card = self.model.card
        side = self.size(side_px) // card.vae_scale
        latent = torch.randn(card.latent_channels, side, side, device=self.device)
        decoder = decoder or self.model.prepare(Conditions("")).decoder
        with tempfile.TemporaryDirectory() as folder:
            held_bytes = self.decode_bytes if mode == "exact" else self.decode_bytes // 4
            plan = DecodePlan(mode=mode, memory_bytes=held_bytes, spill_dir=folder)
            for _ in stitch(decode(latent, decoder, Plane(side, side), plan, self.group), self.size(side_px)):
                pass

    def generate(
        self,
        side_px: int,
        *,
        layout: Layout,
        steps: int,
        folder: Path | None = None,
        group: Group | None = None,
        asked: Mapping[str, object] = {},
    ) -> Iterator[Progress]:
        request = self.ask(side_px, layout=layout, steps=steps, **asked)
        conditions = Conditions(request.prompt, guidance_scale=request.guidance_scale)
        plan = self.plan(request, folder or Path(tempfile.gettempdir()))
        return generate(plan, self.model.prepare(conditions), group=group or self.group)

    def plan(self, request: ResolvedRequest, folder: Path) -> GenerationPlan:
        return plan_generation(request, self.model.card, self.decode_bytes, folder)

    def ask(self, side_px: int, *, layout: Layout, steps: int, **asked: object) -> ResolvedRequest:
        """
        Args:
            asked: fields of `advanced`; `few`: as the few-step models are asked, two steps for each later stage.
        """
        side_px = max(self.size(side_px), 256)
        few = asked.pop("few", False)
        advanced = {"num_modules": self.modules, **({"stages": FEW_STEPS} if few else {}), **asked}
        return ResolvedRequest.model_validate(
            {
                "model": self.model.card.name,
                "width_px": side_px,
                "height_px": side_px,
                "steps": steps,
                "guidance_scale": 1.0 if few else self.model.card.default_guidance_scale,
                "seed": 7,
                "layout": layout,
                "advanced": advanced,
            }
        )

    def pool_moments(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
