"""ControlNets of FLUX.1, against diffusers' own pipeline."""

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers.models.controlnets.controlnet_flux import FluxControlNetModel
from diffusers.pipelines.flux.pipeline_flux import FluxPipeline
from diffusers.pipelines.flux.pipeline_flux_controlnet import FluxControlNetPipeline
from PIL import Image
from torch import Tensor, nn

from tests.tiny_transformers import tiny_flux
from tests.worker.adapters.families.transformers import PROMPT, STEPS
from tests.worker.engine.known_answer import begin, finish
from worker.adapters.add_ons import Control
from worker.adapters.errors import ModelFolderError
from worker.adapters.model import Conditions, LoadedModel
from worker.adapters.registry import load_model
from worker.engine.canvas import Plane
from worker.engine.denoise import denoise
from worker.engine.noise import initial_noise
from worker.engine.plan import DenoisePlan, StagePlan

NOISE = (4, 16, 12)
PICTURE = np.random.default_rng(4).integers(0, 256, (50, 40, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "flux"
    save_sure(tiny_flux(folder), folder)
    return folder


@pytest.fixture(scope="module")
def network(folder: Path) -> Path:
    """Has an effect from the start, unlike one that is yet to be trained."""
    pipe = FluxPipeline.from_pretrained(str(folder))
    return save_flux_control_net(pipe, folder.with_name("control"))


@pytest.fixture(scope="module")
def model(folder: Path) -> LoadedModel:
    return load_model(str(folder), "cpu")


def save_sure(pipe: FluxPipeline, folder: Path) -> FluxPipeline:
    """With an encoder that is sure of itself, so that the latent that diffusers draws is the mean."""
    unsure = pipe.vae.encoder.conv_out
    unsure.weight.data[4:] = 0
    unsure.bias.data[4:] = -60
    pipe.save_pretrained(folder)
    return pipe


def save_flux_control_net(pipe: FluxPipeline, folder: Path, **changes: object) -> Path:
    torch.manual_seed(5)
    config = dict(pipe.transformer.config) | {"num_layers": 1, "num_single_layers": 1} | changes
    network = FluxControlNetModel.from_config(config)
    connecting = (network.controlnet_blocks, network.controlnet_single_blocks, network.controlnet_x_embedder)
    for layer in (each for part in connecting for each in part.modules() if isinstance(each, nn.Linear)):
        nn.init.normal_(layer.weight, std=0.3)
    network.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(("strength", "start", "end"), [(1.0, 0.0, 1.0), (0.7, 0.25, 0.75)])
def test_one_tile_equals_diffusers_own_pipeline(
    folder: Path, network: Path, model: LoadedModel, strength: float, start: float, end: float
) -> None:
    parts = FluxPipeline.from_pretrained(str(folder)).components
    pipe = FluxControlNetPipeline(**parts, controlnet=FluxControlNetModel.from_pretrained(str(network)))
    noise = initial_noise(9, *NOISE)
    packed = pipe(
        PROMPT, control_image=Image.fromarray(PICTURE), controlnet_conditioning_scale=strength,
        control_guidance_start=start, control_guidance_end=end,
        latents=pipe._pack_latents(noise[None], 1, *NOISE), num_inference_steps=STEPS, guidance_scale=3.5,
        height=32, width=24, output_type="latent", generator=torch.Generator().manual_seed(1),
    ).images  # fmt: skip
    theirs = pipe._unpack_latents(packed, *NOISE[1:], 1)[0]
    ours = make_picture(model, Control(network, _picture(), strength, start, end))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)
    assert (ours - make_picture(model, None)).abs().max() > 1e-2


def test_the_picture_lies_over_what_is_shown_and_its_edge_goes_on_beyond(
    network: Path, model: LoadedModel
) -> None:
    """On 32 x 24 px of which 29 x 21 are shown: the latent is that of a picture padded by hand."""
    shown = _picture()[:, :29, :21]
    padded = torch.cat([shown, shown[:, :, -1:].expand(-1, -1, 3)], dim=2)
    padded = torch.cat([padded, padded[:, -1:].expand(-1, 3, -1)], dim=1)
    cropped = make_picture(model, Control(network, shown), shown=(29 / 32, 21 / 24))
    assert torch.equal(cropped, make_picture(model, Control(network, padded)))
    assert (cropped - make_picture(model, Control(network, shown))).abs().max() > 1e-2


def test_each_tile_follows_its_own_crop(network: Path, model: LoadedModel) -> None:
    """What is changed in one corner of the picture does not change a tile that is far from it."""
    changed = _picture()
    changed[:, :6, :6] = 255
    plan = DenoisePlan(Plane(32, 24), 8, 0, 0, moving=False, seed=9)
    plain, other = (make_picture(model, Control(network, each), plan) for each in (_picture(), changed))
    difference = (plain - other).abs()
    assert difference[:, :8, :8].max() > 1e-2
    assert difference[:, 16:, 16:].max() < 0.1 * difference[:, :8, :8].max()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"joint_attention_dim": 48}, "for another model: its joint_attention_dim is 48, this model's is 32"),
        ({"num_mode": 3}, "has num_mode 3; allowed: a ControlNet of one mode"),
    ],
)
def test_a_network_for_another_model_is_refused(
    folder: Path, model: LoadedModel, tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    other = save_flux_control_net(FluxPipeline.from_pretrained(str(folder)), tmp_path / "other", **changes)
    with pytest.raises(ModelFolderError, match=message):
        make_picture(model, Control(other, _picture()))


def make_picture(
    model: LoadedModel,
    control: Control | None,
    plan: DenoisePlan | None = None,
    shown: tuple[float, float] = (1.0, 1.0),
) -> Tensor:
    """The latent, of one tile if no plan says otherwise."""
    plan = plan or DenoisePlan(Plane(*NOISE[1:]), 16, 0, 0, moving=False, seed=9)
    prepared = model.prepare(Conditions(PROMPT, guidance_scale=3.5, control=control))
    ensemble, scheduler = begin(prepared, StagePlan(plan, STEPS, shown=shown))
    latent = initial_noise(9, NOISE[0], *plan.canvas.size)
    return finish(denoise(latent, plan, ensemble, scheduler, torch.Generator()))


def _picture() -> Tensor:
    return torch.from_numpy(PICTURE.copy()).permute(2, 0, 1)
