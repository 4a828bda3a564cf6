from pathlib import Path

import torch

from tests.tiny_models import tiny_stable_diffusion
from worker.adapters.compilation import compile_blocks, find_denoiser


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
