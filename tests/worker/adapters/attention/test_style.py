"""Tiles that attend to a style picture, with the statistics of its queries and keys."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from tests.tiny_models import tiny_stable_diffusion
from tests.worker.adapters.attention.tiled import TALL, Predict, conditions, draw
from tests.worker.engine.thread_group import thread_groups
from worker.adapters.attention.style import measure, restyle
from worker.adapters.errors import UnsupportedConditionError
from worker.adapters.model import Conditions, LoadedModel
from worker.adapters.registry import load_model
from worker.engine.attention import AttentionPlan, Views
from worker.engine.canvas import Plane
from worker.engine.denoise import Checkpoint, Step
from worker.engine.ensemble import Ensemble
from worker.engine.generate import PreparedModel, generate
from worker.engine.plan import DecodePlan, DenoisePlan, GenerationPlan, StagePlan
from worker.engine.ranks import Group
from worker.engine.start import GivenPixels, LowBandPlan, Picture
from worker.engine.stitch import Band
from worker.engine.style import Style

# A UNet, joint attention, and rotary positions counted from the corner and from the middle; FLUX.2 is below.
STYLED = ["stable-diffusion-xl", "stable-diffusion-3", "z-image", "qwen-image"]
SIDES = 16, 12  # of the style picture, latent pixels
Array = npt.NDArray[np.float64]


def plan_styled(model: LoadedModel, strength: float) -> DenoisePlan:
    unit = model.card.alignment_px // model.card.vae_scale
    attention = AttentionPlan(SIDES, strength, unit=unit, styled=True)
    return DenoisePlan(TALL, 16, 0, 0, moving=False, seed=3, attention=attention)


def draw_style(model: LoadedModel, strength: float, seed: int = 5) -> Style:
    generator = torch.Generator().manual_seed(seed)
    latent, noise = (torch.randn(model.card.latent_channels, *SIDES, generator=generator) for _ in range(2))
    return Style(2 * latent + 1, noise, strength)


def begin(
    model: LoadedModel, style: Style | None, told: Conditions, *, modules: int = 2, strength: float = 1.0
) -> Predict:
    """Predictions of all tiles at the second of four steps, (tiles, C, h, w)."""
    prepared, plan = model.prepare(told), plan_styled(model, strength)
    stage = StagePlan(plan, 4, modules=modules)
    replica, scheduler = prepared.make_replica(stage), prepared.make_scheduler(stage)
    ensemble, attention = Ensemble(replica, TALL, modules), plan.attention
    assert attention is not None

    def predict(latent: Tensor) -> Tensor:
        match = partial(scheduler.match_noise, 1)
        views = style and Views(latent, TALL, attention, match, style=style.look(scheduler, 1))
        predicted = ensemble.predict(latent, scheduler.timesteps[1], plan.grid_at(1, 4).tiles, views)
        return torch.stack([prediction for _, prediction in predicted])

    return predict


def adain(states: Array, like: Array) -> Array:
    """Hertz et al. (2024), eq. 4: the deviation and mean of `like` over its tokens, channel by channel; (tokens, D)."""
    normal = (states - states.mean(0)) / np.sqrt(states.var(0) + 1e-5)
    return np.sqrt(like.var(0) + 1e-5) * normal + like.mean(0)


def rotate(states: Array, angles: Array) -> Array:
    """Pairs of neighbouring channels as complex numbers (Su et al. 2021, eq. 12)."""
    turned = (states[:, ::2] + 1j * states[:, 1::2]) * np.exp(1j * angles)
    return np.stack([turned.real, turned.imag], axis=-1).reshape(states.shape)


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("strength", [1.0, 0.25])
def test_queries_and_keys_take_the_statistics_of_the_published_formula(strength: float, turned: bool) -> None:
    random = np.random.default_rng(1)
    own, like = random.normal(2, 3, (2, 3, 20, 8)), random.normal(-1, 0.5, (2, 3, 9, 8))
    angles = random.uniform(-3, 3, (2, 20, 4)), random.uniform(-3, 3, (2, 9, 4))
    places = [(torch.as_tensor(np.cos(each)), torch.as_tensor(np.sin(each))) for each in angles]
    if turned:
        seen = [
            np.array([[rotate(each[b, h], angles[which][b]) for h in range(3)] for b in range(2)])
            for which, each in enumerate((own, like))
        ]
    else:
        seen = [own, like]
    wanted = measure(torch.as_tensor(seen[1]), places[1] if turned else None)
    own_place = places[0] if turned else None
    found = restyle(torch.as_tensor(seen[0]).float(), own_place, wanted, torch.tensor(strength))
    for batch in range(2):
        for head in range(3):
            styled = adain(own[batch, head], like[batch, head])
            expected = (1 - strength) * own[batch, head] + strength * styled
            expected = rotate(expected, angles[0][batch]) if turned else expected
            np.testing.assert_allclose(found[batch, head].numpy(), expected, rtol=1e-4, atol=1e-4)


class StyleAligned:
    """diffusers' processor of self-attention written out as Hertz et al. (2024) have it, eq. 5, with style keys that count four times."""

    def __init__(self) -> None:
        self.kept: tuple[Tensor, Tensor, Tensor] | None = None
        self.reads = False

    def __call__(self, attn: Any, hidden_states: Tensor, *_: object, **options: object) -> Tensor:
        query, keys, values = (
            each(hidden_states).unflatten(-1, (attn.heads, -1)).transpose(1, 2)
            for each in (attn.to_q, attn.to_k, attn.to_v)
        )
        bias = torch.zeros(keys.shape[2])
        if not self.reads:
            self.kept = query, keys, values
        else:
            assert self.kept is not None
            style_query, style_keys, style_values = self.kept
            query, keys = self._restyle(query, style_query), self._restyle(keys, style_keys)
            others = style_keys.shape[2]
            bias = torch.cat([bias, torch.full((others,), 4 * bias.numel() / others).log()])
            keys, values = (
                torch.cat([own, kept.expand(len(own), -1, -1, -1)], dim=2)
                for own, kept in ((keys, style_keys), (values, style_values))
            )
        logits = query @ keys.transpose(-1, -2) / query.shape[-1] ** 0.5 + bias
        attended = (logits.softmax(-1) @ values).transpose(1, 2).flatten(2)
        return attn.to_out[0](attended) / attn.rescale_output_factor

    @staticmethod
    def _restyle(states: Tensor, like: Tensor) -> Tensor:
        styled = [
            [
                adain(head.double().numpy(), like[0, place].double().numpy())
                for place, head in enumerate(heads)
            ]
            for heads in states
        ]
        return torch.as_tensor(np.array(styled)).float()


