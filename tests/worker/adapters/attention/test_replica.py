"""Tiles of every family that attend to the conductor and to their neighbourhoods."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.tiny_models import tiny_stable_diffusion
from tests.worker.adapters.attention.tiled import (
    NAMES,
    TALL,
    begin,
    conditions,
    draw,
    find_attention,
    plan_tiles,
    save_tiny,
    start,
)
from worker.adapters.families import sana
from worker.adapters.model import Conditions, LoadedModel
from worker.engine.attention import Views
from worker.engine.ensemble import Batch, Query
from worker.engine.plan import StagePlan


@pytest.mark.parametrize("neighbours", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_what_lies_far_away_counts_and_without_attention_does_not(
    name: str, neighbours: bool, models: Callable[[str], LoadedModel]
) -> None:
    """In both directions."""
    model = models(name)
    prepared, plan, latent = (
        model.prepare(conditions(model)),
        plan_tiles(model, neighbours=neighbours),
        draw(model),
    )
    below, above = latent.clone(), latent.clone()
    below[:, -8:] += 1
    above[:, :8] += 1
    attentive, off = begin(prepared, plan), begin(prepared, plan, attends=False)
    base, plain = attentive(latent), off(latent)
    assert (base[0] - attentive(below)[0]).abs().max() > 1e-5
    assert (base[-1] - attentive(above)[-1]).abs().max() > 1e-5
    assert torch.equal(plain[0], off(below)[0])
    assert torch.equal(plain[-1], off(above)[-1])
    never = begin(model.prepare(conditions(model, attention="off")), plan, attends=False)
    assert torch.equal(never(latent), plain)
    assert torch.equal(attentive(latent), base)


class Concatenating:
    """diffusers' processor of self-attention written out, over a tile's own keys and those of an earlier forward."""

    def __init__(self) -> None:
        self.kept: tuple[Tensor, Tensor] | None = None
        self.weight = 0.0

    def __call__(self, attn: Any, hidden_states: Tensor, *_: object, **options: object) -> Tensor:
        query, keys, values = (
            each(hidden_states).unflatten(-1, (attn.heads, -1)).transpose(1, 2)
            for each in (attn.to_q, attn.to_k, attn.to_v)
        )
        bias = torch.zeros(keys.shape[2])
        if not self.weight:
            self.kept = keys, values
        else:
            assert self.kept is not None
            others = self.kept[0].shape[2]
            bias = torch.cat([bias, torch.full((others,), self.weight * bias.numel() / others).log()])
            keys, values = (
                torch.cat([own, kept.expand(len(own), -1, -1, -1)], dim=2)
                for own, kept in zip((keys, values), self.kept, strict=True)
            )
        logits = query @ keys.transpose(-1, -2) / query.shape[-1] ** 0.5 + bias
        attended = (logits.softmax(-1) @ values).transpose(1, 2).flatten(2)
        return attn.to_out[0](attended) / attn.rescale_output_factor


def test_a_unet_attends_as_if_the_conductors_keys_stood_behind_its_own(
    models: Callable[[str], LoadedModel], tmp_path: Path
) -> None:
    model, latent = models("stable-diffusion"), draw(models("stable-diffusion"))
    told = Conditions("brick wall", guidance_scale=1.0, attention="conductor")
    prepared, plan = model.prepare(told), plan_tiles(model, strength=0.3)
    found = begin(prepared, plan)(latent)

    pipe = tiny_stable_diffusion(tmp_path / "tiny")
    layers = [Concatenating() for name in pipe.unet.attn_processors if "attn1" in name]
    waiting = iter(layers)
    pipe.unet.set_attn_processor(
        {name: next(waiting) if "attn1" in name else own for name, own in pipe.unet.attn_processors.items()}
    )
    states = pipe.encode_prompt("brick wall", "cpu", 1, False)[0]
    scheduler = prepared.make_scheduler(StagePlan(plan, 4))
    clock = scheduler.match_noise(1, (1 / 6) ** 0.5)  # 3 rows and 2 columns are one pixel of the conductor
    small = latent.unflatten(1, (16, 3)).unflatten(3, (8, 2)).mean((2, 4)) * clock.gain
    with torch.inference_mode():
        pipe.unet(small[None], clock.timestep, states)
        for layer in layers:
            layer.weight = 0.3
        tiles = torch.stack([tile.slice(latent) for tile in plan.grid_at(1, 4).tiles])
        expected = pipe.unet(tiles, scheduler.timesteps[1], states.expand(len(tiles), -1, -1)).sample
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


class ConcatenatingLinear:
    """Sana's linear attention written out (Xie et al. 2024, eq. 2), over the same two sets."""

    def __init__(self) -> None:
        self.kept: tuple[Tensor, Tensor] | None = None
        self.weight = 0.0

    def __call__(self, attn: Any, hidden_states: Tensor, *_: object, **options: object) -> Tensor:
        query, keys, values = (
            each(hidden_states).unflatten(-1, (attn.heads, -1)).transpose(1, 2)
            for each in (attn.to_q, attn.to_k, attn.to_v)
        )
        weights = torch.ones(keys.shape[2])
        if not self.weight:
            self.kept = keys, values
        else:
            assert self.kept is not None
            others = self.kept[0].shape[2]
            weights = torch.cat([weights, torch.full((others,), self.weight * weights.numel() / others)])
            keys, values = (
                torch.cat([own, kept.expand(len(own), -1, -1, -1)], dim=2)
                for own, kept in zip((keys, values), self.kept, strict=True)
            )
        alike = query.relu() @ keys.relu().transpose(-1, -2) * weights
        attended = alike @ values / (alike.sum(-1, keepdim=True) + 1e-15)
        return attn.to_out[0](attended.transpose(1, 2).flatten(2))


def test_linear_attention_attends_as_if_the_conductors_keys_stood_behind_its_own(
    models: Callable[[str], LoadedModel], tmp_path: Path
) -> None:
    model = models("sana")
    prepared, plan, latent = (
        model.prepare(conditions(model, guidance_scale=1.0)),
        plan_tiles(model, strength=0.3),
        draw(model),
    )
    found = begin(prepared, plan)(latent)
    family = sana.load(save_tiny(tmp_path, "sana"), torch.device("cpu"))
    layers = [ConcatenatingLinear() for _ in family.pipe.transformer.transformer_blocks]
    for block, layer in zip(family.pipe.transformer.transformer_blocks, layers, strict=True):
        block.attn1.processor = layer
    stage = StagePlan(plan, 4)
    replica, scheduler = (
        family.encode(Conditions("brick wall", guidance_scale=1.0))(stage),
        prepared.make_scheduler(stage),
    )
    small = Views(latent, TALL, find_attention(plan), partial(scheduler.match_noise, 1)).of([]).conductor
    with torch.inference_mode():
        replica.predict(Batch(small.crop[None], small.timestep[None], (Query(small.area),)))
        for layer in layers:
            layer.weight = 0.3
        expected = start(replica, scheduler, stage, attends=False)(latent)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_a_weak_conductor_changes_little_and_a_strong_one_more(
    name: str, models: Callable[[str], LoadedModel]
) -> None:
    model = models(name)
    prepared, latent = model.prepare(conditions(model)), draw(model)
    off = begin(prepared, plan_tiles(model), attends=False)(latent)
    changes = [
        float((begin(prepared, plan_tiles(model, strength=strength))(latent) - off).abs().mean())
        for strength in (1e-6, 0.25, 1.0)
    ]
    assert changes[0] < 1e-5 < changes[1] < changes[2]
