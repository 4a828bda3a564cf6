"""Every autoencoder that we know in every family: as diffusers' pipeline has it, or refused."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from diffusers.models.modeling_utils import ModelMixin

from tests.conformance.configurations import Base, case_of, examine, without
from tests.conformance.examine import make_theirs
from tests.conformance.families import build
from tests.conformance.summary import MATRIX
from tests.tiny_autoencoders import tiny_dc, tiny_kl, tiny_kl_flux_2, tiny_kl_qwen_image
from tests.tiny_models import tiny_autoencoder

AUTOENCODERS: dict[str, Callable[[int], ModelMixin]] = {
    "AutoencoderKL": tiny_kl,
    "AutoencoderKLFlux2": tiny_kl_flux_2,
    "AutoencoderKLQwenImage": tiny_kl_qwen_image,
    "AutoencoderDC": tiny_dc,
    "AutoencoderTiny": tiny_autoencoder,
}
# Channels of the family's latent, and the autoencoders that its pipeline can use.
KNOWN = {
    "stable-diffusion": (4, {"AutoencoderKL", "AutoencoderTiny"}),
    "stable-diffusion-xl": (4, {"AutoencoderKL", "AutoencoderTiny"}),
    "stable-diffusion-3": (16, {"AutoencoderKL", "AutoencoderTiny"}),
    "flux-dev": (4, {"AutoencoderKL", "AutoencoderTiny"}),
    "pixart-sigma": (4, {"AutoencoderKL", "AutoencoderTiny"}),
    "sana": (8, {"AutoencoderDC", "AutoencoderTiny"}),
    "z-image": (4, {"AutoencoderKL", "AutoencoderTiny"}),
    "flux-2": (4, {"AutoencoderKLFlux2"}),
    "qwen-image": (4, {"AutoencoderKLQwenImage"}),
}


@pytest.mark.parametrize("name", KNOWN)
def test_an_autoencoder_of_another_class(
    name: str, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    case, (channels, known) = case_of(name, "vae"), KNOWN[name]
    folder = build(case, tmp_path / name)
    base = Base(name, folder)
    unchanged = make_theirs(case, folder, pictures=True, parts=base.parts)
    others = [without("vae", parts) for parts in (base.parts, base.our_parts)]
    outcomes = dict[str, str]()
    for kind, make in AUTOENCODERS.items():
        _replace(folder, kind, make(channels))
        outcomes[kind] = examine(case, unchanged, folder, *others)
        record_property(MATRIX, ("autoencoders in families", outcomes[kind]))
    assert {kind for kind, outcome in outcomes.items() if outcome in ("honoured", "inert")} == known, outcomes
    assert set(outcomes.values()) <= {"honoured", "inert", "refused", "unusable"}, outcomes


def _replace(folder: Path, kind: str, vae: ModelMixin) -> None:
    for file in (folder / "vae").iterdir():
        file.unlink()
    vae.save_pretrained(folder / "vae")
    index = json.loads((folder / "model_index.json").read_text())
    index["vae"] = ["diffusers", kind]
    (folder / "model_index.json").write_text(json.dumps(index))
