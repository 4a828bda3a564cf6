"""The operator's list: what gets on it, what a worker makes of it, and what a changed file does."""

import hashlib
import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from api_schemas.add_ons import ControlSettings, LoraChoice
from api_schemas.allow_list import AllowList
from api_schemas.generation import GenerationRequest, PicturePart
from chorale.allow_list import AllowListFile
from chorale.client import Client
from chorale.errors import AllowListError, InvalidRequestError, JobEndedError
from chorale.protocol import result_of
from tests.chorale.commands import Done, run, run_alone
from tests.chorale.test_local import chorale_up
from tests.tiny_add_ons import tiny_control_net
from tests.tiny_models import tiny_stable_diffusion
from worker.adapters.errors import DamagedModelError, ModelFolderError
from worker.adapters.registry import load_found
from worker.adapters.settings import read_settings
from worker.adapters.source import ModelSource, find_model

WEIGHTS = "diffusion_pytorch_model.safetensors"
DIGEST = hashlib.sha256(b"weights").hexdigest()


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A folder that looks like a model."""
    folder = tmp_path / "model"
    (folder / "unet").mkdir(parents=True)
    index = {"_class_name": "StableDiffusionPipeline", "unet": ["diffusers", "UNet2DConditionModel"]}
    (folder / "model_index.json").write_text(json.dumps(index))
    (folder / "unet" / WEIGHTS).write_bytes(b"weights")
    (folder / "README.md").write_text("no weights")
    return folder


def models(folder: Path, *arguments: str) -> Done:
    return run("models", *arguments, "--data", str(folder / "data"), folder=folder)


def listed(folder: Path) -> AllowList:
    return AllowList.model_validate_json((folder / "data" / "models.json").read_bytes())


def source(folder: Path, name: str) -> ModelSource:
    return ModelSource(name, folder / "data" / "models.json")


def test_an_entry_holds_a_digest_of_each_file_that_decides(model: Path, tmp_path: Path) -> None:
    done = models(tmp_path, "add", "mine", str(model))
    assert (done.returncode, done.stdout) == (0, f"mine: 2 files of {model}\n")
    (entry,) = listed(tmp_path).models.values()
    assert sorted(entry.files) == ["model_index.json", f"unet/{WEIGHTS}"]
    assert entry.files[f"unet/{WEIGHTS}"] == DIGEST
    shown = models(tmp_path, "list").stdout
    assert "mine" in shown
    assert str(model) in shown
    assert models(tmp_path, "remove", "mine").returncode == 0
    assert listed(tmp_path).models == {}
    gone = models(tmp_path, "remove", "mine")
    assert (gone.returncode, gone.stderr) == (1, "chorale: mine is not on the allow-list; listed are none\n")


def test_what_would_run_code_is_refused(model: Path, tmp_path: Path) -> None:
    weights = (model / "unet" / WEIGHTS).rename(model / "unet" / "diffusion_pytorch_model.bin")
    done = models(tmp_path, "add", "mine", str(model))
    assert (done.returncode, "only pickled weights (unet/diffusion_pytorch" in done.stderr) == (1, True)
    weights.rename(model / "unet" / WEIGHTS)
    for content, says in (("{oops", "Invalid JSON: "), ("[]", "this is no object")):
        (model / "model_index.json").write_text(content)
        assert f"model_index.json: {says}" in models(tmp_path, "add", "mine", str(model)).stderr
    (model / "model_index.json").write_text('{"_class_name": "A", "unet": ["my_own_code", "Network"]}')
    assert "unet is of my_own_code" in models(tmp_path, "add", "mine", str(model)).stderr
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("add", "../up", "model"), "letters, digits"),
        (("add", "mine", "nowhere"), "nowhere: there is no such file or folder"),
        (("add", "mine", "model/model_index.json"), "model_index.json: a model is a folder"),
        (("add", "mine", "some/one"), "only folders are listed; a model of that name on the hub needs no"),
        (("add", "mine", "some/one"), "chorale up --model some/one"),
        (("add", "mine", "model/none"), "model/none is no folder"),
        (("add", "mine", "model/unet"), "model_index.json is missing"),
        (("add", "mine", "model", "--base", "toy"), "a model has no --base"),
        (("add", "mine", "model", "--kind", "lora"), "needs --base"),
        (("add", "mine", "model", "--control", "tile"), "is for --kind controlnet; this is a model"),
        (("add", "mine", "model", "--kind", "lora", "--base", "flox"), "no such family; known are stable-"),
        (("add", "mine", "model", "--kind", "controlnet", "--base", "toy"), "config.json is missing"),
        (("add", "mine", "model/unet/diffusion_pytorch_model.safetensors"), "a model is a folder"),
    ],
)
def test_what_is_not_sound_is_refused_in_one_line(
    model: Path, tmp_path: Path, arguments: tuple[str, ...], says: str
) -> None:
    done = models(tmp_path, *arguments)
    assert done.returncode == 1
    assert says in done.stderr
    assert len(done.stderr.splitlines()) == 1


WRONG: list[tuple[object, str]] = [
    ({"guidance_interval": [0.9, 0.1]}, "guidance_interval [0.9, 0.1]: [start, end] with start at most end"),
    ({"tile_sizes_px": [5]}, "tile_sizes_px.0 5: a whole number from 64 to 4096"),
    ({"native_size_px": 7}, "native_size_px 7: a whole number from 64 to 4096"),
    ({"native_size_px": "512"}, 'native_size_px "512": a whole number from 64 to 4096'),
    ({"native_size_px": True}, "native_size_px true: a whole number from 64 to 4096"),
    ({"default_steps": 30, "max_steps": 20}, "default_steps 30: at most max_steps, which is 20"),
    ({"max_steps": 10**30}, f"max_steps {10**30}: a whole number from 1 to 200"),
    ({"default_guidance_scale": float("nan")}, "default_guidance_scale NaN: a number from 0 to 30"),
    ({"default_guidance_scale": float("inf")}, "default_guidance_scale Infinity: a number from 0 to 30"),
    ({"cascade": {"steps": [0]}}, "cascade.steps.0 0: a whole number from 1 to 200"),
    ({"cascade": {"steps": []}}, "cascade.steps []: a list of at least 1 item, each a whole number from 1 to 200"),
    ({"cascade": {"strength": float("nan")}}, "cascade.strength NaN: a number from 0.05 to 1"),
    ({"cascade": []}, "cascade []: an object with the fields steps, strength, "),
    ({"scene_words": {"weights": {}}}, "scene_words.bias: required, a number of at most 0"),
    ({"scene_words": {"bias": 0, "weights": {"much": "lake"}}}, 'scene_words.weights.much "much": a number as its name'),
    ({"scene_words": {"bias": 0, "weights": {"1": 2}}}, "scene_words.weights.1 2: text"),
    ({"latent_rgb": {"weight": [[1], [1], [1, 2]], "bias": [0, 0, 0]}}, "latent_rgb.weight [[1], [1], [1, 2]]: three rows of one length"),
    ({"latent_rgb": {"weight": [[1], [1], []], "bias": [0, 0, 0]}}, "latent_rgb.weight.2 []: a list of at least 1 item"),
    ({"latent_rgb": {"weight": [[1], [1], [1]], "bias": [0, 0, float("nan")]}}, "latent_rgb.bias.2 NaN: a number"),
    ({"compile": "yes"}, 'compile "yes": true or false'),
    ({"license": 3}, "license 3: text"),
    ({"name": ""}, 'name "": text of 1 to 200 characters'),
    ({"offload": "disk"}, 'offload "disk": none, model, sequential or group'),
    ({"native_size": 512}, "native_size 512: no such field; known are name, "),
    ([], "[]: an object with the fields name, "),
]  # fmt: skip


@pytest.mark.parametrize(("content", "says"), WRONG)
def test_settings_that_no_worker_would_take_are_refused(
    model: Path, tmp_path: Path, content: object, says: str
) -> None:
    (model / "chorale.json").write_text(json.dumps(content))
    with pytest.raises(AllowListError) as refused:
        AllowListFile(tmp_path / "models.json").add("mine", model, "model", None)
    assert str(refused.value).startswith(f"{model}/chorale.json: {says}")
    with pytest.raises(ModelFolderError) as at_start:
        read_settings(model)
    assert str(at_start.value) == str(refused.value)


def test_a_changed_missing_or_added_file_is_named(model: Path, tmp_path: Path) -> None:
    models(tmp_path, "add", "mine", str(model))
    cpu = torch.device("cpu")
    weights = model / "unet" / WEIGHTS
    weights.write_bytes(b"other")
    other = hashlib.sha256(b"other").hexdigest()
    with pytest.raises(DamagedModelError, match=f"{WEIGHTS} has SHA-256 {other}, expected {DIGEST}"):
        load_found(find_model(source(tmp_path, "mine")), cpu)
    weights.unlink()
    with pytest.raises(DamagedModelError, match=WEIGHTS + " is missing; expected .* " + DIGEST):
        load_found(find_model(source(tmp_path, "mine")), cpu)
    weights.write_bytes(b"weights")
    (model / "unet" / "config.json").write_bytes(b"")
    with pytest.raises(DamagedModelError, match=r"not on the allow-list: unet/config\.json; .* add it again"):
        load_found(find_model(source(tmp_path, "mine")), cpu)


def test_a_name_that_is_not_listed_names_those_that_are(model: Path, tmp_path: Path) -> None:
    models(tmp_path, "add", "mine", str(model))
    with pytest.raises(ModelFolderError, match=r"nobody is neither .* listed are mine"):
        find_model(source(tmp_path, "nobody"))
    (tmp_path / "data" / "models.json").write_text('{"models": 3}')
    with pytest.raises(ModelFolderError, match=r"models.json is no allow-list"):
        find_model(source(tmp_path, "mine"))


def test_add_ons_fit_their_family_and_are_checked_when_opened(model: Path, tmp_path: Path) -> None:
    weights = model / "unet" / WEIGHTS
    for name, kind, base in (("ink", "lora", "toy"), ("face", "ip_adapter", "toy"), ("xl", "lora", "flux")):
        assert models(tmp_path, "add", name, str(weights), "--kind", kind, "--base", base).returncode == 0
    found = find_model(source(tmp_path, "toy"))
    card = load_found(found, torch.device("cpu")).card
    assert (card.loras, card.controlnets, card.ip_adapters) == (["ink"], [], ["face"])
    add_ons = found.add_ons("toy")
    assert add_ons.open("lora", "ink").read_bytes() == b"weights"
    for kind, name in (("lora", "xl"), ("lora", "face"), ("controlnet", "ink")):
        with pytest.raises(ModelFolderError, match=name):
            add_ons.open(kind, name)
    weights.write_bytes(b"other")
    with pytest.raises(DamagedModelError, match=DIGEST):
        add_ons.open("lora", "ink")
    weights.unlink()
    assert found.add_ons("toy").names("lora") == []


def test_a_listed_model_is_served_by_its_name_until_it_is_changed(tmp_path: Path) -> None:
    folder, edges, ink = tmp_path / "folder", tmp_path / "edges", tmp_path / "ink.safetensors"
    pipe = tiny_stable_diffusion(folder)
    tiny_control_net(edges, pipe)
    ink.write_bytes(b"weights")
    Image.linear_gradient("L").save(tmp_path / "gradient.png")
    allow_list = AllowListFile(tmp_path / "data" / "models.json")
    allow_list.add("tiny", folder, "model", None)
    allow_list.add("ink", ink, "lora", "stable-diffusion")
    added = models(
        tmp_path,
        "add",
        "edges",
        str(edges),
        "--kind",
        "controlnet",
        "--base",
        "stable-diffusion",
        "--control",
        "tile",
    )
    assert added.returncode == 0, added.stderr
    request = GenerationRequest(prompt="a", width_px=256, height_px=256, steps=1, model="tiny", seed=1)
    controlled = request.model_copy(update={"control": ControlSettings(name="edges", scale=2.0)})
    pictures: dict[PicturePart, Path] = {"control_image": tmp_path / "gradient.png"}
    with chorale_up(tmp_path / "data", "tiny") as (_, url), Client(url) as client:
        (card,) = client.models()
        assert (card.name, card.loras, card.controlnets) == ("tiny", ["ink"], ["edges"])
        assert card.tile_controlnet == "edges"
        with pytest.raises(InvalidRequestError, match=r"loras.0.name brush: one of: ink"):
            client.create(request.model_copy(update={"loras": [LoraChoice(name="brush")]}))
        plain = client.create(request)
        guided = client.create(controlled, pictures=pictures)
        digests = {result_of(client.wait(job.id, timeout_s=60)).sha256 for job in (plain, guided)}
        assert len(digests) == 2  # the control picture had an effect
        (edges / "config.json").write_text((edges / "config.json").read_text() + " ")
        with pytest.raises(JobEndedError, match=r"edges: config.json has SHA-256") as ended:
            client.wait(client.create(controlled, pictures=pictures).id, timeout_s=60)
        assert ended.value.job.error is not None
        assert (ended.value.job.error.code, ended.value.job.error.retryable) == ("model_refused", False)
        assert str(tmp_path) not in ended.value.job.error.message
    settings = folder / "unet" / "config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"sample_size": 64}))
    refused = run_alone(
        "up", "--data", str(tmp_path / "data"), "--port", "0", "--model", "tiny", folder=tmp_path
    )
    assert refused.returncode == 1
    assert "unet/config.json has SHA-256" in refused.stderr


def test_settings_that_are_no_file_are_refused(model: Path, tmp_path: Path) -> None:
    (model / "chorale.json").mkdir()
    with pytest.raises(AllowListError, match=r"chorale\.json cannot be read: Is a directory"):
        AllowListFile(tmp_path / "models.json").add("mine", model, "model", None)
