"""What is said to be cut is what the pipeline cuts, for every family."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.tiny_models import tiny_stable_diffusion, tiny_stable_diffusion_xl
from tests.tiny_transformers import tiny_stable_diffusion_3
from tests.worker.adapters.families.transformers import CASES
from worker.adapters.families import stable_diffusion, stable_diffusion_3, stable_diffusion_xl
from worker.adapters.family import Family
from worker.adapters.model import Conditions, Prompt
from worker.adapters.prompt_length import find_cut_prompts
from worker.engine.canvas import Plane
from worker.engine.plan import DenoisePlan, StagePlan

FAMILIES = [
    pytest.param(stable_diffusion.load, tiny_stable_diffusion, id="stable-diffusion"),
    pytest.param(stable_diffusion_xl.load, tiny_stable_diffusion_xl, id="stable-diffusion-xl"),
    *(pytest.param(case.load, case.build, id=case.name) for case in CASES),
]


@pytest.mark.parametrize(("load", "build"), FAMILIES)
def test_what_is_said_to_be_cut_is_not_read(
    load: Callable[[Path, torch.device], Family], build: Callable[[Path], object], tmp_path: Path
) -> None:
    """The shortest prompt that is said to be cut: its last word changes nothing; one word less, and it does."""
    build(tmp_path / "tiny")
    family = load(tmp_path / "tiny", torch.device("cpu"))
    longest = next(count for count in range(1, 1200) if _is_cut(family, "a " * count + "b"))
    cut, whole = "a " * longest, "a " * (longest - 1)
    assert torch.equal(_encode(family, cut + "b"), _encode(family, cut + "c"))
    assert not torch.equal(_encode(family, whole + "b"), _encode(family, whole + "c"))
    told = Conditions("a", regions=(Prompt("a"), Prompt(cut + "b", cut + "b")))
    fields = [message.partition(" ")[0] for message in find_cut_prompts(family.pipe, told)]
    assert fields == ["regions.1.prompt", "regions.1.negative_prompt"]


def _is_cut(family: Family, prompt: str) -> bool:
    return bool(list(find_cut_prompts(family.pipe, Conditions(prompt))))


@torch.inference_mode()
def _encode(family: Family, prompt: str) -> Tensor:
    plan = DenoisePlan(Plane(16, 16), 16, 0, 0, moving=False, seed=9)
    replica = family.encode(Conditions(prompt, guidance_scale=1.0))(StagePlan(plan, 2))
    texts: Sequence[Tensor] = next(
        getattr(replica, name) for name in ("states", "texts") if hasattr(replica, name)
    )
    return torch.cat([each.flatten() for each in texts])


def test_a_tokenizer_that_states_no_limit_or_too_high_a_one_has_its_text_encoders(tmp_path: Path) -> None:
    for build, load in (
        (tiny_stable_diffusion_xl, stable_diffusion_xl.load),
        (tiny_stable_diffusion_3, stable_diffusion_3.load),
    ):
        folder = tmp_path / build.__name__
        build(folder)
        for part, limit in (("tokenizer", None), ("tokenizer_2", 512)):
            path = folder / part / "tokenizer_config.json"
            path.write_text(json.dumps(json.loads(path.read_text()) | {"model_max_length": limit}))
        pipe = load(folder, torch.device("cpu")).pipe
        assert (pipe.tokenizer.model_max_length, pipe.tokenizer_2.model_max_length) == (16, 16)
        pipe.encode_prompt(*["a " * 99] * (3 if "tokenizer_3" in pipe.components else 2), device=pipe.device)
