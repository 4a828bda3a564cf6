from pathlib import Path

import pytest
import torch

from tests.tiny_add_ons import tiny_ip_adapter
from tests.worker.adapters.families.test_unets import generate_one_tile, make_picture
from tests.worker.adapters.families.unets import ADD_ON_CASES, NOISE, PROMPT, SEED, UNetCase, ask
from worker.adapters.add_ons import IpAdapter, to_pil
from worker.adapters.errors import ModelFolderError
from worker.adapters.model import Conditions, LoadedModel
from worker.adapters.registry import load_model
from worker.engine.noise import initial_noise

PICTURE = torch.randint(256, (3, 50, 90), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def conditions(scale: float, chosen: IpAdapter | None) -> Conditions:
    return Conditions(PROMPT, "", scale, ip_adapter=chosen)


@pytest.mark.parametrize("case", ADD_ON_CASES, ids=lambda case: case.name)
def test_one_tile_equals_diffusers_own_pipeline_and_is_forgotten_afterwards(
    case: UNetCase, tmp_path: Path
) -> None:
    pipe = case.build(tmp_path / "tiny")
    folder = tiny_ip_adapter(tmp_path / "adapter", pipe)
    pipe.load_ip_adapter(str(folder), "", "tiny.safetensors", image_encoder_folder="image_encoder")
    pipe.set_ip_adapter_scale(0.7)
    model = load_model(str(tmp_path / "tiny"), "cpu")
    for scale in (1.0, 5.0):
        theirs = ask(pipe, initial_noise(SEED, *NOISE), ("", scale), ip_adapter_image=to_pil(PICTURE))
        bare = generate_one_tile(model.prepare(conditions(scale, None)))
        prepared = model.prepare(conditions(scale, IpAdapter(folder, PICTURE, 0.7)))
        ours = generate_one_tile(prepared)
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)
        assert (ours - bare).abs().max() > 1e-3
    assert (make_picture(prepared, 1).int() - make_picture(prepared, 3).int()).abs().max() <= 1
    assert torch.equal(generate_one_tile(model.prepare(conditions(scale, None))), bare)
    again = generate_one_tile(model.prepare(conditions(scale, IpAdapter(folder, PICTURE, 0.7))))
    assert torch.equal(again, ours)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    ADD_ON_CASES[0].build(folder)
    return load_model(str(folder), "cpu")


def test_a_folder_that_does_not_fit_is_refused_and_leaves_no_trace(
    model: LoadedModel, tmp_path: Path
) -> None:
    bare = generate_one_tile(model.prepare(conditions(5.0, None)))
    wider = ADD_ON_CASES[1].build(tmp_path / "wider")
    folder = tiny_ip_adapter(tmp_path / "adapter", wider)
    with pytest.raises(ModelFolderError, match=r"tiny\.safetensors is no IP-Adapter for this model"):
        model.prepare(conditions(5.0, IpAdapter(folder, PICTURE)))
    (folder / "image_encoder").rename(folder / "elsewhere")
    with pytest.raises(ModelFolderError, match="needs a folder image_encoder beside it"):
        model.prepare(conditions(5.0, IpAdapter(folder, PICTURE)))
    assert torch.equal(generate_one_tile(model.prepare(conditions(5.0, None))), bare)
