import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline

from tests.tiny_models import tiny_stable_diffusion
from worker.adapters.errors import DamagedModelError, ModelFolderError, UnknownFamilyError
from worker.adapters.model import Conditions
from worker.adapters.registry import load_model
from worker.engine.canvas import Plane
from worker.engine.generate import generate
from worker.engine.noise import initial_noise
from worker.engine.plan import DenoisePlan, GenerationPlan, StagePlan
from worker.engine.stitch import Band

ONE_TILE = DenoisePlan(Plane(16, 16), 16, 0, 0, moving=False, seed=9)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    tiny_stable_diffusion(folder)
    return folder


def test_one_tile_picture_equals_diffusers_own_picture(folder: Path) -> None:
    pipe = StableDiffusionPipeline.from_pretrained(str(folder), safety_checker=None)
    noise = initial_noise(9, 4, 16, 16)
    theirs = pipe(
        "dune", latents=noise[None], num_inference_steps=3, guidance_scale=2.0, output_type="np"
    ).images[0]
    plan = GenerationPlan(9, 4, (StagePlan(ONE_TILE, 3),))
    prepared = load_model(str(folder), "cpu").prepare(Conditions("dune", guidance_scale=2.0))
    ours = torch.cat([event.rows for event in generate(plan, prepared) if isinstance(event, Band)])
    assert (ours.float() - torch.from_numpy(theirs) * 255).abs().max() <= 0.51


def test_card_says_what_the_folder_says(folder: Path) -> None:
    card = load_model(str(folder), "cpu").card
    assert (card.name, card.native_size_px, card.alignment_px, card.vae_scale, card.latent_channels) == (
        "tiny", 64, 8, 4, 4,
    )  # fmt: skip


def test_preview_map_tracks_the_decoder(folder: Path) -> None:
    model = load_model(str(folder), "cpu")
    assert model.preview_map.weight.shape == (3, 4)
    assert torch.isfinite(model.preview_map.weight).all()
    assert model.preview_map.weight.abs().max() > 0


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelFolderError, match="nowhere is neither a model folder nor on the allow-list"):
        load_model(str(tmp_path / "nowhere"), "cpu")


def test_a_truncated_file_is_named_with_its_digest(folder: Path, tmp_path: Path) -> None:
    model = _link(folder, tmp_path / "model")
    weights = model / "vae" / "diffusion_pytorch_model.safetensors"
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    (model / "SHA256SUMS").write_text(f"{digest}  vae/{weights.name}\n")
    load_model(str(model), "cpu")
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(DamagedModelError, match=f"{weights.name} has SHA-256 .*, expected {digest}"):
        load_model(str(model), "cpu")


@pytest.mark.parametrize(
    "write",
    [
        str,
        lambda line: f"# by hand\n\n{line}",
        lambda line: line.replace("  ", " *").replace("\n", "\r\n"),
        lambda line: line[:64].upper() + line[64:],
    ],
    ids=["sha256sum", "with a comment", "of Windows", "in capitals"],
)
def test_digests_are_read_as_programs_write_them(
    folder: Path, tmp_path: Path, write: Callable[[str], str]
) -> None:
    model = _link(folder, tmp_path / "model")
    weights = model / "vae" / "diffusion_pytorch_model.safetensors"
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    (model / "SHA256SUMS").write_text(write(f"{digest}  vae/{weights.name}\n"))
    load_model(str(model), "cpu")


@pytest.mark.parametrize(
    ("file", "content", "says"),
    [
        ("model_index.json", "{oops", r"model_index\.json: Invalid JSON: "),
        ("model_index.json", "[]", r"model_index\.json: this is no object"),
        (
            "model_index.json",
            "{}",
            r"model_index\.json: _class_name is None; allowed: the name of a pipeline",
        ),
        ("vae/config.json", "{oops", r"vae/config\.json: Invalid JSON: "),
        ("unet/config.json", "{oops", r"cannot be loaded as a StableDiffusionPipeline: .*unet/config\.json"),
        ("SHA256SUMS", "moss\n", r"SHA256SUMS: 'moss' is not a digest and the name of a file"),
        ("SHA256SUMS", "\udcff\n", r"SHA256SUMS: '.' is not a digest and the name of a file"),
        (
            "tokenizer/tokenizer_config.json",
            '{"model_max_length": "many"}',
            r"tokenizer: model_max_length is 'many'; allowed: a number",
        ),
        ("text_encoder/model.safetensors", "", r"cannot be loaded as a StableDiffusionPipeline: "),
    ],
)
def test_a_damaged_file_is_named(folder: Path, tmp_path: Path, file: str, content: str, says: str) -> None:
    model = _link(folder, tmp_path / "model")
    (model / file).write_text(content, errors="surrogateescape")
    with pytest.raises(ModelFolderError, match=says):
        load_model(str(model), "cpu")


def test_a_missing_part_is_named(folder: Path, tmp_path: Path) -> None:
    model = _link(folder, tmp_path / "model")
    shutil.rmtree(model / "tokenizer")
    with pytest.raises(ModelFolderError, match=r"model_index\.json names tokenizer, and there is no such"):
        load_model(str(model), "cpu")


def test_an_unknown_family_names_the_known_ones(tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text('{"_class_name": "KandinskyPipeline"}')
    with pytest.raises(
        UnknownFamilyError, match="holds a KandinskyPipeline; known families: StableDiffusionPipeline"
    ):
        load_model(str(tmp_path), "cpu")


def _link(folder: Path, copy: Path) -> Path:
    for path in folder.rglob("*"):
        if path.is_file():
            target = copy / path.relative_to(folder)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
    return copy
