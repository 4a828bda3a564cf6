"""Stages that see the stage before: as a plain loop of diffusers makes them, in tiles, on ranks, resumed, refused."""

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional

from api_schemas.folder_settings import Offload
from tests.tiny_add_ons import tiny_control_net, tiny_ip_adapter, tiny_lora
from tests.tiny_upscaler import CASCADE, tiny_upscaling_model
from tests.worker.engine.test_cascade import canvas, checkpoint_after, picture
from tests.worker.engine.thread_group import thread_groups
from worker.adapters.add_ons import Control, IpAdapter, Lora
from worker.adapters.families.stable_diffusion import load
from worker.adapters.footprint import weigh
from worker.adapters.model import Conditions, LoadedModel
from worker.adapters.placement import place
from worker.adapters.registry import load_model
from worker.engine.attention import AttentionPlan
from worker.engine.canvas import Plane
from worker.engine.denoise import Step
from worker.engine.ensemble import Batch, Query
from worker.engine.generate import FinalState, generate
from worker.engine.noise import initial_noise
from worker.engine.plan import DecodePlan, DenoisePlan, GenerationPlan, StagePlan
from worker.engine.start import GivenLatent, GivenPixels, LowBandPlan, Upscale

WEIGHTS = "latent_upscaler/diffusion_pytorch_model.safetensors"
SEED, PROMPT = 9, Conditions("brick wall")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_upscaling_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def model(whole: Path) -> LoadedModel:
    return load_model(str(whole), "cpu")


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "tiny"))


def lay(side: int, tile: int, *, wrap: bool = False, moving: bool = True) -> DenoisePlan:
    return DenoisePlan(Plane(side, side, (wrap, wrap)), tile, 0, 4, moving, SEED, (0.0, 0.2))


def two_stages(
    side: int, tile: int, *, wrap: bool = False, augmentation: float = 0.1, weight: float = 0.0
) -> GenerationPlan:
    first, second = lay(16, 16, wrap=wrap, moving=tile < side), lay(side, tile, wrap=wrap, moving=tile < side)
    start = Upscale(augmentation, low_band=LowBandPlan(weight, weight, cutoff=None) if weight else None)
    return GenerationPlan(SEED, 4, (StagePlan(first, 3), StagePlan(second, 2, start, modules=2)))


def latent_after(
    step: int, plan: GenerationPlan, model: LoadedModel, conditions: Conditions = PROMPT
) -> Tensor:
    return checkpoint_after(step, plan, model.prepare(conditions)).tensors["latent"]


@pytest.mark.parametrize(("side", "weight"), [(32, 0.0), (40, 0.0), (64, 0.0), (32, 0.6), (32, -0.25)])
def test_one_tile_equals_a_plain_loop_of_diffusers(
    whole: Path, model: LoadedModel, side: int, weight: float
) -> None:
    plan = two_stages(side, side, weight=weight)
    small = latent_after(3, plan, model)
    pipe = StableDiffusionPipeline.from_pretrained(str(whole), safety_checker=None)
    upscaler = UNet2DConditionModel.from_pretrained(str(whole / "latent_upscaler"))
    scheduler = DDIMScheduler.from_pretrained(str(whole / "scheduler"))
    scheduler.set_timesteps(2)
    latent = initial_noise(SEED, 4, side, side, stage=1)[None]
    with torch.inference_mode():
        lead = enlarge_by_pillow(pipe.vae, small, side)
        seen = lead + 0.1 * initial_noise(SEED, 4, side, side, stage=-2)
        states, _ = pipe.encode_prompt("brick wall", "cpu", 1, False)
        for timestep in scheduler.timesteps:
            prediction = upscaler(torch.cat([latent, seen[None]], dim=1), timestep, states).sample
            clean = scheduler.step(prediction, timestep, latent).pred_original_sample
            prediction -= weight * (lead - clean) / (1 - scheduler.alphas_cumprod[timestep]).sqrt()
            latent = scheduler.step(prediction, timestep, latent).prev_sample
    torch.testing.assert_close(
        latent_after(5, plan, model), latent[0], rtol=1e-3, atol=5e-3
    )  # a byte may be rounded the other way


def enlarge_by_pillow(vae: AutoencoderKL, small: Tensor, side: int, *, reduced: int = 1) -> Tensor:
    """The latent of what a latent shows, enlarged; beyond its edges the picture goes on as it ends there.

    Args:
        reduced: by how much that picture is reduced before.
    """
    shown = vae.decode(small[None] / vae.config.scaling_factor).sample[0]
    bytes_ = functional.avg_pool2d(shown.add(1).mul(127.5).round().clamp(0, 255), reduced).numpy()
    pixels = resize_by_pillow(bytes_, side / small.shape[-1] * reduced, Image.Resampling.LANCZOS)
    return encode(vae, pixels)


