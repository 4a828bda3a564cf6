"""What only FLUX.1 has."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.tiny_transformers import tiny_flux
from tests.worker.engine.known_answer import predict
from worker.adapters.families.flux import Flux, FluxReplica, load, place_tokens
from worker.adapters.model import Conditions
from worker.engine.canvas import Plane, Rectangle
from worker.engine.noise import initial_noise
from worker.engine.plan import DenoisePlan, StagePlan

STAGE = StagePlan(DenoisePlan(Plane(32, 32, (True, True)), 8, 0, 0, moving=True, seed=1), 2)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def flux(tmp_path_factory: pytest.TempPathFactory) -> Flux:
    folder: Path = tmp_path_factory.mktemp("models") / "flux"
    tiny_flux(folder)
    return load(folder, CPU)


def test_positions_of_a_tile_are_the_canvas_own() -> None:
    canvas = place_tokens(32, 48, (0, 0), CPU).unflatten(0, (16, 24))
    tile = place_tokens(8, 12, (6, 20), CPU).unflatten(0, (4, 6))
    assert torch.equal(tile, canvas[3:7, 10:16])
    between = place_tokens(8, 12, (7, 20), CPU).unflatten(0, (4, 6))
    assert torch.equal(between - tile, torch.tensor([0.0, 0.5, 0.0]).expand_as(tile))


@torch.inference_mode()
def test_embedded_guidance_is_heard(flux: Flux) -> None:
    crop = initial_noise(1, 4, 8, 8)
    replica = flux.encode(Conditions("dune", guidance_scale=3.5))(STAGE)
    assert isinstance(replica, FluxReplica)
    tiles = [Rectangle(0, 0, 8, 8)]
    weak, strong = (
        predict(replace(replica, guidance_scale=scale), crop[None], 500.0, tiles, [0]) for scale in (1.0, 9.0)
    )
    assert (weak - strong).abs().max() > 1e-5
