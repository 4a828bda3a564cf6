"""Pictures as they were: to a level everywhere, to the byte where the kernels are those of the record."""

import json
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from tests.reference.cases import Case, list_cases
from tests.reference.record import DIGESTS, PICTURES, digest, name_environment, thin

CASES = list(list_cases())


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Kernels share out their work by it."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_picture_is_as_it_was(case: Case) -> None:
    made = case.make()
    with np.load(PICTURES) as pictures:
        assert np.abs(thin(made).astype(int) - pictures[case.name]).max() <= 1
    digests = json.loads(DIGESTS.read_text()).get(name_environment())
    assert digests is None or digest(made) == digests[case.name]


def test_ways_that_must_not_matter_have_one_digest() -> None:
    for digests in json.loads(DIGESTS.read_text()).values():
        assert set(digests) == {case.name for case in CASES}
        assert digests["two ranks"] == digests["stable-diffusion, flat"]
        assert digests["killed and resumed"] == digests["stable-diffusion, cascade"]
        assert digests["fixed grid"] != digests["stable-diffusion, flat"]
