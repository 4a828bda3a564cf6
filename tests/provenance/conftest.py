"""Certificates for tests, made once."""

from pathlib import Path

import pytest

from provenance.trial import TrialFiles, make_trial


@pytest.fixture(scope="session")
def trial(tmp_path_factory: pytest.TempPathFactory) -> TrialFiles:
    return make_trial(tmp_path_factory.mktemp("trial"))


@pytest.fixture(scope="session")
def expired(tmp_path_factory: pytest.TempPathFactory) -> TrialFiles:
    return make_trial(tmp_path_factory.mktemp("expired"), days=-1)


@pytest.fixture
def missing(tmp_path: Path) -> Path:
    return tmp_path / "missing.pem"
