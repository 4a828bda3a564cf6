"""What a device's memory makes of a model's card, and what a worker has seen before its first job."""

import sys
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch._inductor.exc import InductorError
from torch.nn import Conv2d, Module
from torch.nn.modules.module import register_module_forward_pre_hook

from api_schemas.catalog import DecodeNeed
from api_schemas.generation import GenerationRequest, ResolvedRequest
from api_schemas.stages import lay_stages
from tests.tiny_models import tiny_stable_diffusion
from tests.tiny_upscaler import tiny_upscaling_model
from worker.adapters.errors import ModelFolderError
from worker.adapters.model import Conditions
from worker.adapters.registry import load_found
from worker.adapters.source import ModelSource, find_model
from worker.adapters.toy import Toy
from worker.engine.generate import generate
from worker.errors import DeviceRefusedError
from worker.planner import plan_generation
from worker.process.memory import DeviceMemory, PeakMemory, require_device_memory
from worker.process.warmup import (
    WarmUp,
    choose_decode_memory,
    describe_needs,
    make_ready,
    try_warm_up,
    warm_up_every_shape,
)
from worker.settings import parse_devices

GIB = 1 << 30


@pytest.mark.parametrize(("free_gib", "modules"), [(80, 8), (9, 8), (8, 7), (4, 3), (1, 1), (0, 1)])
def test_as_many_modules_as_fit_the_free_memory(free_gib: int, modules: int) -> None:
    measured = WarmUp(0.1, 0.1, tile_bytes=GIB, decode_bytes=GIB // 2, modules=8)
    needs = [DecodeNeed(side_px=1024, gib=2.0), DecodeNeed(side_px=4096, gib=5.5)]
    card = describe_needs(Toy().card, 3 * GIB, measured, free_gib * GIB, needs)
    assert card.default_num_modules == modules
    assert (card.weights_gib, card.tile_gib, card.decode_needs) == (3.0, 1.0, needs)


def test_the_predicted_peak_is_weights_canvas_and_the_larger_of_batch_and_decode() -> None:
    card = Toy().card.model_copy(
        update={
            "weights_gib": 7.0,
            "tile_gib": 1.0,
            "decode_needs": [DecodeNeed(side_px=4096, gib=5.5)],
            "default_num_modules": 2,
        }
    )
    requests = (
        GenerationRequest.model_validate({"width_px": 4096, "height_px": 4096, "advanced": advanced})
        for advanced in ({}, {"num_modules": 8})
    )
    few, many = (card.estimate(request, lay_stages(card, request)) for request in requests)
    assert 12.5 < few.vram_gib < 12.6
    assert many.vram_gib == pytest.approx(few.vram_gib + 2.5)


@pytest.mark.parametrize(
    ("side_px", "decode_gib"),
    [(256, 2.0), (1024, 2.0), (1536, 9.0), (2048, 9.0), (3072, 9.0), (4096, 5.5), (16_384, 5.5)],
)
def test_decoding_is_predicted_by_the_larger_of_the_sizes_around(side_px: int, decode_gib: float) -> None:
    sizes = {1024: 2.0, 2048: 9.0, 4096: 5.5}
    needs = [DecodeNeed(side_px=side, gib=gib) for side, gib in sizes.items()]
    card = Toy().card.model_copy(update={"decode_needs": needs, "latent_channels": 0})
    request = GenerationRequest(width_px=side_px, height_px=side_px)
    assert card.estimate(request, lay_stages(card, request)).vram_gib == decode_gib


def test_warming_up_measures_what_the_card_then_says() -> None:
    card = make_ready(ModelSource("toy"), "cpu").card
    needs = card.decode_needs
    assert (needs[0].side_px, needs[-1].side_px) == (card.native_size_px, card.max_side_px)
    assert 0 <= needs[0].gib < needs[-1].gib < 1
    assert 0 <= card.tile_gib < 4
    assert make_ready(ModelSource("toy"), "cpu").device == torch.device("cpu")
    assert make_ready(ModelSource("toy"), "cpu", decode_memory_mb=64).decode_memory == 64 << 20


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a process cannot lower its high-water mark")
def test_the_peak_of_some_work_is_not_that_of_earlier_work() -> None:
    bytearray(1 << 30)
    peak = PeakMemory(torch.device("cpu"))
    assert peak.measure() < 1 << 27
    bytearray(1 << 28)
    assert 1 << 27 < peak.measure() < 1 << 29


@pytest.mark.parametrize(("build", "seen"), [(tiny_stable_diffusion, 3), (tiny_upscaling_model, 8)])
def test_no_batch_of_a_job_has_a_size_that_is_new_to_the_worker(
    build: Callable[[Path], object], seen: int, tmp_path: Path
) -> None:
    """Channels of pixels on the way up, or of two latents, are seen at the larger size alone."""
    build(tmp_path / "tiny")
    model = load_found(find_model(ModelSource(str(tmp_path / "tiny"))), torch.device("cpu"))
    card = model.card.model_copy(update={"default_num_modules": 7})
    with _watch() as met:
        warm_up_every_shape(model, card, 1 << 28)
    assert any(channels == seen for _, channels, *_ in met[Conv2d])
    side_px = 6 * card.native_size_px
    request = ResolvedRequest(
        model="tiny", width_px=side_px, height_px=side_px, steps=4, guidance_scale=2.0, seed=1
    )
    plan = plan_generation(request, card, 1 << 28, tmp_path)
    with _watch() as used:
        deque(generate(plan, model.prepare(Conditions("lava", guidance_scale=2.0))), maxlen=0)
    assert len(used[UNet2DConditionModel]) > 2
    assert used[UNet2DConditionModel] <= met[UNet2DConditionModel]


@contextmanager
def _watch() -> Iterator[dict[type[Module], set[torch.Size]]]:
    """Shapes that go into modules of each kind."""
    shapes = defaultdict[type[Module], set[torch.Size]](set)

    def note(module: Module, given: tuple[Any, ...]) -> None:
        if given:
            shapes[type(module)].add(given[0].shape)

    hook = register_module_forward_pre_hook(note)
    try:
        yield shapes
    finally:
        hook.remove()


def test_decoding_holds_a_share_of_what_is_free() -> None:
    assert choose_decode_memory(DeviceMemory("cuda:0", 141 * GIB, 141 * GIB)) == 9 * GIB
    assert choose_decode_memory(DeviceMemory("cuda:0", 8 * GIB, 24 * GIB)) == 2 * GIB
    assert choose_decode_memory(DeviceMemory("cpu", 64 * GIB, 64 * GIB)) == GIB


def test_the_second_worker_on_a_full_device_is_told_how_much_is_missing() -> None:
    replica = DeviceMemory("cuda:0", free=3 * GIB, total=24 * GIB)
    require_device_memory(replica, 3 * GIB, "model painter")
    with pytest.raises(
        DeviceRefusedError, match=r"cuda:0 has 3\.0 of 24\.0 GiB free, and model painter needs about 8\.5"
    ):
        require_device_memory(replica, int(8.5 * GIB), "model painter")


@pytest.mark.parametrize(
    ("text", "devices"),
    [
        ("", ("auto",)),
        ("cpu, cpu", ("cpu", "cpu")),
        ("0,cuda:1", ("cuda:0", "cuda:1")),
        ("cuda:01", ("cuda:1",)),
    ],
)
def test_devices_are_named_as_torch_names_them(text: str, devices: tuple[str, ...]) -> None:
    assert parse_devices(text) == devices


class Uncompiled(Toy):
    """The compiler says this of generated code in its cache that is damaged, at every start."""

    def prepare(self, conditions: Conditions) -> NoReturn:
        raise InductorError(RuntimeError("Failed to import /cache/2m/c2.py\nUnicodeDecodeError: …"), None)


def test_what_cannot_be_compiled_is_not_blamed_on_the_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "/cache")
    with pytest.raises(ModelFolderError) as refused:
        try_warm_up(Uncompiled(), torch.device("cpu"))
    assert str(refused.value) == (
        "toy is loaded, but cannot be compiled: RuntimeError: Failed to import /cache/2m/c2.py; if the compiler's "
        'cache in /cache may be damaged, delete it, or else leave out "compile" in chorale.json'
    )


def test_warming_up_shows_that_both_networks_work(tmp_path: Path) -> None:
    """The upscaler's inputs have the channels of two latents, as nothing else here."""
    folder = tiny_upscaling_model(tmp_path / "tiny")
    with _watch() as met:
        make_ready(ModelSource(str(folder)), "cpu")
    assert {channels for _, channels, *_ in met[UNet2DConditionModel]} == {4, 8}