def resize_by_pillow(image: np.ndarray, times: float, kernel: Image.Resampling) -> Tensor:
    """(3, h, w) of 0 to 255, float32, enlarged: in [-1, 1]."""
    margin = 4
    planes = [Image.fromarray(np.pad(each, margin, mode="edge")) for each in image]
    size, cut = round(planes[0].width * times), round(margin * times)
    large = [np.asarray(each.resize((size, size), kernel)) for each in planes]
    pixels = torch.from_numpy(np.stack(large)[:, cut:-cut, cut:-cut]) / 127.5 - 1
    return pixels.clamp(-1, 1)


def encode(vae: AutoencoderKL, pixels: Tensor) -> Tensor:
    return vae.encode(pixels[None]).latent_dist.mode()[0] * vae.config.scaling_factor


def make_final(plan: GenerationPlan, model: LoadedModel) -> Tensor:
    """The latent that the picture is decoded from."""
    events = generate(plan, model.prepare(PROMPT))
    return next(event.latent for event in events if isinstance(event, FinalState))


def test_what_is_made_is_projected_back_to_the_stage_before(whole: Path, model: LoadedModel) -> None:
    """By diffusers and Pillow: Irani & Peleg 1991, once, in latents."""
    plan = two_stages(32, 16)
    made, vae = latent_after(5, plan, model), AutoencoderKL.from_pretrained(str(whole / "vae"))
    with torch.inference_mode():
        wanted = enlarge_by_pillow(vae, latent_after(3, plan, model), 32)
        found = enlarge_by_pillow(vae, made, 32, reduced=2)
    assert (wanted - found).abs().max() > 0.05
    torch.testing.assert_close(make_final(plan, model), made + wanted - found, rtol=1e-3, atol=5e-3)


@pytest.mark.parametrize("held", [1.0, 0.5])
def test_so_is_an_enlarged_picture(whole: Path, model: LoadedModel, held: float) -> None:
    vae, canvas = AutoencoderKL.from_pretrained(str(whole / "vae")), Plane(32, 32)
    scale = model.decoder.scale
    small = np.random.default_rng(SEED).uniform(0, 255, (3, 8 * scale, 8 * scale)).astype(np.float32)
    pixels = resize_by_pillow(small, 4, Image.Resampling.BICUBIC)
    picture_px = canvas.scaled(scale)
    given = GivenPixels(lambda part: picture_px.gather(pixels, part), canvas, Plane(*small.shape[1:]))
    stage = StagePlan(lay(32, 16), 2, Upscale(0.1, given, held=held))
    plan = GenerationPlan(SEED, 4, (stage,), DecodePlan(tile_size=8))
    made = latent_after(2, plan, model)
    with torch.inference_mode():
        shown = vae.decode(made[None] / vae.config.scaling_factor).sample[0]
        reduced = functional.avg_pool2d(shown.add(1).mul(127.5).round().clamp(0, 255), 4).numpy()
        missing = encode(vae, pixels) - encode(vae, resize_by_pillow(reduced, 4, Image.Resampling.BICUBIC))
    assert missing.abs().max() > 0.05
    torch.testing.assert_close(make_final(plan, model), made + held * missing, rtol=1e-3, atol=5e-3)


def test_what_was_enlarged_before_is_seen_reduced_and_kept_so(whole: Path, model: LoadedModel) -> None:
    """By diffusers and Pillow: shown is a picture of half its size, and the last stage is held to that."""
    plan, vae = two_stages(32, 16), AutoencoderKL.from_pretrained(str(whole / "vae"))
    before = make_final(plan, model)
    last = StagePlan(lay(64, 16), 2, Upscale(0.1, reduced=(16, 16)))
    plan = replace(plan, stages=(*plan.stages, last))
    made = latent_after(7, plan, model)
    with torch.inference_mode():
        wanted = enlarge_by_pillow(vae, before, 64, reduced=2)
        found = enlarge_by_pillow(vae, made, 64, reduced=4)
    seen = checkpoint_after(6, plan, model.prepare(PROMPT)).tensors["reference"]
    noise = 0.1 * initial_noise(SEED, 4, 64, 64, stage=-3)
    torch.testing.assert_close(seen, wanted + noise, rtol=1e-3, atol=5e-3)
    assert (wanted - found).abs().max() > 0.05
    torch.testing.assert_close(make_final(plan, model), made + wanted - found, rtol=1e-3, atol=1e-2)


