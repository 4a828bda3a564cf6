import json
import re
import shutil
from pathlib import Path

import pytest
import torch

from api_schemas.folder_settings import FolderSettings, Offload
from api_schemas.generation import GenerationRequest
from tests.tiny_models import tiny_stable_diffusion_xl
from tests.worker.adapters.families.test_unets import generate_one_tile
from tests.worker.adapters.families.unets import PROMPT
from tests.worker.engine.known_answer import predict
from worker.adapters.add_ons import Lora
from worker.adapters.errors import ModelFolderError, UnsupportedConditionError
from worker.adapters.families.stable_diffusion_xl import load
from worker.adapters.float8 import Float8Linear
from worker.adapters.footprint import weigh
from worker.adapters.model import Conditions
from worker.adapters.placement import (
    multiply_denoisers_in_float8,
    place,
    require_package,
    tell_what_gains_nothing,
)
from worker.adapters.precision import choose_dtypes
from worker.adapters.registry import load_model
from worker.adapters.settings import read_settings
from worker.engine.canvas import Plane, Rectangle
from worker.engine.noise import initial_noise
from worker.engine.plan import DenoisePlan, StagePlan
from worker.settings import WorkerSettings

CPU, GPU = torch.device("cpu"), torch.device("cuda:0")
TOLD = Conditions(PROMPT, "moss", 5.0)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tiny_stable_diffusion_xl(tmp_path / "tiny")
    return tmp_path / "tiny"


def ask(folder: Path, **settings: str) -> Path:
    (folder / "chorale.json").write_text(json.dumps(settings))
    return folder


def make_picture(folder: Path) -> torch.Tensor:
    return generate_one_tile(load_model(str(folder), "cpu").prepare(TOLD))


def test_a_folder_says_in_which_type_it_computes(folder: Path) -> None:
    full = make_picture(folder)
    half = make_picture(ask(folder, dtype="bfloat16"))
    assert load(folder, CPU).pipe.unet.dtype == torch.bfloat16
    assert half.dtype == torch.float32
    assert 0 < (half - full).abs().mean() < 0.1 * full.std()


@pytest.mark.parametrize(
    ("says", "dtype"), [(True, torch.float32), (None, torch.float32), (False, torch.float16)]
)
def test_decoders_that_overflow_in_float16_stay_in_float32(
    folder: Path, says: bool | None, dtype: torch.dtype
) -> None:
    """SDXL's pipeline widens an autoencoder whose folder does not say."""
    assert choose_dtypes(folder, FolderSettings(), GPU) == {"default": torch.bfloat16}
    path = folder / "vae" / "config.json"
    config = json.loads(path.read_text())
    del config["force_upcast"]
    path.write_text(json.dumps(config if says is None else config | {"force_upcast": says}))
    pipe = load(ask(folder, dtype="float16"), CPU).pipe
    assert (pipe.unet.dtype, pipe.vae.dtype) == (torch.float16, dtype)


def test_float8_weights_take_half_the_memory_and_paint_nearly_the_same(folder: Path) -> None:
    full, plain_bytes = make_picture(folder), weigh(str(folder), GPU)
    narrow = make_picture(ask(folder, quantization="float8"))
    assert 0 < (narrow - full).abs().mean() < 0.1 * full.std()
    stored = [each for each in load(folder, CPU).pipe.unet.parameters() if each.dtype == torch.float8_e4m3fn]
    assert len(stored) > 20
    assert weigh(str(folder), GPU) < plain_bytes


def test_products_in_float8_take_less_memory_and_paint_nearly_the_same(folder: Path) -> None:
    full, plain_bytes = make_picture(folder), weigh(str(folder), GPU)
    narrow = make_picture(ask(folder, quantization="float8_products"))
    assert 0 < (narrow - full).abs().mean() < 0.1 * full.std()
    unet = load(folder, CPU).pipe.unet
    saved = sum(part.weight.numel() for part in unet.modules() if isinstance(part, Float8Linear))
    assert weigh(str(folder), GPU) == plain_bytes - saved  # a byte for two
    steers = [
        name for name, part in unet.named_modules() if isinstance(part, Float8Linear) and "norm" in name
    ]
    assert saved > 0
    assert not steers


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_product_in_float8_is_that_of_rows_rounded_to_it(dtype: torch.dtype) -> None:
    """Scaled so that a row's largest is the type's largest, 448."""
    linear, value = torch.nn.Linear(64, 48).to(dtype), torch.randn(2, 5, 64).to(dtype)

    def round_rows(rows: torch.Tensor) -> torch.Tensor:
        scale = rows.double().abs().amax(-1, keepdim=True) / 448
        return (rows.double() / scale).to(torch.float8_e4m3fn).double() * scale

    expected = round_rows(value) @ round_rows(linear.weight).T + linear.bias.double()
    with torch.inference_mode():
        found = Float8Linear(linear)(value)
    torch.testing.assert_close(found.double(), expected, rtol=0.01, atol=0.01)


