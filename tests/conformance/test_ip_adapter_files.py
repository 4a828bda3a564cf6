"""IP-Adapters that see pictures through CLIP make diffusers' picture, others are refused."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    CLIPVisionModelWithProjection,
)

from tests.conformance.summary import MATRIX
from tests.tiny_add_ons import tiny_ip_adapter
from tests.worker.adapters.families.test_unets import generate_one_tile
from tests.worker.adapters.families.unets import ADD_ON_CASES, NOISE, PROMPT, SEED, UNetCase, ask
from worker.adapters.add_ons import IpAdapter, to_pil
from worker.adapters.errors import ModelFolderError
from worker.adapters.model import Conditions, LoadedModel
from worker.adapters.registry import load_model
from worker.engine.noise import initial_noise

GUIDED = ("", 5.0)
PICTURE = torch.randint(256, (3, 50, 90), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
SEEN, PROJECTED, HEAD = 16, 16, 64
Tensors = dict[str, Tensor]


def draw(**shapes: tuple[int, ...]) -> Tensors:
    generator = torch.Generator().manual_seed(2)
    return {
        "image_proj." + name.replace("__", "."): torch.randn(shape, generator=generator) * 0.3
        for name, shape in shapes.items()
    }


def plus(width: int) -> Tensors:
    """A resampler of four layers, as its makers name them."""
    ends = draw(
        latents=(1, 4, HEAD), proj_in__weight=(HEAD, SEEN), proj_in__bias=(HEAD,), proj_out__weight=(width, HEAD),
        proj_out__bias=(width,), norm_out__weight=(width,), norm_out__bias=(width,),
    )  # fmt: skip
    inner: Tensors = {}
    for layer in range(4):
        shapes = {
            "0.norm1.weight": (HEAD,), "0.norm1.bias": (HEAD,), "0.norm2.weight": (HEAD,), "0.norm2.bias": (HEAD,),
            "0.to_q.weight": (HEAD, HEAD), "0.to_kv.weight": (2 * HEAD, HEAD), "0.to_out.weight": (HEAD, HEAD),
            "1.0.weight": (HEAD,), "1.0.bias": (HEAD,), "1.1.weight": (4 * HEAD, HEAD), "1.3.weight": (HEAD, 4 * HEAD),
        }  # fmt: skip
        inner |= draw(**{f"layers.{layer}.{name}": shape for name, shape in shapes.items()})
    return ends | inner


def full(width: int) -> Tensors:
    return draw(
        proj__0__weight=(SEEN, SEEN), proj__0__bias=(SEEN,), proj__2__weight=(width, SEEN), proj__2__bias=(width,),
        proj__3__weight=(width,), proj__3__bias=(width,),
    )  # fmt: skip


def face_id(width: int) -> Tensors:
    return draw(
        proj__0__weight=(2 * SEEN, SEEN), proj__0__bias=(2 * SEEN,), proj__2__weight=(4 * width, 2 * SEEN),
        proj__2__bias=(4 * width,), norm__weight=(width,), norm__bias=(width,),
    )  # fmt: skip


def face_id_plus(width: int) -> Tensors:
    return face_id(width) | draw(perceiver_resampler__proj_in__weight=(HEAD, SEEN))


PROJECTIONS: dict[str, Callable[[int], Tensors] | None] = {"plain": None, "plus": plus, "full": full}


def add(**shapes: tuple[int, ...]) -> Callable[[Tensors], Tensors]:
    return lambda given: given | {key.replace("__", "."): torch.ones(shape) for key, shape in shapes.items()}


def drop(key: str) -> Callable[[Tensors], Tensors]:
    return lambda given: {each: tensor for each, tensor in given.items() if each != key}


def project(projection: Callable[[int], Tensors]) -> Callable[[Tensors], Tensors]:
    def spoil(given: Tensors) -> Tensors:
        layers = {key: tensor for key, tensor in given.items() if key.startswith("ip_adapter.")}
        return layers | projection(given["image_proj.norm.weight"].shape[0])

    return spoil


REFUSED: dict[str, tuple[Callable[[Tensors], Tensors], str]] = {
    "FaceID": (project(face_id), r"its \d+ keys are of another kind, .*not those of FaceID"),
    "FaceID Plus": (project(face_id_plus), r"its \d+ keys are of another kind"),
    "a LoRA inside": (add(ip_adapter__0__to_q_lora__down__weight=(2, 16)), r"1 of \d+ keys .*'ip_adapter\.0\.to_q_lora\.down"),
    "more layers": (add(ip_adapter__99__to_k_ip__weight=(8, 32)), r"1 of \d+ keys .*'ip_adapter\.99\.to_k_ip\.weight'; supp"),
    "other keys": (add(unet__conv_in__weight=(2,)), r"1 of \d+ keys .*'unet\.conv_in\.weight'"),
    "fewer layers": (drop("ip_adapter.1.to_k_ip.weight"), r"1\.to_k_ip\.weight"),
    "no bias": (drop("image_proj.proj.bias"), r"image_embeds\.bias"),
    "more of a projection": (add(image_proj__louder=(2,)), r"louder"),
    "more of a resampler": (lambda given: project(plus)(given) | add(image_proj__louder=(2,))({}), r"louder"),
    "no projection": (lambda given: add(ip_adapter__1__to_k_ip__weight=(8, 32))({}), r"its 1 keys are of another kind"),
    "nothing": (lambda given: add(louder=(2,))({}), r"its 1 keys are of another kind, the first is 'louder'"),
    "another encoder's": (add(image_proj__proj__weight=(128, 20)), r"takes pictures as 20 numbers, its image encoder makes 16"),
}  # fmt: skip


class Built:
    """A model, and diffusers' own pipeline of it."""

    def __init__(self, case: UNetCase, folder: Path) -> None:
        self.folder = folder
        self.pipe: DiffusionPipeline = case.build(folder)
        self.model: LoadedModel = load_model(str(folder), "cpu")
        self.bare = self.ours(None)

    def write(self, folder: Path, spoil: Callable[[Tensors], Tensors] | None = None) -> Path:
        tiny_ip_adapter(folder, self.pipe)
        if spoil is not None:
            file = folder / "tiny.safetensors"
            save_file(spoil(load_file(file)), file)
        return folder

    def theirs(self, folder: Path) -> Tensor:
        pipe = type(self.pipe).from_pretrained(self.folder)
        pipe.load_ip_adapter(str(folder), "", "tiny.safetensors", image_encoder_folder="image_encoder")
        pipe.set_ip_adapter_scale(0.7)
        return ask(pipe, initial_noise(SEED, *NOISE), GUIDED, ip_adapter_image=to_pil(PICTURE))

    def ours(self, folder: Path | None) -> Tensor:
        adapter = IpAdapter(folder, PICTURE, 0.7) if folder else None
        return generate_one_tile(self.model.prepare(Conditions(PROMPT, *GUIDED, ip_adapter=adapter)))


