"""Folders of diffusers' inpainting pipelines, whose UNet sees a mask and what stays of a picture."""

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.controlnets.controlnet import ControlNetModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.controlnet.pipeline_controlnet_inpaint import (
    StableDiffusionControlNetInpaintPipeline,
)
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion_inpaint import (
    StableDiffusionInpaintPipeline,
)
from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl_inpaint import (
    StableDiffusionXLInpaintPipeline,
)
from torch import Tensor

from tests.tiny_add_ons import tiny_control_net
from tests.tiny_models import tiny_stable_diffusion, tiny_stable_diffusion_xl
from tests.tiny_upscaler import plain_config
from tests.worker.adapters.families.test_from_picture import Drawing
from tests.worker.engine.thread_group import thread_groups
from worker.adapters.add_ons import Control, to_pil
from worker.adapters.errors import ModelFolderError
from worker.adapters.model import Conditions, LoadedModel
from worker.adapters.registry import load_model
from worker.engine.attention import AttentionPlan
from worker.engine.canvas import Plane, Rectangle
from worker.engine.denoise import Step, TilePredicted
from worker.engine.generate import FinalState, Progress, generate
from worker.engine.inpaint import Mask
from worker.engine.noise import initial_noise
from worker.engine.plan import DecodePlan, DenoisePlan, GenerationPlan, StagePlan
from worker.engine.start import GivenLatent, GivenPixels, Picture

PROMPT, NEGATIVE, SEED, STEPS, SCALE = "brick wall", "moss", 9, 4, 4
CANVAS = Plane(16, 12)
IMAGE = torch.rand(3, 16 * SCALE, 12 * SCALE, generator=torch.Generator().manual_seed(1)) * 2 - 1
MADE = torch.zeros(CANVAS.size)
MADE[3:11, 5:] = 1
ONE_TILE = DenoisePlan(CANVAS, 16, 0, 0, moving=False, seed=SEED)


def save_inpainting(folder: Path, *, xl: bool, channels: int = 9) -> DiffusionPipeline:
    """Its autoencoder is sure of each latent, so that to draw one as diffusers does is to take the mean."""
    plain = (tiny_stable_diffusion_xl if xl else tiny_stable_diffusion)(folder.with_name("plain"))
    torch.manual_seed(4)
    unet = UNet2DConditionModel(**{**plain_config(plain.unet), "in_channels": channels})
    be_sure(plain.vae)
    parts = {**plain.components, "unet": unet}
    if xl:
        pipe = StableDiffusionXLInpaintPipeline(**parts, add_watermarker=False)
    else:
        pipe = StableDiffusionInpaintPipeline(**parts, requires_safety_checker=False)
    pipe.save_pretrained(folder)
    return pipe


@torch.no_grad()
def be_sure(vae: AutoencoderKL) -> None:
    """What is drawn around its mean is the mean."""
    vae.quant_conv.weight[4:] = 0
    vae.quant_conv.bias[4:] = -30