def test_a_worker_on_a_cpu_says_what_gains_nothing_there(caplog: pytest.LogCaptureFixture) -> None:
    folder = Path("model")
    asked = FolderSettings(graphs=True, quantization="float8")
    tell_what_gains_nothing(folder, asked, GPU)
    tell_what_gains_nothing(folder, FolderSettings(), CPU)
    assert caplog.messages == []
    tell_what_gains_nothing(folder, asked, CPU)
    graphs, quantization = caplog.messages
    assert graphs.startswith("model/chorale.json: graphs true changes nothing on cpu")
    assert quantization.startswith(
        "model/chorale.json: quantization 'float8' takes less memory, but no less time"
    )


def test_products_in_float8_are_refused_where_weights_wait_in_main_memory(folder: Path) -> None:
    settings = FolderSettings(quantization="float8_products", offload="model")
    pipe = load(folder, CPU).pipe
    with pytest.raises(
        ModelFolderError, match=r"'float8_products' does not go with offload 'model'; allowed: 'none'"
    ):
        multiply_denoisers_in_float8(pipe, folder, settings, CPU)


@pytest.mark.parametrize("offload", ["model", "group"])
def test_offloaded_weights_paint_the_same(folder: Path, offload: Offload) -> None:
    """With main memory in the place of the GPU: the way of the weights is the same, the gain is not."""
    family = load(folder, CPU)
    kept = family.encode(TOLD)
    place(family.pipe, offload, CPU)
    moved = family.encode(TOLD)
    stage = StagePlan(DenoisePlan(Plane(16, 16), 16, 0, 0, moving=False, seed=9), 4)
    crops, tile = initial_noise(9, 4, 16, 16)[None], Rectangle(0, 0, 16, 16)
    with torch.inference_mode():
        first, second = (predict(each(stage), crops, 500, [tile], [1]) for each in (kept, moved))
    torch.testing.assert_close(first, second, rtol=0, atol=1e-5)


def test_what_offload_leaves_on_the_device_is_less(folder: Path) -> None:
    everything, networks, layers = (
        weigh(str(ask(folder, offload=offload)), GPU) for offload in ("none", "model", "group")
    )
    assert everything > networks > layers > 0


def test_only_what_is_loaded_has_weight(folder: Path) -> None:
    """Hubs keep weights beside it that the index does not name, or that judge finished pictures."""
    weight = weigh(str(folder), GPU)
    index = json.loads((folder / "model_index.json").read_text())
    judge = {"safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"]}
    (folder / "model_index.json").write_text(json.dumps(index | judge))
    for part in ("vae_1_0", "safety_checker"):
        shutil.copytree(folder / "vae", folder / part)
    assert weigh(str(folder), GPU) == weight > 0


@pytest.mark.parametrize("offload", ["model", "sequential", "group"])
def test_there_is_nothing_to_offload_from_on_a_cpu(folder: Path, offload: str) -> None:
    with pytest.raises(ModelFolderError, match=rf"chorale\.json: offload '{offload}' .* allowed: 'none'"):
        load_model(str(ask(folder, offload=offload)), "cpu")


def test_an_unknown_choice_is_named(folder: Path) -> None:
    with pytest.raises(
        ModelFolderError, match=r'quantization "int3": none, int8, float8 or float8_products$'
    ):
        load_model(str(ask(folder, quantization="int3")), "cpu")


