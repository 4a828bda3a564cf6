"""Tiny models of every family."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.worker.adapters.attention.tiled import BUILDERS
from worker.adapters.model import LoadedModel
from worker.adapters.registry import load_model


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], LoadedModel]:
    """Each is built and loaded once."""
    root, loaded = tmp_path_factory.mktemp("models"), dict[str, LoadedModel]()

    def find(name: str) -> LoadedModel:
        if name not in loaded:
            BUILDERS[name](root / name)
            loaded[name] = load_model(str(root / name), "cpu")
        return loaded[name]

    return find


@pytest.fixture
def fresh(tmp_path: Path) -> Callable[[str], LoadedModel]:
    """One that a test may spoil."""

    def build(name: str) -> LoadedModel:
        if not (tmp_path / name).exists():
            BUILDERS[name](tmp_path / name)
        return load_model(str(tmp_path / name), "cpu")

    return build
