import logging
from concurrent.futures import ProcessPoolExecutor
from io import StringIO
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import nn
from torch._inductor.codecache import FxGraphCache

from api_schemas.folder_settings import FolderSettings
from api_schemas.generation import ResolvedRequest
from tests.tiny_models import shallow_unet, tiny_stable_diffusion
from worker.adapters.acceleration import (
    compile_blocks,
    find_denoiser,
    put_channels_last,
    put_parts_channels_last,
)
from worker.adapters.families.stable_diffusion import load
from worker.adapters.family_model import FamilyModel
from worker.adapters.model import Conditions
from worker.adapters.settings import read_settings
from worker.engine.plan import GenerationPlan
from worker.planner import plan_generation


def load_tiny(folder: Path, settings: str) -> FamilyModel:
    tiny_stable_diffusion(folder)
    (folder / "chorale.json").write_text(settings)
    return FamilyModel(load(folder, torch.device("cpu")), read_settings(folder), "tiny")


def plan_picture(model: FamilyModel, width_px: int, height_px: int) -> GenerationPlan:
    request = ResolvedRequest(
        model="tiny",
        width_px=width_px,
        height_px=height_px,
        steps=2,
        guidance_scale=1,
        seed=0,
        layout="cascade",
    )
    return plan_generation(request, model.card, 1 << 30, Path())


def test_compiled_blocks_say_the_same_at_every_batch_size(tmp_path: Path) -> None:
    unet = find_denoiser(tiny_stable_diffusion(tmp_path / "tiny"))
    inputs = [
        (torch.randn(batch, 4, 16, 16), torch.tensor(7), torch.randn(batch, 5, 32)) for batch in (2, 3, 4, 1)
    ]
    with torch.inference_mode():
        before = [unet(*each).sample for each in inputs]
        # Eight residual and four transformer blocks; nothing of the text encoder.
        assert compile_blocks(unet, backend="eager") == 12
        after = [unet(*each).sample for each in inputs]
    for plain, compiled in zip(before, after, strict=True):
        torch.testing.assert_close(plain, compiled)


def test_a_folder_that_asks_for_compiled_blocks_gets_them_and_takes_no_loras(tmp_path: Path) -> None:
    tiny_stable_diffusion(tmp_path / "tiny")
    (tmp_path / "tiny" / "chorale.json").write_text('{"compile": true}')
    family = load(tmp_path / "tiny", torch.device("cpu"))
    model = FamilyModel(family, read_settings(tmp_path / "tiny"), "tiny")
    blocks = [part for part in family.pipe.unet.modules() if isinstance(part, ResnetBlock2D)]
    assert blocks
    assert all(block._compiled_call_impl is not None for block in blocks)
    assert model.card.supports == ["controlnet"]


def test_a_block_is_compiled_once_for_batches_of_any_size() -> None:
    """In a process of its own: code that other tests have run may be passed over by the compiler."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        counts = pool.submit(_count_graphs).result()
    assert counts[0] == counts[1] == counts[2] > 0


def _count_graphs() -> list[int]:
    unet = shallow_unet()
    put_channels_last(unet)  # as on GPUs; else a batch of 1 has another stride
    compile_blocks(unet, backend="eager")
    counts: list[int] = []
    with torch.inference_mode():
        for batch in (2, 3, 1):
            unet(torch.randn(batch, 4, 16, 16), torch.tensor(7), torch.randn(batch, 5, 32))
            counts.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    return counts


def test_a_damaged_cache_of_the_compiler_is_told_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    compile_blocks(nn.Module())
    entries = Path(FxGraphCache._get_tmp_dir_for_key("key"))
    entries.mkdir(parents=True)
    for name in "abc":
        (entries / name).write_bytes(b"\xff" * 64)
    log, lines = logging.getLogger("torch._inductor.codecache"), StringIO()
    log.addHandler(handler := logging.StreamHandler(lines))
    assert list(FxGraphCache.iterate_over_candidates(local=True, remote_cache=None, key="key")) == []
    log.removeHandler(handler)
    assert lines.getvalue().count("\n") == 1
    assert "the compiler's cache (TORCHINDUCTOR_CACHE_DIR) is damaged" in lines.getvalue()


def test_a_job_says_so_before_it_compiles_for_tiles_of_a_new_shape(tmp_path: Path) -> None:
    model = load_tiny(tmp_path / "compiled", '{"compile": true}')
    square, wide = plan_picture(model, 512, 512), plan_picture(model, 448, 320)
    assert len(model.find_new_shapes(square)) == 1
    prepared = model.prepare(Conditions(""))
    for stage in square.stages:
        prepared.make_replica(stage)
    assert model.find_new_shapes(square) == []
    (warning,) = model.find_new_shapes(wide)  # its first stage is one tile of its own shape
    height, width = (side * model.card.vae_scale for side in wide.stages[0].denoise.tile_shape)
    assert height < width
    assert warning.startswith(f"tiles of {width}x{height} px are new to this worker")


def test_a_model_that_is_not_compiled_knows_every_shape(tmp_path: Path) -> None:
    model = load_tiny(tmp_path / "plain", "{}")
    assert model.find_new_shapes(plan_picture(model, 448, 320)) == []


def test_the_layout_changes_nothing_of_what_is_said() -> None:
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(32, 64),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=32,
        use_linear_projection=True,
    )
    inputs = torch.randn(2, 4, 16, 16), torch.tensor(7), torch.randn(2, 5, 32)
    with torch.inference_mode():
        before = unet(*inputs).sample
        put_channels_last(unet)
        after = unet(*inputs).sample
    assert after.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(before, after, atol=1e-5, rtol=1e-5)


def test_denoiser_and_autoencoder_are_laid_out_and_what_is_made_for_video_is_not(tmp_path: Path) -> None:
    pipe = tiny_stable_diffusion(tmp_path / "tiny")
    put_parts_channels_last(pipe, denoiser=True)
    for kernel in (pipe.unet.conv_in.weight, pipe.vae.decoder.conv_in.weight):
        assert kernel.is_contiguous(memory_format=torch.channels_last)
        assert not kernel.is_contiguous()
    film = nn.Module()
    film.weight = nn.Parameter(torch.zeros(2, 2, 1, 3, 3))
    film.plane = nn.Parameter(torch.zeros(2, 2, 3, 3))
    pipe.register_modules(vae=film)
    put_parts_channels_last(pipe, denoiser=True)
    assert film.plane.is_contiguous()


def test_on_a_cpu_the_decoder_alone_is_laid_out(tmp_path: Path) -> None:
    tiny_stable_diffusion(tmp_path / "tiny")
    family = load(tmp_path / "tiny", torch.device("cpu"))
    FamilyModel(family, FolderSettings(), "tiny")
    assert all(each.is_contiguous() for each in family.pipe.unet.parameters())
    assert not family.pipe.vae.decoder.conv_in.weight.is_contiguous()
