from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from diffusers.models.controlnets.controlnet import ControlNetModel
from diffusers.pipelines.controlnet.pipeline_controlnet import StableDiffusionControlNetPipeline
from diffusers.pipelines.controlnet.pipeline_controlnet_sd_xl import StableDiffusionXLControlNetPipeline
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from diffusers.schedulers.scheduling_heun_discrete import HeunDiscreteScheduler

from tests.tiny_add_ons import tiny_control_net
from tests.tiny_models import SCHEDULE
from tests.worker.adapters.families.test_unets import generate_one_tile, make_picture
from tests.worker.adapters.families.unets import ADD_ON_CASES, NOISE, PROMPT, SEED, UNetCase, ask
from worker.adapters.add_ons import Control, to_pil
from worker.adapters.errors import ModelFolderError, UnsupportedConditionError
from worker.adapters.extras.control_net import ControlNets, Guide
from worker.adapters.model import Conditions
from worker.adapters.registry import load_model
from worker.engine.canvas import Plane, Rectangle
from worker.engine.ensemble import Batch, Query
from worker.engine.noise import initial_noise
from worker.engine.plan import DenoisePlan, StagePlan

GUIDED = ("moss", 5.0)
PICTURE = torch.randint(256, (3, 50, 90), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
TORUS = DenoisePlan(Plane(24, 40, (True, True)), 16, 0, 4, moving=True, seed=9, outer_shares=(0.2, 0.2))


@dataclass(frozen=True)
class Built:
    case: UNetCase
    pipe: DiffusionPipeline
    folder: Path
    net: Path


@pytest.fixture(scope="module", params=ADD_ON_CASES, ids=lambda case: case.name)
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Built:
    folder = tmp_path_factory.mktemp("models")
    pipe = request.param.build(folder / "tiny")
    return Built(request.param, pipe, folder / "tiny", tiny_control_net(folder / "net", pipe))


def ask_controlled(built: Built, start: float, end: float, picture: torch.Tensor = PICTURE) -> torch.Tensor:
    net = ControlNetModel.from_pretrained(built.net)
    if "xl" in built.case.name:
        pipe = StableDiffusionXLControlNetPipeline(**built.pipe.components, controlnet=net)
    else:
        pipe = StableDiffusionControlNetPipeline(
            **built.pipe.components, controlnet=net, requires_safety_checker=False
        )
    return ask(
        pipe, initial_noise(SEED, *NOISE), GUIDED, image=to_pil(picture), height=64, width=64,
        controlnet_conditioning_scale=0.8, control_guidance_start=start, control_guidance_end=end,
    )  # fmt: skip


@pytest.mark.parametrize(("start", "end"), [(0.0, 1.0), (0.25, 0.8), (0.6, 0.7)])
def test_one_tile_equals_diffusers_own_pipeline(built: Built, start: float, end: float) -> None:
    """With a picture of any size, which is brought to the canvas' own."""
    theirs = ask_controlled(built, start, end)
    model = load_model(str(built.folder), "cpu")
    control = Control(built.net, PICTURE, 0.8, start, end)
    ours, bare = (
        generate_one_tile(model.prepare(Conditions(PROMPT, *GUIDED, control=each)))
        for each in (control, None)
    )
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)
    no_step_lies_within = end == 0.7
    assert ((ours - bare).abs().max() < 1e-4) == no_step_lies_within


