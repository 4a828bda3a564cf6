"""What is refused when a folder is loaded; tests/conformance tries every field."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conformance.folders import change
from tests.tiny_models import tiny_stable_diffusion, tiny_stable_diffusion_xl
from tests.tiny_transformers import (
    tiny_flux,
    tiny_pixart_sigma,
    tiny_qwen_image,
    tiny_sana,
    tiny_stable_diffusion_3,
    tiny_z_image,
)
from worker.adapters.errors import ModelFolderError
from worker.adapters.registry import load_model


def write(folder: Path, part: str, **fields: object) -> None:
    path = folder / part / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def test_a_refusal_names_field_value_and_what_is_allowed(tmp_path: Path) -> None:
    tiny_flux(tmp_path / "tiny")
    write(tmp_path / "tiny", "vae", shift_factor=None)
    with pytest.raises(ModelFolderError, match=r"vae/config.json: shift_factor is None; allowed: a number"):
        load_model(str(tmp_path / "tiny"), "cpu")


def test_a_model_for_inpainting_is_refused_for_its_channels(tmp_path: Path) -> None:
    tiny_stable_diffusion(tmp_path / "plain")
    change(tmp_path / "plain", tmp_path / "tiny", "unet", "in_channels", 9)
    with pytest.raises(
        ModelFolderError, match=r"unet/config.json: in_channels is 9; allowed: 4, as latent_channels of vae"
    ):
        load_model(str(tmp_path / "tiny"), "cpu")


def test_levels_without_one_for_each_channel_are_refused(tmp_path: Path) -> None:
    tiny_stable_diffusion_xl(tmp_path / "tiny")
    write(tmp_path / "tiny", "vae", latents_mean=[0.5, 1.0], latents_std=[1.0, 2.0, 3.0, 4.0])
    with pytest.raises(ModelFolderError, match=r"latents_mean is \[0.5, 1.0\]; allowed: 4 numbers"):
        load_model(str(tmp_path / "tiny"), "cpu")


@pytest.mark.parametrize(("sample_size", "native_size_px"), [(16, 64), ([32, 16], 64), (None, 256)])
def test_a_unet_may_say_its_size_as_diffusers_takes_it(
    sample_size: object, native_size_px: int, tmp_path: Path
) -> None:
    """A tile is square, so of two sides the shorter counts; 64 latent pixels where a folder does not say."""
    tiny_stable_diffusion(tmp_path / "tiny")
    write(tmp_path / "tiny", "unet", sample_size=sample_size)
    assert load_model(str(tmp_path / "tiny"), "cpu").card.native_size_px == native_size_px


TEXT = [
    ("unet", "sample_size", "64", "numbers"),
    ("unet", "sample_size", ["64", 64], "numbers"),
    ("unet", "sample_size", 0, "a whole number from 1"),
    ("unet", "in_channels", "4", "numbers"),
    ("unet", "time_cond_proj_dim", "16", "numbers"),
    ("vae", "scaling_factor", "0.18", "numbers"),
    ("vae", "scaling_factor", float("nan"), "numbers"),
    ("vae", "scaling_factor", float("inf"), "a number other than 0"),
    ("vae", "latents_mean", "0.5", "numbers"),
    ("vae", "latents_mean", ["0", "0", "0", "0"], "numbers"),
    ("vae", "latents_std", [1.0, 1.0, 1.0, float("nan")], "numbers"),
    ("vae", "latents_std", [1.0, 1.0, None, 1.0], "4 numbers, or null"),
]


@pytest.mark.parametrize(("part", "field", "value", "allowed"), TEXT)
def test_what_has_to_be_numbers_and_is_not_is_named(
    part: str, field: str, value: object, allowed: str, tmp_path: Path
) -> None:
    tiny_stable_diffusion_xl(tmp_path / "tiny")
    levels = {"latents_mean": [0.0] * 4, "latents_std": [1.0] * 4} if field.startswith("latents") else {}
    write(tmp_path / "tiny", part, **levels | {field: value})
    shown = re.escape(f"{part}/config.json: {field} is {value!r}; allowed: ")
    with pytest.raises(ModelFolderError, match=f"{shown}.*{allowed}"):
        load_model(str(tmp_path / "tiny"), "cpu")


@pytest.mark.parametrize(
    ("build", "part", "field", "value"),
    [
        (tiny_stable_diffusion_3, "transformer", "sample_size", "32"),
        (tiny_stable_diffusion_3, "vae", "shift_factor", "0.1"),
        (tiny_pixart_sigma, "transformer", "sample_size", "16"),
        (tiny_sana, "transformer", "timestep_scale", "1"),
        (tiny_sana, "transformer", "patch_size", "1"),
        (tiny_qwen_image, "vae", "latents_mean", ["0"] * 16),
        (tiny_z_image, "transformer", "axes_lens", [1024, "512", 512]),
    ],
)  # fmt: skip
def test_so_it_is_for_transformers(
    build: Callable[[Path], object], part: str, field: str, value: object, tmp_path: Path
) -> None:
    build(tmp_path / "tiny")
    write(tmp_path / "tiny", part, **{field: value})
    shown = re.escape(f"{part}/config.json: {field} is {value!r}; allowed: ")
    with pytest.raises(ModelFolderError, match=shown):
        load_model(str(tmp_path / "tiny"), "cpu")


def test_text_in_a_schedulers_numbers_is_named(tmp_path: Path) -> None:
    tiny_stable_diffusion(tmp_path / "tiny")
    path = tmp_path / "tiny" / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"num_train_timesteps": "1000"}))
    with pytest.raises(
        ModelFolderError,
        match=r"scheduler/scheduler_config.json: num_train_timesteps is '1000'; allowed: .*numbers",
    ):
        load_model(str(tmp_path / "tiny"), "cpu")