@pytest.mark.parametrize(
    "field",
    ["native_size_px", "tile_sizes_px.0", "default_steps", "max_steps", "default_num_modules"],
)
def test_a_number_that_cannot_be_meant_is_named(tmp_path: Path, field: str) -> None:
    name, _, index = field.partition(".")
    (tmp_path / "chorale.json").write_text(json.dumps({name: [-3] if index else -3}))
    with pytest.raises(ModelFolderError, match=rf"chorale\.json: {field} -3: a whole number from "):
        read_settings(tmp_path)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (
            {"quantisation": "int8"},
            r'quantisation "int8": no such field; known are name, .*quantization, .*cascade',
        ),
        (
            {"cascade": {"step": [8]}},
            r"cascade\.step \[8\]: no such field; known are steps, strength, low_band, enlarges, conditioned, augmentation$",
        ),
        (
            {"latent_rgb": {"weights": [], "bias": [0, 0, 0]}},
            r"latent_rgb\.weights \[\]: no such field; known are weight, bias$",
        ),
        (
            {"guidance_interval": [0.9, 0.2]},
            r"guidance_interval \[0\.9, 0\.2\]: \[start, end\] with start at most",
        ),
    ],
)
def test_what_is_wrong_is_named_with_what_is_allowed(
    tmp_path: Path, content: dict[str, object], says: str
) -> None:
    (tmp_path / "chorale.json").write_text(json.dumps(content))
    with pytest.raises(ModelFolderError, match=rf"^{re.escape(str(tmp_path))}/chorale\.json: (.*; )?{says}"):
        read_settings(tmp_path)


def test_what_the_bundled_model_says_is_known() -> None:
    assert read_settings(Path(WorkerSettings().model)).name == "chorale-textures"


def test_a_missing_package_is_named() -> None:
    require_package("torch", "a test")
    with pytest.raises(ModelFolderError, match="a test needs the package no_such_package: pip install"):
        require_package("no_such_package", "a test")


def test_what_changes_a_models_layers_needs_them_plain(folder: Path) -> None:
    assert load_model(str(folder), "cpu").card.supports == ["lora", "controlnet", "ip_adapter"]
    model = load_model(str(ask(folder, quantization="float8")), "cpu")
    assert model.card.supports == ["controlnet"]
    with pytest.raises(UnsupportedConditionError, match=r"lora: this .* add-ons that it takes: controlnet"):
        model.prepare(Conditions(PROMPT, loras=(Lora(folder),)))


@pytest.mark.parametrize("content", [b"", b"weights", (1 << 40).to_bytes(8, "little") + b"{", b"\xff" * 20])
def test_a_damaged_header_is_named(tmp_path: Path, content: bytes) -> None:
    part = tmp_path / "unet"
    part.mkdir()
    index = {"_class_name": "StableDiffusionPipeline", "unet": ["diffusers", "UNet2DConditionModel"]}
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    (part / "diffusion_pytorch_model.safetensors").write_bytes(content)
    with pytest.raises(
        ModelFolderError, match=r"unet/diffusion_pytorch_model.safetensors is no safetensors file"
    ):
        weigh(str(tmp_path), torch.device("cpu"))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({"native_size_px": 100}, "native_size_px 100: multiples of 8 up to 4096, as the model has them"),
        ({"tile_sizes_px": [64, 66]}, "tile_sizes_px.1 66: multiples of 8 up to 4096, as the model has them"),
        (
            {"latent_rgb": {"weight": [[1]] * 3, "bias": [0] * 3}},
            "latent_rgb.weight 1 numbers: 4 in each row, as the latent has channels",
        ),
    ],
)
def test_what_does_not_fit_the_model_is_named(folder: Path, content: dict[str, object], says: str) -> None:
    (folder / "chorale.json").write_text(json.dumps(content))
    with pytest.raises(ModelFolderError, match=re.escape(f"chorale.json: {says}")):
        load_model(str(folder), "cpu")


def test_an_interval_holds_for_those_who_ask_for_guidance(folder: Path) -> None:
    """Where there is none by default, that is no fault."""
    (folder / "chorale.json").write_text('{"guidance_interval": [0.2, 0.9], "default_guidance_scale": 1}')
    card = load_model(str(folder), "cpu").card
    for scale, interval in ((None, (0.0, 1.0)), (5.0, (0.2, 0.9))):
        assert card.choose_guidance_interval(GenerationRequest(guidance_scale=scale)) == interval