def test_a_window_takes_all_predictions_of_a_timestep_or_none(built: Built, tmp_path: Path) -> None:
    """Heun's solver predicts twice at each timestep but the first; diffusers counts predictions."""
    pipe = type(built.pipe)(**built.pipe.components | {"scheduler": HeunDiscreteScheduler(**SCHEDULE)})
    pipe.save_pretrained(tmp_path / "tiny")
    model = load_model(str(tmp_path / "tiny"), "cpu")

    def control(start: float, end: float) -> Conditions:
        return Conditions(PROMPT, *GUIDED, control=Control(built.net, PICTURE, 0.8, start, end))

    with pytest.raises(
        UnsupportedConditionError, match=r"0\.5 to 0\.8 divides .* allowed, .*: 0\.4285 to 0\.7143"
    ):
        generate_one_tile(model.prepare(control(0.5, 0.8)))
    theirs = ask_controlled(Built(built.case, pipe, built.folder, built.net), 0.4285, 0.7143)
    # Unscaled noise of an exploding latent reaches 60, and its last digits with it.
    torch.testing.assert_close(
        generate_one_tile(model.prepare(control(0.4285, 0.7143))), theirs, rtol=1e-5, atol=1e-4
    )


def test_the_picture_lies_over_what_is_shown_and_its_edge_goes_on_beyond(built: Built) -> None:
    """As if diffusers' pipeline, which knows no such canvas, were given a picture that was padded by hand."""
    shown = PICTURE[:, :, :58]
    padded = torch.cat([shown, shown[:, :, -1:].expand(-1, -1, 6)], dim=2)
    padded = torch.cat([padded, padded[:, -1:].expand(-1, 14, -1)], dim=1)
    model = load_model(str(built.folder), "cpu")
    control = Control(built.net, shown, 0.8)
    theirs = ask_controlled(built, 0.0, 1.0, padded)
    ours = generate_one_tile(
        model.prepare(Conditions(PROMPT, *GUIDED, control=control)), shown=(50 / 64, 58 / 64)
    )
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)


def test_each_tile_follows_its_own_crop(built: Built) -> None:
    """Also where it runs over the edge of a torus: on a turned canvas it sees the turned picture."""
    control = Control(built.net, PICTURE, 0.8)
    lay = ControlNets(built.pipe).open(control)
    guide = lay(StagePlan(TORUS, 4))
    assert guide is not None
    assert guide.picture.shape == (3, 96, 160)
    turned = replace(guide, picture=guide.picture.roll((-80, -120), (1, 2)))
    crops, states = (
        initial_noise(1, *NOISE)[None],
        torch.randn(1, 16, built.pipe.unet.config.cross_attention_dim),
    )
    told = {"text_embeds": torch.zeros(1, 32), "time_ids": torch.zeros(1, 6)}

    def steer(guide: Guide, tile: Rectangle) -> torch.Tensor:
        with torch.inference_mode():
            return guide.steer(crops, states, told, Batch(crops, torch.tensor([500]), (Query(tile),)))[1]

    assert torch.equal(steer(guide, Rectangle(20, 30, 16, 16)), steer(turned, Rectangle(0, 0, 16, 16)))
    assert not torch.allclose(
        steer(guide, Rectangle(20, 30, 16, 16)), steer(guide, Rectangle(0, 0, 16, 16)), atol=1e-3
    )


def test_many_tiles_do_not_depend_on_how_many_are_sung_at_once(built: Built) -> None:
    model = load_model(str(built.folder), "cpu")
    prepared = model.prepare(Conditions(PROMPT, *GUIDED, control=Control(built.net, PICTURE)))
    assert (make_picture(prepared, 1).int() - make_picture(prepared, 3).int()).abs().max() <= 1


def test_a_folder_of_another_kind_or_for_another_model_is_refused(built: Built, tmp_path: Path) -> None:
    model = load_model(str(built.folder), "cpu")
    with pytest.raises(ModelFolderError, match="cannot be loaded as a ControlNet"):
        model.prepare(Conditions(PROMPT, control=Control(tmp_path, PICTURE)))
    other = ControlNetModel.from_pretrained(built.net).config | {"cross_attention_dim": 16}
    ControlNetModel.from_config(other).save_pretrained(tmp_path / "other")
    with pytest.raises(ModelFolderError, match="is for another model: its cross_attention_dim is 16, this"):
        model.prepare(Conditions(PROMPT, control=Control(tmp_path / "other", PICTURE)))