def test_a_part_that_is_made_again_is_not(model: LoadedModel) -> None:
    """What stays must keep its bytes."""
    plan = two_stages(32, 16)
    kept = GivenLatent(lambda: initial_noise(SEED, 4, 32, 32))
    plan = replace(plan, stages=(plan.stages[0], replace(plan.stages[1], kept=kept)))
    assert torch.equal(make_final(plan, model), latent_after(5, plan, model))


def test_the_noise_over_the_stage_before_is_not_what_that_was_made_of() -> None:
    planes = [initial_noise(SEED, 4, 16, 16, stage=stage).flatten() for stage in (0, 1, 2, -2, -3)]
    found = torch.corrcoef(torch.stack(planes)) - torch.eye(5)
    assert found.abs().max() < 0.15


@pytest.mark.parametrize(("wrap", "weight"), [(False, 0.0), (True, 0.0), (False, 0.6)])
def test_a_checkpoint_of_any_step_leads_to_the_same_bytes(
    model: LoadedModel, wrap: bool, weight: float
) -> None:
    plan, prepared = two_stages(48, 16, wrap=wrap, weight=weight), model.prepare(PROMPT)
    undisturbed = picture(generate(plan, prepared))
    assert undisturbed.float().std() > 0
    for stop in (2, 3, 4):
        checkpoint = checkpoint_after(stop, plan, prepared)
        assert ("reference" in checkpoint.tensors) is (stop > 3)
        assert torch.equal(picture(generate(plan, prepared, checkpoint)), undisturbed)


def test_bytes_do_not_depend_on_how_tiles_are_shared_out(model: LoadedModel) -> None:
    plan, prepared = two_stages(48, 16), model.prepare(PROMPT)
    alone = picture(generate(plan, prepared))
    with ThreadPoolExecutor(3) as pool:
        together = pool.map(lambda group: picture(generate(plan, prepared, group=group)), thread_groups(3))
        assert all(torch.equal(alone, each) for each in together)


def test_the_stage_before_may_attend(model: LoadedModel) -> None:
    """With the base's layers alone: what follows is the same upscaler's, wherever a job goes on."""
    plan, told = two_stages(48, 16), replace(PROMPT, attention="conductor")
    first = replace(lay(16, 8), attention=AttentionPlan((8, 8), 0.5))
    plan = replace(plan, stages=(replace(plan.stages[0], denoise=first, modules=2), plan.stages[1]))
    off = replace(plan, stages=(replace(plan.stages[0], denoise=lay(16, 8), modules=2), plan.stages[1]))
    assert (latent_after(3, plan, model, told) - latent_after(3, off, model, told)).abs().max() > 1e-4
    whole = latent_after(5, plan, model, told)
    for stop in (2, 3, 4):
        checkpoint = checkpoint_after(stop, plan, model.prepare(told))
        steps = [each for each in generate(plan, model.prepare(told), checkpoint) if isinstance(each, Step)]
        assert torch.equal(steps[-1].checkpoint.tensors["latent"], whole)
    begun = checkpoint_after(3, plan, model.prepare(told))
    unattentive = model.prepare(PROMPT)
    steps = [each for each in generate(off, unattentive, begun) if isinstance(each, Step)]
    assert torch.equal(steps[-1].checkpoint.tensors["latent"], whole)


def test_a_tile_sees_what_lies_under_it_and_nothing_else(model: LoadedModel) -> None:
    """A change of the stage before shows where it is, and no tile further."""
    plan, prepared = two_stages(64, 16), model.prepare(PROMPT)
    plan = replace(plan, stages=(plan.stages[0], replace(plan.stages[1], denoise=lay(64, 16, moving=False))))
    checkpoint = checkpoint_after(4, plan, prepared)
    reference = checkpoint.tensors["reference"].clone()
    reference[:, 2:10, 2:10] += 3
    other = replace(checkpoint, tensors={**checkpoint.tensors, "reference": reference})
    one, changed = (canvas(generate(plan, prepared, each)) for each in (checkpoint, other))
    difference = (one - changed).abs().amax(dim=0)
    assert difference[:8, :8].min() > 0
    assert difference[16:].max() == difference[:, 16:].max() == 0


