"""A worker that refuses its model: whoever started it reads why, once, and nobody tries again.

What is refused, and in which words, is said in tests of the model's folder.
"""

from pathlib import Path

from tests.chorale.commands import run, run_alone
from tests.local_stack import find_all
from tests.tiny_models import tiny_stable_diffusion


def test_chorale_up_says_why_a_model_is_refused(tmp_path: Path) -> None:
    """A damaged file, of which transformers and diffusers say much."""
    model, data = tmp_path / "tiny", tmp_path / "data"
    tiny_stable_diffusion(model)
    (model / "unet" / "config.json").write_text("{oops")
    says = f"model {model} is refused: {model} cannot be loaded as a StableDiffusionPipeline: "
    done = run_alone("up", "--data", str(data), "--port", "0", "--model", str(model), folder=tmp_path)
    assert done.returncode == 1
    assert f"chorale: worker-1 ended with code 2: {says}" in done.stderr
    assert done.stderr.count(says) == 1
    assert "Traceback" not in done.stderr
    assert (data / "logs" / "worker-1.log").read_text().count(says) == 1  # it was not started again
    assert find_all(str(data)) == []


def test_chorale_generate_says_why_a_model_is_refused(tmp_path: Path) -> None:
    """For want of memory, and for a setting out of its limits."""
    wanted = {"CHORALE_MODEL": "toy:weights_gib=900000", "CHORALE_DEVICES": "cpu"}
    done = run_alone("generate", "moss", folder=tmp_path, **wanted)
    assert done.returncode == 1
    assert (
        "chorale: worker-1 ended with code 2: model toy:weights_gib=900000 is refused: devices:"
        in done.stderr
    )
    assert "needs about 900000.2 GiB" in done.stderr
    done = run("generate", "moss", folder=tmp_path, CHORALE_MODEL="toy", CHORALE_LEASE_S="1")
    assert done.returncode == 2
    assert done.stderr == 'chorale: CHORALE_LEASE_S="1": a whole number from 2 to 60\n'


def test_settings_are_refused_before_anything_is_started(tmp_path: Path) -> None:
    """Each by its option where it was typed, else by its variable."""
    queue = {"CHORALE_REDIS_URL": "redis://h:x"}
    done = run("up", "--data", "data", "--port", "0", "--root-path", "x", folder=tmp_path, **queue)
    assert done.returncode == 2
    assert done.stderr.startswith('chorale: CHORALE_REDIS_URL="redis://h:x": redis://host:port/number')
    assert '; --root-path "x": a path that begins with /' in done.stderr
    assert done.stderr.count("\n") == done.stderr.count("redis://h:x") == 1
    assert list((tmp_path / "data" / "logs").iterdir()) == []


def test_what_a_worker_refuses_is_known_before_it_is_started(tmp_path: Path) -> None:
    models = {"CHORALE_MODELS_FILE": "none.json", "CHORALE_ROOT_PATH": "/a/../b"}
    done = run("up", "--data", "data", "--port", "0", "--model", "nope", folder=tmp_path, **models)
    assert done.returncode == 2
    assert 'CHORALE_ROOT_PATH="/a/../b": ' in done.stderr
    assert "; --model nope is refused: nope is neither a model folder nor on the allow-list" in done.stderr
    assert list((tmp_path / "data" / "logs").iterdir()) == []
    done = run("worker", "--devices", "x", folder=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("chorale: --devices \"x\": 'x' is not a list of devices; allowed: auto")


def test_an_address_for_others_without_keys_is_refused_before_parts_are_started(tmp_path: Path) -> None:
    done = run("up", "--data", "data", "--port", "0", "--host", "0.0.0.0", folder=tmp_path, CHORALE_MODLE="x")
    assert done.returncode == 2
    assert "CHORALE_MODLE is no setting, and changes nothing: is CHORALE_MODEL meant?" in done.stderr
    assert "chorale: --host 0.0.0.0 is open to the network, and there is no API key yet" in done.stderr
    assert [log.name for log in (tmp_path / "data" / "logs").iterdir()] == ["queue.log"]
