"""Folders as people have them: each loads, and makes the picture that the plain folder makes, or says why not."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers.pipelines.stable_diffusion_3.pipeline_stable_diffusion_3 import StableDiffusion3Pipeline
from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import StableDiffusionXLPipeline
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.tiny_models import tiny_stable_diffusion, tiny_stable_diffusion_xl
from tests.tiny_transformers import tiny_stable_diffusion_3
from tests.worker.adapters.families.transformers import ask_stable_diffusion_3
from tests.worker.adapters.layouts import LAYOUTS, PICKLE, TEXT, UNET, in_shards, tell
from tests.worker.engine.known_answer import begin, finish
from worker.adapters.errors import ModelFolderError, UnknownFamilyError
from worker.adapters.footprint import weigh
from worker.adapters.model import Conditions, LoadedModel
from worker.adapters.registry import load_model
from worker.engine.canvas import Plane
from worker.engine.denoise import denoise
from worker.engine.noise import initial_noise
from worker.engine.plan import DenoisePlan, StagePlan

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    tiny_stable_diffusion(folder)
    return folder


@pytest.fixture(scope="module")
def expected(plain: Path) -> Tensor:
    return one_tile(load_model(str(plain), "cpu"))


@pytest.fixture
def folder(plain: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(plain, tmp_path / "tiny"))


def one_tile(model: LoadedModel) -> Tensor:
    plan = DenoisePlan(Plane(16, 16), 16, 0, 0, moving=False, seed=9)
    prepared = model.prepare(Conditions("a brick wall", "moss", guidance_scale=3.0))
    ensemble, scheduler = begin(prepared, StagePlan(plan, 2))
    latent = initial_noise(9, 4, 16, 16) * scheduler.initial_scale
    return finish(denoise(latent, plan, ensemble, scheduler, torch.Generator()))


@pytest.mark.parametrize("change", LAYOUTS, ids=lambda change: change.__name__)
def test_a_folder_in_any_layout_makes_the_same_picture(
    change: Callable[[Path], None], plain: Path, folder: Path, expected: Tensor
) -> None:
    change(folder)
    assert weigh(str(folder), CPU) == weigh(str(plain), CPU)
    model = load_model(str(folder), "cpu")
    assert model.card.name == "tiny"
    assert torch.equal(one_tile(model), expected)


REFUSED: dict[str, tuple[Callable[[Path], object], str]] = {
    "only pickles": (
        lambda folder: (folder / UNET).rename((folder / UNET).with_suffix(".bin")),
        r"tiny/unet holds only pickled weights \(unet/diffusion_pytorch_model\.bin\), which would run code",
    ),
    "only flax": (
        lambda folder: (folder / TEXT).rename((folder / TEXT).with_name("flax_model.msgpack")),
        r"tiny/text_encoder holds no weights: model\.safetensors is missing.*there is config\.json, flax_model",
    ),
    "another name": (
        lambda folder: (folder / UNET).rename((folder / UNET).with_name("Diffusion_PyTorch_Model.safetensors")),
        r"diffusion_pytorch_model\.safetensors is missing.*there is Diffusion_PyTorch_Model\.safetensors",
    ),
    "odd variants": (
        lambda folder: [
            shutil.copy(folder / UNET, (folder / UNET).with_suffix(f".{name}.safetensors")) for name in ("ema", "x")
        ]
        and (folder / UNET).unlink(),
        r"tiny/unet holds weights in the variants ema, x and none that is usual; keep one",
    ),
    "a lost shard": (
        lambda folder: in_shards(folder) or min((folder / "unet").glob("*-of-*")).unlink(),
        r"index\.json names diffusion_pytorch_model-00001-of-\d+\.safetensors, and there is no such file",
    ),
    "a shard elsewhere": (
        lambda folder: ((folder / UNET).unlink(), point_outside(folder)),
        r"index\.json names '\.\./vae/x\.safetensors'; allowed: safetensors files beside it",
    ),
    "a pickled shard": (
        lambda folder: ((folder / UNET).unlink(), point_outside(folder, "x.bin")),
        r"index\.json names 'x\.bin'; allowed: safetensors files beside it",
    ),
    "an index of nothing": (
        lambda folder: (
            (folder / UNET).unlink(),
            (folder / "unet" / "diffusion_pytorch_model.safetensors.index.json").write_text('{"weight_map": []}'),
        ),
        r"weight_map says for each tensor in which file it is",
    ),
    "a link to itself": (
        lambda folder: (shutil.rmtree(folder / "unet"), (folder / "unet").symlink_to(folder / "unet")),
        r"model_index\.json names unet, and there is no such folder",
    ),
    "a link to nothing": (
        lambda folder: ((folder / UNET).unlink(), (folder / UNET).symlink_to("nowhere")),
        r"tiny/unet holds no weights",
    ),
    "null": (
        lambda folder: tell(folder, unet=[None, None]),
        r"model_index\.json: unet is null, and a StableDiffusionPipeline cannot do without",
    ),
    "a tokenizer of null": (
        lambda folder: tell(folder, tokenizer=[None, None]),
        r"model_index\.json: tokenizer is null",
    ),
    "code of its own": (
        lambda folder: tell(folder, unet=["my_unet", "Mine"]),
        r"asks for code of its own: unet is of my_unet; it is never run",
    ),
    "a pipeline of its own": (
        lambda folder: tell(folder, _class_name=["pipeline", "Mine"]),
        r"asks for code of its own: _class_name is \['pipeline', 'Mine'\]",
    ),
    "a part elsewhere": (
        lambda folder: tell(folder, **{"../vae": ["diffusers", "AutoencoderKL"]}),
        r"'\.\./vae' is no name of a part",
    ),
    "an adapter": (
        lambda folder: (folder / "text_encoder" / "adapter_config.json").write_text("{}"),
        r"text_encoder/adapter_config\.json changes weights as they are loaded; merge it",
    ),
    "one checkpoint": (
        lambda folder: ((folder / "model_index.json").unlink(), (folder / "sd.safetensors").write_bytes(b"")),
        r"is not a model folder: model_index\.json is missing; a checkpoint of one file \(sd\.safetensors\) has to",
    ),
    "one pickled checkpoint": (
        lambda folder: ((folder / "model_index.json").unlink(), (folder / "sd.ckpt").write_bytes(PICKLE)),
        r"model_index\.json is missing; pickled weights \(sd\.ckpt\) would run code",
    ),
}  # fmt: skip


def point_outside(folder: Path, name: str = "../vae/x.safetensors") -> None:
    index = folder / "unet" / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": {"a": name}}))


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_loaded_is_refused_for_its_reason(case: str, folder: Path) -> None:
    change, says = REFUSED[case]
    change(folder)
    with pytest.raises((ModelFolderError, UnknownFamilyError), match=says) as refused:
        load_model(str(folder), "cpu")
    assert str(folder) in str(refused.value)


def test_stable_diffusion_3_without_its_third_text_encoder_equals_diffusers_own(tmp_path: Path) -> None:
    tiny_stable_diffusion_3(tmp_path / "whole")
    pipe = StableDiffusion3Pipeline.from_pretrained(
        str(tmp_path / "whole"), text_encoder_3=None, tokenizer_3=None
    )
    pipe.save_pretrained(tmp_path / "lean")
    assert json.loads((tmp_path / "lean" / "model_index.json").read_text())["text_encoder_3"] == [None, None]
    theirs = ask_stable_diffusion_3(pipe, initial_noise(9, 16, 16, 12), 5.0, "latent")
    model = load_model(str(tmp_path / "lean"), "cpu")
    plan = DenoisePlan(Plane(16, 12), 16, 0, 0, moving=False, seed=9)
    prepared = model.prepare(Conditions("a brick wall in the evening light", "moss", guidance_scale=5.0))
    ensemble, scheduler = begin(prepared, StagePlan(plan, 4))
    ours = finish(denoise(initial_noise(9, 16, 16, 12), plan, ensemble, scheduler, torch.Generator()))
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-4)
    assert model.find_truncated_prompts(Conditions("a " * 20)) == [
        "prompt has 22 tokens; the model reads the first 16 and not the rest"
    ]


def test_sdxl_without_its_first_text_encoder_equals_diffusers_own(tmp_path: Path) -> None:
    pipe = tiny_stable_diffusion_xl(tmp_path / "whole")
    assert pipe.unet.config.cross_attention_dim == 64  # both encoders' widths
    lean = tmp_path / "lean"
    StableDiffusionXLPipeline(
        pipe.vae, None, pipe.text_encoder_2, None, pipe.tokenizer_2, _narrow(pipe), pipe.scheduler,
        add_watermarker=False,
    ).save_pretrained(lean)  # fmt: skip
    alone = StableDiffusionXLPipeline.from_pretrained(str(lean))
    noise = initial_noise(9, 4, 16, 16)
    theirs = alone(
        "a brick wall", negative_prompt="moss", latents=noise[None] , num_inference_steps=2, guidance_scale=3.0,
        output_type="latent",
    ).images[0]  # fmt: skip
    torch.testing.assert_close(one_tile(load_model(str(lean), "cpu")), theirs, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("file", [UNET, TEXT, UNET.replace("unet", "vae")])
def test_weights_that_are_missing_are_not_invented(file: str, folder: Path) -> None:
    tensors = load_file(folder / file)
    gone = sorted(tensors)[0]
    save_file({name: each for name, each in tensors.items() if name != gone}, folder / file, {"format": "pt"})
    part, _, _ = file.partition("/")
    with pytest.raises(
        ModelFolderError, match=rf"tiny/{part}: 1 weights .* are missing, the first is '{gone}'"
    ):
        load_model(str(folder), "cpu")


def test_a_part_of_another_class_is_refused(folder: Path) -> None:
    """BERT takes CLIP's configuration, and would find none of its weights."""
    tell(folder, text_encoder=["transformers", "BertModel"])
    with pytest.raises(ModelFolderError, match=r"tiny/text_encoder: 39 weights of its BertModel are missing"):
        load_model(str(folder), "cpu")


def _narrow(pipe: StableDiffusionXLPipeline) -> torch.nn.Module:
    torch.manual_seed(0)
    return type(pipe.unet).from_config({**pipe.unet.config, "cross_attention_dim": 32})