def ask_with(kind: str, folder: Path, whole: Path) -> Conditions:
    """An add-on or guidance, each of which changes what the UNet says."""
    pipe = StableDiffusionPipeline.from_pretrained(str(whole), safety_checker=None)
    image = torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8)
    match kind:
        case "lora":
            path = tiny_lora(folder, pipe, seed=1)
            tensors = {name: each for name, each in load_file(path).items() if name.startswith("unet")}
            save_file(tensors, path)  # what it makes of the text is for all stages
            return replace(PROMPT, loras=(Lora(path),))
        case "controlnet":
            return replace(PROMPT, control=Control(tiny_control_net(folder, pipe), image))
        case "ip_adapter":
            return replace(PROMPT, ip_adapter=IpAdapter(tiny_ip_adapter(folder, pipe), image))
        case _:
            return replace(PROMPT, guidance_scale=4.0, negative_prompt="moss")


@pytest.mark.parametrize("kind", ["lora", "controlnet", "ip_adapter", "guidance"])
def test_guidance_and_add_ons_are_for_the_first_stage(
    kind: str, whole: Path, model: LoadedModel, tmp_path: Path
) -> None:
    plan, plain = two_stages(32, 16), model.prepare(PROMPT)
    begun = checkpoint_after(4, plan, plain)
    expected = canvas(generate(plan, plain, begun))
    prepared = model.prepare(ask_with(kind, tmp_path, whole))
    assert not torch.equal(canvas(generate(plan, prepared)), expected)
    assert torch.equal(canvas(generate(plan, prepared, begun)), expected)


def test_plain_diffusers_loads_the_folder_and_makes_its_native_picture(
    whole: Path, model: LoadedModel
) -> None:
    pipe = DiffusionPipeline.from_pretrained(str(whole), safety_checker=None)
    assert "latent_upscaler" not in pipe.components
    theirs = pipe(
        "brick wall", latents=initial_noise(SEED, 4, 16, 16)[None], num_inference_steps=3, guidance_scale=1.0,
        output_type="latent",
    ).images[0]  # fmt: skip
    torch.testing.assert_close(latent_after(3, two_stages(32, 16), model), theirs, rtol=1e-4, atol=1e-4)


def test_the_card_says_how_its_stages_are_made(model: LoadedModel) -> None:
    assert model.card.cascade.model_dump() == {"strength": 0.4, "low_band": 1.0, **CASCADE}


def test_both_networks_are_compiled_and_each_has_its_own_shapes(folder: Path) -> None:
    (folder / "chorale.json").write_text(json.dumps({"cascade": CASCADE, "compile": True}))
    model = load_model(str(folder), "cpu")
    prepared, plan = model.prepare(PROMPT), two_stages(32, 16)
    assert len(model.find_new_shapes(plan)) == 1
    prepared.make_replica(plan.stages[0])
    assert len(model.find_new_shapes(plan)) == 1
    prepared.make_replica(plan.stages[1])
    assert model.find_new_shapes(plan) == []


def test_it_is_made_small_with_the_other_network(folder: Path) -> None:
    cuda, plain = torch.device("cuda"), weigh(str(folder), torch.device("cuda"))
    (folder / "chorale.json").write_text(json.dumps({"cascade": CASCADE, "quantization": "float8"}))
    pipe = load(folder, torch.device("cpu")).pipe
    stored = [each.dtype for each in pipe.components["latent_upscaler"].parameters()]
    assert stored.count(torch.float8_e4m3fn) > 20
    assert weigh(str(folder), cuda) < plain
    model = load_model(str(folder), "cpu")
    prepared = model.prepare(PROMPT)
    assert canvas(generate(two_stages(32, 16), prepared)).isfinite().all()


@pytest.mark.parametrize("offload", ["model", "group"])
def test_offloaded_it_says_the_same(whole: Path, model: LoadedModel, offload: Offload) -> None:
    """With main memory in the place of the GPU."""
    cpu, stage = torch.device("cpu"), StagePlan(lay(16, 16, moving=False), 2, Upscale())
    family = load(whole, cpu)
    place(family.pipe, offload, cpu)
    crops = initial_noise(SEED, 4, 16, 16)[None]
    batch = Batch(crops, torch.tensor([500]), (Query(stage.canvas.whole),), enlarged=crops)
    with torch.inference_mode():
        moved, plain = (
            each.predict(batch)
            for each in (family.encode(PROMPT)(stage), model.prepare(PROMPT).make_replica(stage))
        )
    torch.testing.assert_close(moved, plain, rtol=0, atol=1e-5)
