"""A worker that refuses its model: whoever started it reads why, once, and nobody tries again.

What is refused, and in which words, is said in tests of the model's folder.
"""

from pathlib import Path

from tests.chorale.commands import run_alone
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
    done = run_alone("generate", "moss", folder=tmp_path, CHORALE_MODEL="toy", CHORALE_LEASE_S="1")
    assert done.returncode == 1
    assert 'ended with code 2: CHORALE_LEASE_S="1": a whole number from 2 to 60' in done.stderr
