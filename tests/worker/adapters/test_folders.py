"""Folders as people have them: each loads, and makes the picture that the plain folder makes, or says why not."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from diffusers.pipelines.stable_diffusion_3.pipeline_stable_diffusion_3 import StableDiffusion3Pipeline
from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import StableDiffusionXLPipeline
from torch import Tensor

from tests.tiny_models import tiny_stable_diffusion, tiny_stable_diffusion_xl
from tests.tiny_transformers import tiny_stable_diffusion_3
from tests.worker.adapters.transformers import ask_stable_diffusion_3
from worker.adapters.errors import ModelFolderError, UnknownFamilyError
from worker.adapters.footprint import weigh
from worker.adapters.model import Conditions, LoadedModel
from worker.adapters.registry import load_model
from worker.engine.denoise import denoise
from worker.engine.noise import initial_noise
from worker.engine.plan import DenoisePlan, StagePlan
from worker.engine.schedule import initial_scale

CPU = torch.device("cpu")
PICKLE = b"\x80\x04cos\nsystem\n."
UNET, TEXT = "unet/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors"


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
    plan = DenoisePlan(16, 16, (False, False), 16, 0, 0, moving=False, seed=9)
    singer = model.prepare(Conditions("a brick wall", "moss", guidance_scale=3.0))
    ensemble, scheduler = singer.begin(StagePlan(plan, 2))
    latent = initial_noise(9, 4, 16, 16) * initial_scale(scheduler)
    for _ in denoise(latent, plan, ensemble, scheduler, torch.Generator()):
        pass
    return latent


def save_again(folder: Path, **how: object) -> None:
    """diffusers writes the folder anew."""
    pipe = StableDiffusionPipeline.from_pretrained(str(folder), safety_checker=None)
    shutil.rmtree(folder)
    pipe.save_pretrained(folder, **how)


def all_in_a_variant(folder: Path) -> None:
    save_again(folder, variant="fp16")
    assert not [path for path in folder.rglob("*.safetensors") if ".fp16." not in path.name]


def in_shards(folder: Path) -> None:
    save_again(folder, max_shard_size="20KB")
    assert len(list((folder / "unet").glob("*-of-*.safetensors"))) > 1
    assert len(list((folder / "text_encoder").glob("*-of-*.safetensors"))) > 1


def in_shards_of_a_variant(folder: Path) -> None:
    save_again(folder, max_shard_size="20KB", variant="fp16")
    assert (folder / "unet" / "diffusion_pytorch_model.safetensors.index.fp16.json").is_file()


def in_shards_of_a_variant_of_old(folder: Path) -> None:
    """As diffusers named them until 2024."""
    in_shards(folder)
    for part, base in (("unet", "diffusion_pytorch_model"), ("vae", "diffusion_pytorch_model")):
        index = folder / part / f"{base}.safetensors.index.json"
        text = index.read_text()
        for shard in set(json.loads(text)["weight_map"].values()):
            named = shard.replace(".safetensors", ".fp16.safetensors")
            (folder / part / shard).rename(folder / part / named)
            text = text.replace(shard, named)
        index.unlink()
        index.with_name(f"{base}.safetensors.fp16.index.json").write_text(text)


def with_one_part_in_a_variant(folder: Path) -> None:
    (folder / UNET).rename((folder / UNET).with_suffix(".non_ema.safetensors"))


def with_variants_beside(folder: Path) -> None:
    """What has no variant is read."""
    for name in ("fp16", "bf16", "non_ema"):
        (folder / UNET).with_suffix(f".{name}.safetensors").write_bytes(b"not read")
    (folder / UNET).with_suffix(".safetensors.index.fp16.json").write_text("{not read")


def with_several_variants(folder: Path) -> None:
    """The more exact one is read."""
    (folder / UNET).rename((folder / UNET).with_suffix(".bf16.safetensors"))
    (folder / UNET).with_suffix(".fp16.safetensors").write_bytes(b"not read")
    (folder / UNET).with_suffix(".ema.safetensors").write_bytes(b"not read")


def with_pickles_beside(folder: Path) -> None:
    for name in ("diffusion_pytorch_model.bin", "diffusion_flax_model.msgpack", "model.onnx", "old.ckpt"):
        (folder / "unet" / name).write_bytes(PICKLE)
    (folder / "text_encoder" / "pytorch_model.bin").write_bytes(PICKLE)
    (folder / "text_encoder" / "pytorch_model.bin.index.json").write_text("{not read")
    (folder / "tiny.ckpt").write_bytes(PICKLE)
    (folder / "tiny.safetensors").write_bytes(b"not read")
    (folder / ".gitattributes").write_text("*.bin filter=lfs")


def with_code_beside(folder: Path) -> None:
    for name in ("pipeline.py", "unet/diffusers.py", "unet/unet.py", "text_encoder/transformers.py"):
        (folder / name).write_text("raise SystemExit('this was run')")
    config = json.loads((folder / "text_encoder" / "config.json").read_text())
    config["auto_map"] = {"AutoModel": "modeling.Mine"}
    (folder / "text_encoder" / "config.json").write_text(json.dumps(config))


def with_a_safety_checker_of_pickles(folder: Path) -> None:
    """As the first folders of Stable Diffusion 1 state it."""
    tell(
        folder,
        safety_checker=["stable_diffusion", "StableDiffusionSafetyChecker"],
        feature_extractor=["transformers", "CLIPFeatureExtractor"],
    )
    (folder / "safety_checker").mkdir()
    (folder / "safety_checker" / "pytorch_model.bin").write_bytes(PICKLE)


def with_a_safety_checker_that_is_gone(folder: Path) -> None:
    tell(folder, safety_checker=["stable_diffusion", "StableDiffusionSafetyChecker"])


def with_links_to_folders(folder: Path) -> None:
    for part in ("unet", "tokenizer"):
        (folder / part).rename(folder.with_name(part))
        (folder / part).symlink_to(folder.with_name(part), target_is_directory=True)


def as_the_hub_caches_it(folder: Path) -> None:
    """Files are links to blobs, whose names say nothing."""
    blobs = folder.with_name("blobs")
    blobs.mkdir()
    for number, path in enumerate(sorted(path for path in folder.rglob("*") if path.is_file())):
        path.rename(blobs / f"{number:040x}")
        path.symlink_to(
            Path(*[".."] * len(path.relative_to(folder.parent).parts[:-1])) / f"blobs/{number:040x}"
        )
    (folder / "unet" / "diffusion_pytorch_model.bin").write_bytes(PICKLE)


def with_no_limit_of_the_tokenizer(folder: Path) -> None:
    path = folder / "tokenizer" / "tokenizer_config.json"
    config = json.loads(path.read_text())
    del config["model_max_length"]
    path.write_text(json.dumps(config))


def with_lists_that_are_no_parts(folder: Path) -> None:
    tell(folder, _ignore_files=["one", "two"], _note=["os", "system"])


def tell(folder: Path, **entries: object) -> None:
    index = folder / "model_index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | entries))


LAYOUTS: tuple[Callable[[Path], None], ...] = (
    all_in_a_variant,
    in_shards,
    in_shards_of_a_variant,
    in_shards_of_a_variant_of_old,
    with_one_part_in_a_variant,
    with_variants_beside,
    with_several_variants,
    with_pickles_beside,
    with_code_beside,
    with_a_safety_checker_of_pickles,
    with_a_safety_checker_that_is_gone,
    with_links_to_folders,
    as_the_hub_caches_it,
    with_no_limit_of_the_tokenizer,
    with_lists_that_are_no_parts,
)


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
    plan = DenoisePlan(16, 12, (False, False), 16, 0, 0, moving=False, seed=9)
    singer = model.prepare(Conditions("a brick wall in the evening light", "moss", guidance_scale=5.0))
    ensemble, scheduler = singer.begin(StagePlan(plan, 4))
    ours = initial_noise(9, 16, 16, 12)
    for _ in denoise(ours, plan, ensemble, scheduler, torch.Generator()):
        pass
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-4)
    assert model.find_cuts(Conditions("a " * 20)) == [
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


def _narrow(pipe: StableDiffusionXLPipeline) -> torch.nn.Module:
    torch.manual_seed(0)
    return type(pipe.unet).from_config({**pipe.unet.config, "cross_attention_dim": 32})