def test_a_unet_attends_to_the_style_picture_as_the_paper_says(
    models: Callable[[str], LoadedModel], tmp_path: Path
) -> None:
    model, latent = models("stable-diffusion"), draw(models("stable-diffusion"))
    told, style = Conditions("brick wall", attention="conductor", styled=True), draw_style(model, 1.0)
    found = begin(model, style, told)(latent)
    pipe: Any = tiny_stable_diffusion(tmp_path / "tiny")
    layers = [StyleAligned() for name in pipe.unet.attn_processors if "attn1" in name]
    waiting = iter(layers)
    pipe.unet.set_attn_processor(
        {name: next(waiting) if "attn1" in name else own for name, own in pipe.unet.attn_processors.items()}
    )
    states: Tensor = pipe.encode_prompt("brick wall", "cpu", 1, False)[0]
    pipe.scheduler.set_timesteps(4)
    timestep = pipe.scheduler.timesteps[1]
    noisy = pipe.scheduler.add_noise(style.latent[None], style.noise[None], timestep[None])
    with torch.inference_mode():
        pipe.unet(noisy, timestep, states)
        for layer in layers:
            layer.reads = True
        tiles = torch.stack([latent[:, top : top + 16] for top in range(0, 48, 16)])
        expected = pipe.unet(tiles, timestep, states.expand(3, -1, -1)).sample
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", STYLED)
def test_a_style_picture_changes_every_tile_whatever_its_batch(
    name: str, models: Callable[[str], LoadedModel]
) -> None:
    model, latent = models(name), draw(models(name))
    told = conditions(model, styled=True)
    plain, styled, other = (
        begin(model, style, told, modules=1)(latent)
        for style in (None, draw_style(model, 1.0), draw_style(model, 1.0, seed=6))
    )
    for tile, (base, own, another) in enumerate(zip(plain, styled, other, strict=True)):
        assert (own - base).abs().max() > 1e-4, tile
        assert (own - another).abs().max() > 1e-5, tile
    together = begin(model, draw_style(model, 1.0), told, modules=3)(latent)
    torch.testing.assert_close(together, styled, rtol=1e-4, atol=1e-4)
    weak = begin(model, draw_style(model, 1e-6), told, strength=1e-6)(latent)
    torch.testing.assert_close(weak, plain, rtol=1e-3, atol=1e-4)


