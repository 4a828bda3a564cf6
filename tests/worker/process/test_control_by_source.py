"""A ControlNet that is given the source of its job, against diffusers' image-to-image pipelines with one."""

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers.models.controlnets.controlnet import ControlNetModel
from diffusers.models.controlnets.controlnet_flux import FluxControlNetModel
from diffusers.pipelines.controlnet.pipeline_controlnet_img2img import (
    StableDiffusionControlNetImg2ImgPipeline,
)
from diffusers.pipelines.controlnet.pipeline_controlnet_sd_xl_img2img import (
    StableDiffusionXLControlNetImg2ImgPipeline,
)
from diffusers.pipelines.flux.pipeline_flux import FluxPipeline
from diffusers.pipelines.flux.pipeline_flux_controlnet_image_to_image import (
    FluxControlNetImg2ImgPipeline,
)
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from PIL import Image
from torch import Tensor

from api_schemas.add_ons import ControlSettings
from api_schemas.allow_list import AllowedModel, AllowList
from api_schemas.generation import GenerationRequest, SentPicture
from service.jobs.admission import resolve
from tests.tiny_add_ons import tiny_control_net
from tests.tiny_transformers import tiny_flux
from tests.worker.adapters.extras.test_flux_control_net import save_flux_control_net, save_sure
from tests.worker.adapters.families.test_from_picture import Drawing
from tests.worker.adapters.families.unets import ADD_ON_CASES, NOISE, PROMPT, SEED, STEPS
from tests.worker.adapters.test_inpainting import be_sure
from worker.adapters.errors import DamagedModelError
from worker.adapters.extras.control_net import ControlNets
from worker.adapters.model import LoadedModel
from worker.adapters.registry import load_found
from worker.adapters.source import FoundModel
from worker.engine.denoise import Checkpoint, Step
from worker.engine.generate import FinalState, Progress
from worker.engine.noise import initial_noise
from worker.engine.ranks import SingleRank
from worker.engine.warned import Warned
from worker.planner import plan_generation
from worker.process.generation import complete_plan, generate_job, prepare_source, read_conditions
from worker.process.protocol import Generate

NEGATIVE, SCALE, SIDE = "moss", 0.8, 64
CONTROL = {"name": "tile", "scale": SCALE}
_BLOCKS = np.random.default_rng(1).integers(0, 256, (8, 8, 3), np.uint8)
PIXELS = np.asarray(Image.fromarray(_BLOCKS).resize((SIDE, SIDE), Image.Resampling.BICUBIC))


@dataclass(frozen=True)
class Built:
    pipe: DiffusionPipeline
    net: Path
    model: LoadedModel
    is_xl: bool


@pytest.fixture(scope="module", params=ADD_ON_CASES, ids=lambda case: case.name)
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Built:
    """A model on whose allow-list a ControlNet for tiles is."""
    folder = tmp_path_factory.mktemp("models")
    pipe = request.param.build(folder / "tiny")
    be_sure(pipe.vae)
    pipe.save_pretrained(folder / "tiny")
    net = tiny_control_net(folder / "net", pipe)
    model = load_listed(folder / "tiny", net, request.param.name)
    return Built(pipe, net, model, "xl" in request.param.name)


def load_listed(folder: Path, net: Path, base: str) -> LoadedModel:
    files = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in net.iterdir()}
    entry = AllowedModel(kind="controlnet", path=net, base=base, control="tile", files=files)
    found = FoundModel(str(folder), None, None, AllowList(models={"tile": entry}))
    return load_found(found, torch.device("cpu"))


def ask(model: LoadedModel, folder: Path, **asked: object) -> Generate:
    side = SIDE * int(str(asked.get("upscale", 1)))
    begun = {"prompt": PROMPT, "negative_prompt": NEGATIVE, "guidance_scale": 5.0, "seed": SEED, "source": {}}
    request = GenerationRequest.model_validate(begun | {"width_px": side, "height_px": side} | asked)
    sent = SentPicture(sha256="", width_px=SIDE, height_px=SIDE)
    resolved = resolve(request, model.card).request.model_copy(update={"pictures": {"source_image": sent}})
    source = folder / "source_image.png"
    Image.fromarray(PIXELS).save(source)
    return Generate(resolved, folder, None, {"source_image": source})


def run(model: LoadedModel, job: Generate, resume: Checkpoint | None = None) -> list[Progress]:
    source = prepare_source(job, model.card)
    plan = complete_plan(plan_generation(job.request, model.card, 1 << 30, job.folder), job, source)
    return list(generate_job(model, job, plan, resume, SingleRank(), source))


def find_latent(events: list[Progress]) -> Tensor:
    (latent,) = (event.latent for event in events if isinstance(event, FinalState))
    return latent


def ask_diffusers(built: Built, strength: float, start: float) -> Tensor:
    parts = built.pipe.components | {"controlnet": ControlNetModel.from_pretrained(built.net)}
    if built.is_xl:
        pipe = StableDiffusionXLControlNetImg2ImgPipeline(**parts, add_watermarker=False)
    else:
        pipe = StableDiffusionControlNetImg2ImgPipeline(**parts, requires_safety_checker=False)
    image = Image.fromarray(PIXELS)
    with Drawing(initial_noise(SEED, *NOISE)):
        return pipe(
            PROMPT, negative_prompt=NEGATIVE, image=image, control_image=image, guidance_scale=5.0, height=SIDE,
            width=SIDE, strength=strength, num_inference_steps=STEPS, controlnet_conditioning_scale=SCALE,
            control_guidance_start=start, output_type="latent",
        ).images[0]  # fmt: skip