@pytest.fixture(scope="module", params=[False, True], ids=["stable-diffusion", "stable-diffusion-xl"])
def loaded(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[DiffusionPipeline, LoadedModel]:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    pipe = save_inpainting(folder, xl=request.param)
    return pipe, load_model(str(folder), "cpu")


def ask(pipe: DiffusionPipeline, image: Tensor, made: Tensor, strength: float, **told: object) -> Tensor:
    """diffusers' own latent, (C, h, w)."""
    mask = made.repeat_interleave(SCALE, 0).repeat_interleave(SCALE, 1)
    height, width = mask.shape
    with Drawing(initial_noise(SEED, 4, *CANVAS.size)):
        return pipe(
            prompt=PROMPT, negative_prompt=NEGATIVE, guidance_scale=5.0, image=image[None],
            mask_image=mask[None, None], height=height, width=width, strength=strength,
            num_inference_steps=STEPS, output_type="latent", **told,
        ).images[0]  # fmt: skip


def paint(part: Rectangle) -> Tensor:
    return part.slice(IMAGE)


def make(model: LoadedModel, stage: StagePlan, control: Control | None = None) -> Tensor:
    prepared = model.prepare(Conditions(PROMPT, NEGATIVE, 5.0, control=control))
    return latent(generate(GenerationPlan(SEED, 4, (stage,), DecodePlan(tile_size=8)), prepared))


def latent(events: list[Progress] | Iterator[Progress]) -> Tensor:
    (found,) = (event.latent for event in events if isinstance(event, FinalState))
    return found


@pytest.mark.parametrize("strength", [1.0, 0.5])
def test_one_inpainted_tile_equals_diffusers_own_inpainting(
    loaded: tuple[DiffusionPipeline, LoadedModel], strength: float
) -> None:
    """All of it, as it makes what stays again."""
    pipe, model = loaded
    skipped = STEPS - int(STEPS * strength)
    start = Picture(skipped, given=GivenPixels(paint, CANVAS))
    stage = StagePlan(replace(ONE_TILE, mask=Mask.lay(MADE, CANVAS)), STEPS - skipped, start)
    theirs = ask(pipe, IMAGE, MADE, strength)
    torch.testing.assert_close(make(model, stage), theirs, rtol=0, atol=1e-4)
    assert (theirs - ask(pipe, IMAGE, MADE.flip(0), strength)).abs().max() > 0.01


def test_a_picture_from_text_is_one_of_which_nothing_stays(
    loaded: tuple[DiffusionPipeline, LoadedModel],
) -> None:
    pipe, model = loaded
    theirs = ask(pipe, torch.zeros_like(IMAGE), torch.ones_like(MADE), 1.0)
    torch.testing.assert_close(make(model, StagePlan(ONE_TILE, STEPS)), theirs, rtol=0, atol=1e-4)


def test_a_kept_latent_is_seen_as_the_picture_that_it_decodes_to(
    loaded: tuple[DiffusionPipeline, LoadedModel],
) -> None:
    """To a level of 255, which its picture is held in."""
    pipe, model = loaded
    kept = torch.randn(4, *CANVAS.size, generator=torch.Generator().manual_seed(2)) / 5
    with torch.inference_mode():
        image = pipe.vae.decode(kept[None] / pipe.vae.config.scaling_factor).sample[0].clamp(-1, 1)
    start = Picture(0, given=GivenLatent(lambda: kept))
    stage = StagePlan(replace(ONE_TILE, mask=Mask.lay(MADE, CANVAS)), STEPS, start)
    theirs = ask(pipe, image, MADE, 1.0)
    torch.testing.assert_close(make(model, stage), theirs, rtol=0, atol=0.05)


WIDE = Plane(16, 32, (False, True))
KEPT = torch.randn(4, *WIDE.size, generator=torch.Generator().manual_seed(3))


def plan_tiles() -> GenerationPlan:
    weights = torch.zeros(WIDE.size)
    weights[4:9, 9:13] = 1
    denoise = DenoisePlan(WIDE, 8, 0, 0, moving=True, seed=3, mask=Mask.lay(weights, WIDE))
    stage = StagePlan(denoise, 2, Picture(2, given=GivenLatent(lambda: KEPT)), modules=2)
    return GenerationPlan(3, 4, (stage,), DecodePlan(tile_size=8))


def test_where_no_tile_is_predicted_the_picture_stays(
    loaded: tuple[DiffusionPipeline, LoadedModel],
) -> None:
    _, model = loaded
    prepared = model.prepare(Conditions(PROMPT))
    events = list(generate(plan_tiles(), prepared))
    covered = torch.zeros(1, *WIDE.size)
    for event in (e for e in events if isinstance(e, TilePredicted) and e.index == 1):
        WIDE.scatter_add(covered, event.tile, torch.ones(1, 8, 8))
    stays = covered[0] == 0
    assert stays.any()
    assert torch.equal(latent(events)[:, stays], KEPT[:, stays])
    with ThreadPoolExecutor(2) as pool:
        together = pool.map(
            lambda group: latent(generate(plan_tiles(), prepared, group=group)), thread_groups(2)
        )
    assert all(torch.equal(each, latent(events)) for each in together)
    checkpoint = next(event.checkpoint for event in events if isinstance(event, Step))
    assert torch.equal(latent(generate(plan_tiles(), prepared, checkpoint)), latent(events))


def test_its_conductor_sees_the_mask_too(loaded: tuple[DiffusionPipeline, LoadedModel]) -> None:
    _, model = loaded
    prepared = model.prepare(Conditions(PROMPT, attention="conductor+neighbours"))
    plan = plan_tiles()

    def attend(strength: float) -> Tensor:
        attention = AttentionPlan((8, 16), strength, neighbours=True, unit=2)
        stage = replace(plan.stages[0], denoise=replace(plan.stages[0].denoise, attention=attention))
        return latent(generate(replace(plan, stages=(stage,)), prepared))

    assert attend(0.9).isfinite().all()
    assert not torch.equal(attend(0.9), attend(0.1))


def test_a_control_net_sees_the_latent_alone(tmp_path: Path) -> None:
    """One of a plain model, as there are no others."""
    plain, pipe = tiny_stable_diffusion(tmp_path / "plain"), save_inpainting(tmp_path / "tiny", xl=False)
    net = ControlNetModel.from_pretrained(tiny_control_net(tmp_path / "net", plain))
    picture = torch.randint(256, (3, 64, 48), dtype=torch.uint8, generator=torch.Generator().manual_seed(5))
    controlled = StableDiffusionControlNetInpaintPipeline(
        **pipe.components, controlnet=net, requires_safety_checker=False
    )
    told = {"control_image": to_pil(picture), "controlnet_conditioning_scale": 1.0}
    theirs = ask(controlled, IMAGE, MADE, 1.0, **told)
    start = Picture(0, given=GivenPixels(paint, CANVAS))
    stage = StagePlan(replace(ONE_TILE, mask=Mask.lay(MADE, CANVAS)), STEPS, start)
    ours = make(load_model(str(tmp_path / "tiny"), "cpu"), stage, control=Control(tmp_path / "net", picture))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)
    assert (theirs - ask(pipe, IMAGE, MADE, 1.0)).abs().max() > 0.01


