"""What is refused when a folder is loaded; tests/conformance tries every field."""

import json
from pathlib import Path

import pytest

from tests.conformance.folders import change
from tests.tiny_models import tiny_stable_diffusion, tiny_stable_diffusion_xl
from tests.tiny_transformers import tiny_flux
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