@pytest.mark.parametrize(("strength", "start"), [(0.5, 0.0), (0.75, 0.3)])
def test_a_source_of_one_tile_equals_diffusers_own_pipeline(
    built: Built, strength: float, start: float, tmp_path: Path
) -> None:
    """A window counts the steps that are run."""
    asked = {"strength": strength, "steps": STEPS, "control": CONTROL | {"start": start}}
    ours = find_latent(run(built.model, ask(built.model, tmp_path, **asked)))
    torch.testing.assert_close(ours, ask_diffusers(built, strength, start), rtol=0, atol=1e-4)
    bare = find_latent(run(built.model, ask(built.model, tmp_path, **asked | {"control": None})))
    assert (ours - bare).abs().max() > 0.01


@pytest.mark.parametrize(("strength", "start"), [(0.5, 0.0), (0.75, 0.3)])
def test_flux_too_equals_diffusers_own_pipeline(strength: float, start: float, tmp_path: Path) -> None:
    pipe = save_sure(tiny_flux(tmp_path / "tiny"), tmp_path / "tiny")
    net = save_flux_control_net(pipe, tmp_path / "net")
    model = load_listed(tmp_path / "tiny", net, "flux")
    told = {"negative_prompt": "", "guidance_scale": 3.5}
    asked = told | {"strength": strength, "steps": STEPS, "control": CONTROL | {"start": start}}
    ours = find_latent(run(model, ask(model, tmp_path, **asked)))
    theirs = ask_diffusers_of_flux(pipe, net, strength, start)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)
    bare = find_latent(run(model, ask(model, tmp_path, **asked | {"control": None})))
    assert (ours - bare).abs().max() > 0.01


def ask_diffusers_of_flux(pipe: FluxPipeline, net: Path, strength: float, start: float) -> Tensor:
    parts = {name: part for name, part in pipe.components.items() if part is not None}
    theirs = FluxControlNetImg2ImgPipeline(**parts, controlnet=FluxControlNetModel.from_pretrained(str(net)))
    image, shape = Image.fromarray(PIXELS), (4, *[SIDE // pipe.vae_scale_factor] * 2)
    with Drawing(initial_noise(SEED, *shape)):
        packed = theirs(
            PROMPT, image=image, control_image=image, guidance_scale=3.5, height=SIDE, width=SIDE, strength=strength,
            num_inference_steps=STEPS, controlnet_conditioning_scale=SCALE, control_guidance_start=start,
            output_type="latent",
        ).images  # fmt: skip
    return theirs._unpack_latents(packed, SIDE, SIDE, pipe.vae_scale_factor)[0]


def test_what_is_enlarged_is_enlarged_with_the_net_for_tiles(built: Built, tmp_path: Path) -> None:
    """In two stages; killed between them and resumed, to the same bytes."""
    few = {"steps": 1, "guidance_scale": 1.0, "negative_prompt": "", "advanced": {"num_modules": 16}}
    job = ask(built.model, tmp_path, upscale=4, **few)
    assert job.request.control == ControlSettings(name="tile")
    events = run(built.model, job)
    first, _ = (event.checkpoint for event in events if isinstance(event, Step))
    assert torch.equal(find_latent(run(built.model, job, first)), find_latent(events))


def test_one_that_was_not_named_and_is_gone_is_left_out_and_told(built: Built, tmp_path: Path) -> None:
    few = {"steps": 1, "guidance_scale": 1.0, "negative_prompt": ""}
    job = ask(built.model, tmp_path, upscale=2, **few)
    bare = job.request.model_copy(update={"control": None, "control_reason": ""})
    named = ask(built.model, tmp_path, upscale=2, control={"name": "tile"}, **few)
    gone = built.net.rename(built.net.with_name("gone"))
    try:
        events = run(built.model, job)
        with pytest.raises(DamagedModelError, match=r"^tile: .* is missing"):
            run(built.model, named)
    finally:
        gone.rename(built.net)
    (warned,) = (event for event in events if isinstance(event, Warned))
    assert warned.code == "control_left_out"
    assert warned.message.startswith("made without ControlNet tile, what `upscale` takes by itself")
    assert torch.equal(find_latent(events), find_latent(run(built.model, replace(job, request=bare))))


@pytest.mark.parametrize("bit_depth", [8, 16])
def test_each_tile_sees_its_crop_of_the_enlarged_source(built: Built, bit_depth: int, tmp_path: Path) -> None:
    """As Pillow enlarges it: next to another tile's crop, it differs by less than two levels."""
    job = ask(built.model, tmp_path, upscale=4, steps=1, bit_depth=bit_depth)
    source = prepare_source(job, built.model.card)
    plan = plan_generation(job.request, built.model.card, 1 << 30, tmp_path)
    assert len(plan.stages) == 2
    begin = ControlNets(built.pipe).open(read_conditions(built.model, job, source).control)
    for stage in plan.stages:
        shown, side = begin(stage), stage.canvas.height * 4
        assert shown is not None
        assert (shown.image.dtype, shown.image.shape) == (torch.uint8, (3, side, side))
        enlarged = Image.fromarray(PIXELS).resize((side, side), Image.Resampling.BICUBIC)
        wanted = torch.tensor(np.asarray(enlarged)).permute(2, 0, 1)
        tiles = stage.denoise.tiles_at(0, 1)
        crops = [shown.canvas.gather(shown.image, tile.scaled(4)) for tile in tiles]
        own = [tile.scaled(4).slice(wanted) for tile in tiles]
        assert max(_differ(crop, part) for crop, part in zip(crops, own, strict=True)) < 2
        assert _differ(crops[0], own[-1]) > 20


def _differ(one: Tensor, other: Tensor) -> float:
    return float((one.float() - other.float()).abs().mean())