@pytest.fixture(scope="module", params=ADD_ON_CASES, ids=lambda case: case.name)
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Built:
    return Built(request.param, tmp_path_factory.mktemp("models") / "tiny")


@pytest.mark.parametrize("kind", PROJECTIONS)
def test_a_kind_that_sees_through_clip(built: Built, kind: str, tmp_path: Path) -> None:
    projection = PROJECTIONS[kind]
    folder = built.write(tmp_path / "adapter", project(projection) if projection else None)
    ours = built.ours(folder)
    torch.testing.assert_close(ours, built.theirs(folder), rtol=1e-4, atol=2e-4)
    assert (ours - built.bare).abs().max() > 1e-2
    assert torch.equal(built.ours(None), built.bare)


@pytest.mark.parametrize("name", REFUSED)
def test_what_would_have_no_effect_is_refused_and_leaves_no_trace(
    built: Built, name: str, tmp_path: Path
) -> None:
    spoil, says = REFUSED[name]
    with pytest.raises(ModelFolderError, match=rf"(?s)tiny.safetensors is no IP-Adapter .*{says}") as caught:
        built.ours(built.write(tmp_path / "adapter", spoil))
    assert len(str(caught.value)) < 500
    assert torch.equal(built.ours(None), built.bare)


VISION = CLIPVisionConfig(
    hidden_size=SEEN, intermediate_size=37, num_hidden_layers=1, num_attention_heads=2, image_size=32,
    patch_size=8, projection_dim=PROJECTED,
)  # fmt: skip


def test_an_encoder_without_its_projection_is_refused(built: Built, tmp_path: Path) -> None:
    """transformers would invent it."""
    folder = built.write(tmp_path / "adapter")
    CLIPVisionModel(VISION).save_pretrained(folder / "image_encoder")
    with pytest.raises(
        ModelFolderError, match=r"keys are missing .* 'visual_projection\.weight'; supported: a whole"
    ):
        built.ours(folder)


def test_a_whole_clip_may_lie_there(built: Built, tmp_path: Path) -> None:
    folder = built.write(tmp_path / "adapter")
    encoder = CLIPVisionModelWithProjection.from_pretrained(folder / "image_encoder")
    alone = built.ours(folder)
    text = {
        "vocab_size": 60,
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    both = CLIPModel(CLIPConfig(text_config=text, vision_config=VISION.to_dict(), projection_dim=PROJECTED))
    both.vision_model.load_state_dict(encoder.vision_model.state_dict())
    both.visual_projection.load_state_dict(encoder.visual_projection.state_dict())
    both.save_pretrained(folder / "image_encoder")
    (folder / "tiny.safetensors").touch()
    built.ours(None)
    torch.testing.assert_close(built.ours(folder), alone, rtol=1e-5, atol=1e-4)


def test_the_matrix_says_how_many_cases_it_holds(record_property: Callable[[str, object], None]) -> None:
    summary = f"IP-Adapters: {len(PROJECTIONS) + 1} kinds equal diffusers, {len(REFUSED) + 1} are refused, each for {len(ADD_ON_CASES)} families"
    record_property(MATRIX, summary)
    assert not PROJECTIONS.keys() & REFUSED.keys()
