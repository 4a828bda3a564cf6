"""Folders with a latent upscaler: what of them is read, and what is refused, with its reason."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from safetensors.torch import load_file, save_file

from tests.tiny_models import tiny_stable_diffusion_xl
from tests.tiny_upscaler import CASCADE, plain_config, tiny_upscaling_model
from worker.adapters.errors import ModelFolderError
from worker.adapters.footprint import weigh
from worker.adapters.model import Conditions
from worker.adapters.model_index import find_files
from worker.adapters.registry import load_model

WEIGHTS = "latent_upscaler/diffusion_pytorch_model.safetensors"
SEED, PROMPT = 9, Conditions("brick wall")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_upscaling_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "tiny"))


def test_its_files_are_read_and_weighed_where_the_folder_says_so(whole: Path, folder: Path) -> None:
    cpu = torch.device("cpu")
    assert {"latent_upscaler/config.json", WEIGHTS} <= set(find_files(whole))
    weight = sum(each.numel() for each in load_file(whole / WEIGHTS).values()) * 4
    (folder / "chorale.json").unlink()
    assert not [name for name in find_files(folder) if name.startswith("latent_upscaler")]
    assert weigh(str(whole), cpu) == weigh(str(folder), cpu) + weight


def configure(**fields: object) -> Callable[[Path], object]:
    """A network of other fields, its weights too."""

    def change(folder: Path) -> None:
        config = plain_config(UNet2DConditionModel.from_pretrained(str(folder / "latent_upscaler")))
        UNet2DConditionModel(**{**config, **fields}).save_pretrained(folder / "latent_upscaler")

    return change


def lose_a_weight(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    del tensors["conv_in.bias"]
    save_file(tensors, folder / WEIGHTS, {"format": "pt"})


def call_it(name: object) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        path = folder / "latent_upscaler" / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"_class_name": name}))

    return change


REFUSED: dict[str, tuple[Callable[[Path], object], str]] = {
    "gone": (
        lambda folder: shutil.rmtree(folder / "latent_upscaler"),
        r"tiny is incomplete: chorale\.json says that cascade\.conditioned is true, which needs latent_upscaler",
    ),
    "no weights": (
        lambda folder: (folder / WEIGHTS).unlink(),
        r"tiny/latent_upscaler holds no weights: diffusion_pytorch_model\.safetensors is missing",
    ),
    "only pickles": (
        lambda folder: (folder / WEIGHTS).rename((folder / WEIGHTS).with_suffix(".bin")),
        r"tiny/latent_upscaler holds only pickled weights",
    ),
    "no configuration": (
        lambda folder: (folder / "latent_upscaler" / "config.json").unlink(),
        r"tiny/latent_upscaler/config\.json",
    ),
    "damaged": (
        lambda folder: (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-100]),
        r"tiny/latent_upscaler cannot be loaded as a UNet2DConditionModel",
    ),
    "a weight lost": (
        lose_a_weight,
        r"tiny/latent_upscaler: 1 weights of its UNet2DConditionModel are missing, the first is 'conv_in\.bias'",
    ),
    "another class": (
        call_it("AutoencoderKL"),
        r"latent_upscaler/config\.json: _class_name is 'AutoencoderKL'; allowed: 'UNet2DConditionModel'",
    ),
    "as many channels as the UNet": (
        configure(in_channels=4),
        r"latent_upscaler/config\.json: in_channels is 4; allowed: 8, twice latent_channels of vae/config\.json",
    ),
    "another latent": (
        configure(out_channels=8),
        r"latent_upscaler/config\.json: out_channels is 8; allowed: 4, as out_channels of unet/config\.json",
    ),
    "another text": (
        configure(cross_attention_dim=48),
        r"latent_upscaler/config\.json: cross_attention_dim is 48; allowed: 32, as cross_attention_dim of unet",
    ),
    "more levels": (
        configure(
            block_out_channels=(8, 16, 16),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        ),
        r"block_out_channels is .*; allowed: no more entries than block_out_channels of unet/config\.json has",
    ),
    "classes": (
        configure(num_class_embeds=7),
        r"latent_upscaler/config\.json: num_class_embeds is 7; allowed: None",
    ),
    "a text for a number": (
        lambda folder: (folder / "latent_upscaler" / "config.json").write_text(
            (folder / "latent_upscaler" / "config.json").read_text().replace('"norm_eps": 1e-05', '"norm_eps": "x"')
        ),
        r"latent_upscaler/config\.json: norm_eps is 'x'; allowed: numbers",
    ),
    "a factor of three": (
        lambda folder: (folder / "chorale.json").write_text('{"cascade": {"conditioned": true, "enlarges": 3}}'),
        r"chorale\.json: cascade\.enlarges .*: 2 or 4$",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_a_folder_that_cannot_be_used_is_refused_for_its_reason(case: str, folder: Path) -> None:
    change, says = REFUSED[case]
    change(folder)
    with pytest.raises(ModelFolderError, match=says) as refused:
        load_model(str(folder), "cpu")
    assert str(folder) in str(refused.value) or "config.json" in says.replace("\\", "")


def test_other_pipelines_have_none(tmp_path: Path) -> None:
    tiny_stable_diffusion_xl(tmp_path / "tiny")
    (tmp_path / "tiny" / "chorale.json").write_text(json.dumps({"cascade": CASCADE}))
    with pytest.raises(
        ModelFolderError,
        match=r"cascade\.conditioned is true; allowed for a StableDiffusionXLPipeline: false, only a StableDiffusionP",
    ):
        load_model(str(tmp_path / "tiny"), "cpu")