def rewrite(folder: Path, file: str, **fields: object) -> None:
    (folder / file).write_text(json.dumps(json.loads((folder / file).read_text()) | fields))


REFUSED: list[tuple[Callable[[Path], None], str]] = [
    (
        lambda folder: rewrite(folder, "model_index.json", requires_aesthetics_score=True),
        r"model_index\.json: requires_aesthetics_score is True; allowed: false",
    ),
    (
        lambda folder: rewrite(folder, "model_index.json", _class_name="StableDiffusionXLPipeline"),
        r"unet/config\.json: in_channels is 9; allowed: 4, as latent_channels of vae",
    ),
]


@pytest.mark.parametrize(("change", "message"), REFUSED)
def test_what_such_a_folder_cannot_be_is_refused(
    change: Callable[[Path], None], message: str, tmp_path: Path
) -> None:
    save_inpainting(tmp_path / "tiny", xl=True)
    change(tmp_path / "tiny")
    with pytest.raises(ModelFolderError, match=message):
        load_model(str(tmp_path / "tiny"), "cpu")


def test_its_unet_may_be_a_plain_one_but_no_other(tmp_path: Path) -> None:
    save_inpainting(tmp_path / "plain-unet", xl=False, channels=4)
    plain = load_model(str(tmp_path / "plain-unet"), "cpu").prepare(Conditions(PROMPT))
    assert not plain.sees_masks
    save_inpainting(tmp_path / "other", xl=False, channels=5)
    with pytest.raises(ModelFolderError, match=r"in_channels is 5; allowed: 4 or 9, for latent_channels"):
        load_model(str(tmp_path / "other"), "cpu")