def test_with_positions_on_the_canvas_too(models: Callable[[str], LoadedModel]) -> None:
    model, latent = models("flux-2-klein"), draw(models("flux-2-klein"))
    told = conditions(model, styled=True, positions="global")
    one, three = (begin(model, draw_style(model, 1.0), told, modules=n)(latent) for n in (1, 3))
    plain = begin(model, None, told)(latent)
    torch.testing.assert_close(one, three, rtol=1e-4, atol=1e-4)
    assert ((one - plain).abs().amax((1, 2, 3)) > 1e-4).all()


def test_linear_attention_takes_no_style_picture(models: Callable[[str], LoadedModel]) -> None:
    model = models("sana")
    assert not model.card.style_image
    with pytest.raises(UnsupportedConditionError, match=r"style\.style_image"):
        model.prepare(conditions(model, styled=True))


def paint(part: Any) -> Tensor:
    rows = torch.arange(part.top, part.top + part.height)[:, None]
    columns = torch.arange(part.left, part.left + part.width)[None]
    return torch.stack([torch.sin(rows * pace + columns * 0.03) for pace in (0.01, 0.02, 0.04)])


def test_any_number_of_ranks_and_a_resumed_job_make_the_same_bytes(tmp_path: Path) -> None:
    folder = tmp_path / "tiny"
    tiny_stable_diffusion(folder)
    alone = load_model(str(folder), "cpu")
    start = Picture(0, LowBandPlan(tint=0.5), GivenPixels(paint, TALL))
    stage = StagePlan(
        replace(plan_styled(alone, 0.5), moving=True), 2, start, style=GivenPixels(paint, Plane(*SIDES))
    )
    picture = GenerationPlan(3, alone.card.latent_channels, (stage,), DecodePlan(tile_size=16))

    def prepare(model: LoadedModel) -> PreparedModel:
        return model.prepare(conditions(model, styled=True))

    def make(
        model: LoadedModel, group: Group | None = None, resume: Checkpoint | None = None
    ) -> tuple[list[Checkpoint], Tensor]:
        events = list(generate(picture, prepare(model), resume, group))
        kept = [event.checkpoint for event in events if isinstance(event, Step)]
        return kept, torch.cat([event.rows for event in events if isinstance(event, Band)])

    kept, rows = make(alone)
    assert torch.equal(make(alone, resume=kept[0])[1], rows)
    loaded = [load_model(str(folder), "cpu") for _ in range(2)]
    with ThreadPoolExecutor(2) as pool:
        assert all(torch.equal(each, rows) for _, each in pool.map(make, loaded, thread_groups(2)))
