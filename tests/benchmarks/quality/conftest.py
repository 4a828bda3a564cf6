"""Pictures of noise that pass for a data set and for a set of large photographs."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.quality.prompts import TEXTURES


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tileable picture for each texture, and two landscapes; 512 px."""
    rows = [{"category": category, "tileable": True} for category in TEXTURES.values()]
    rows += [{"category": "landscape", "tileable": False}] * 2
    return write_pictures(tmp_path_factory.mktemp("data"), 512, rows)


@pytest.fixture(scope="session")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two photographs, of which one is held out, and two that are none or show no scene; 1024 px."""
    kinds = [
        ("coast", "train", False),
        ("lake", "heldout", False),
        ("surface", "train", False),
        ("lake", "train", True),
    ]
    rows = [
        {"category": "landscape", "kind": kind, "split": split, "rendered": rendered}
        for kind, split, rendered in kinds
    ]
    return write_pictures(tmp_path_factory.mktemp("large"), 1024, rows)


def write_pictures(folder: Path, side_px: int, rows: list[dict[str, object]]) -> Path:
    """Each is noise of another grain, the same in every cell of 512 px."""
    lines: list[str] = []
    for index, row in enumerate(rows):
        chance = np.random.default_rng(index)
        pixels = chance.integers(
            0, 256, (512 // 2 ** (index % 3), 512 // 2 ** (index % 3), 3), dtype=np.uint8
        )
        Image.fromarray(pixels).resize((side_px, side_px), Image.Resampling.BICUBIC).save(
            folder / f"{index}.png"
        )
        lines.append(json.dumps({"file": f"{index}.png", "caption": f"noise {index}", **row}))
    (folder / "captions.jsonl").write_text("\n".join(lines))
    return folder
