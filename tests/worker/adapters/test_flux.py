"""What only the families with position ids can do: tell a tile where on the canvas it lies."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.tiny_transformers import tiny_flux
from worker.adapters.flux import Flux, FluxReplica, load, place_tokens
from worker.adapters.model import Conditions
from worker.engine.grid import Tile
from worker.engine.noise import initial_noise
from worker.engine.plan import DenoisePlan, StagePlan

STAGE = StagePlan(DenoisePlan(32, 32, (True, True), 8, 0, 0, moving=True, seed=1), 2)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def flux(tmp_path_factory: pytest.TempPathFactory) -> Flux:
    folder: Path = tmp_path_factory.mktemp("models") / "flux"
    tiny_flux(folder, distilled_guidance=True)
    return load(folder, CPU)


@torch.inference_mode()
def test_global_positions_tell_tiles_apart(flux: Flux) -> None:
    crop = initial_noise(1, 4, 8, 8)
    tiles = [Tile(0, 0, 8, 8), Tile(5, 16, 8, 8), Tile(0, 0, 8, 8)]
    local, placed = (_predict(flux, positions, crop, tiles) for positions in ("local", "global"))
    assert torch.allclose(local[0], local[1], atol=1e-6)
    assert torch.allclose(placed[0], local[0], atol=1e-6)
    assert torch.equal(placed[0], placed[2])
    assert (placed[1] - placed[0]).abs().max() > 1e-4


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
    tiles, timestep = [Tile(0, 0, 8, 8)], torch.tensor(500.0)
    weak, strong = (
        replace(replica, guidance_scale=scale).predict(crop[None], timestep, tiles, [0])
        for scale in (1.0, 9.0)
    )
    assert (weak - strong).abs().max() > 1e-5


def _predict(flux: Flux, positions: str, crop: torch.Tensor, tiles: list[Tile]) -> torch.Tensor:
    told = Conditions("dune", guidance_scale=3.5, positions="global" if positions == "global" else "local")
    replica = flux.encode(told)(STAGE)
    return replica.predict(torch.stack([crop] * len(tiles)), torch.tensor(500.0), tiles, [0] * len(tiles))
