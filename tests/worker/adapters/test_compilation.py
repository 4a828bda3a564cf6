from pathlib import Path

import torch
from diffusers.models.resnet import ResnetBlock2D

from tests.tiny_models import tiny_stable_diffusion
from worker.adapters.compilation import compile_blocks, find_denoiser
from worker.adapters.family import FamilyModel
from worker.adapters.settings import read_settings
from worker.adapters.stable_diffusion import load


def test_compiled_blocks_say_the_same_at_every_batch_size(tmp_path: Path) -> None:
    unet = find_denoiser(tiny_stable_diffusion(tmp_path / "tiny"))
    inputs = [
        (torch.randn(batch, 4, 16, 16), torch.tensor(7), torch.randn(batch, 5, 32)) for batch in (2, 3, 4)
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


def test_a_block_is_compiled_once_for_batches_of_any_size(tmp_path: Path) -> None:
    unet = find_denoiser(tiny_stable_diffusion(tmp_path / "tiny"))
    torch.compiler.reset()
    compile_blocks(unet, backend="eager")
    counts: list[int] = []
    with torch.inference_mode():
        for batch in (2, 3, 7):
            unet(torch.randn(batch, 4, 16, 16), torch.tensor(7), torch.randn(batch, 5, 32))
            counts.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    assert counts[0] == counts[1] == counts[2] > 0
