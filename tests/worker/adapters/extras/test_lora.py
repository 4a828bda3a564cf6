from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.tiny_add_ons import tiny_lora
from tests.worker.adapters.families.test_unets import generate_one_tile
from tests.worker.adapters.families.unets import ADD_ON_CASES, NOISE, PROMPT, SEED, UNetCase, ask
from worker.adapters.add_ons import Lora
from worker.adapters.errors import ModelFolderError
from worker.adapters.model import Conditions, LoadedModel
from worker.adapters.registry import load_model
from worker.engine.noise import initial_noise

GUIDED = ("moss", 5.0)


@pytest.fixture(scope="module", params=ADD_ON_CASES, ids=lambda case: case.name)
def case(request: pytest.FixtureRequest) -> UNetCase:
    return request.param


@pytest.fixture(scope="module")
def folder(case: UNetCase, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    case.build(folder)
    return folder


@pytest.fixture(scope="module")
def loras(case: UNetCase, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    files = tmp_path_factory.mktemp("loras")
    return [tiny_lora(files, case.build(files / f"base-{seed}"), seed=seed) for seed in (1, 2)]


@pytest.fixture(scope="module")
def model(folder: Path) -> LoadedModel:
    return load_model(str(folder), "cpu")


def make_picture(model: LoadedModel, *loras: Lora) -> torch.Tensor:
    return generate_one_tile(model.prepare(Conditions(PROMPT, *GUIDED, loras=loras)))


def test_several_with_weights_equal_diffusers_own_pipeline(
    case: UNetCase, model: LoadedModel, loras: list[Path], tmp_path: Path
) -> None:
    pipe = case.build(tmp_path / "tiny")
    for name, file in zip("ab", loras, strict=True):
        pipe.load_lora_weights(str(file.parent), weight_name=file.name, adapter_name=name)
    pipe.set_adapters(["a", "b"], [0.7, -0.4])
    theirs = ask(pipe, initial_noise(SEED, *NOISE), GUIDED)
    ours = make_picture(model, Lora(loras[0], 0.7), Lora(loras[1], -0.4))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)
    assert (ours - make_picture(model)).abs().max() > 1e-2


def test_loras_of_earlier_pictures_do_not_count(model: LoadedModel, loras: list[Path]) -> None:
    bare, first = make_picture(model), make_picture(model, Lora(loras[0]))
    second = make_picture(model, Lora(loras[1], 0.5))
    assert torch.equal(make_picture(model), bare)
    assert torch.equal(make_picture(model, Lora(loras[0])), first)
    assert torch.equal(make_picture(model, Lora(loras[1], 0.5)), second)
    assert not torch.allclose(first, second)


def test_the_models_own_weights_stay_where_they_are(folder: Path, loras: list[Path]) -> None:
    model = load_model(str(folder), "cpu")
    unet = model._family.pipe.unet  # pyright: ignore
    own = {parameter.data_ptr() for parameter in unet.parameters()}
    model.prepare(Conditions(PROMPT, loras=(Lora(loras[0]),)))
    assert own <= {parameter.data_ptr() for parameter in unet.parameters()}
    model.prepare(Conditions(PROMPT))
    assert own == {parameter.data_ptr() for parameter in unet.parameters()}


def test_a_file_of_another_model_is_refused_and_leaves_no_trace(
    case: UNetCase, model: LoadedModel, folder: Path, loras: list[Path]
) -> None:
    bare = make_picture(model)
    make_picture(model, Lora(loras[0]))
    with pytest.raises(
        ModelFolderError, match=r"diffusion_pytorch_model.safetensors is no LoRA for this model"
    ):
        make_picture(model, Lora(folder / "vae" / "diffusion_pytorch_model.safetensors"))
    assert torch.equal(make_picture(model), bare)
    with pytest.raises(ModelFolderError, match=r"must hold one safetensors file; it holds none"):
        make_picture(model, Lora(folder))


def test_a_file_for_another_denoiser_is_refused(
    model: LoadedModel, loras: list[Path], tmp_path: Path
) -> None:
    """As one of another family, of which only the text encoder has parts of the same names."""
    bare = make_picture(model)
    tensors = load_file(loras[0])
    foreign = {name.replace("unet.", "transformer."): tensor for name, tensor in tensors.items()}
    text = {name: tensor for name, tensor in tensors.items() if name.startswith("text_encoder")}
    save_file(foreign, tmp_path / "foreign.safetensors")
    save_file(text, tmp_path / "text.safetensors")
    rest = len(tensors) - len(text)
    with pytest.raises(
        ModelFolderError,
        match=rf"foreign\.safetensors is no LoRA .*: {rest} of {len(tensors)} keys .* 'transformer\.",
    ):
        make_picture(model, Lora(tmp_path / "foreign.safetensors"))
    assert torch.equal(make_picture(model), bare)
    assert not torch.equal(make_picture(model, Lora(tmp_path / "text.safetensors")), bare)
