"""Pictures and sizes for the training line: all of it runs on the CPU in seconds."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from training.denoiser import DenoiserOptions

CATEGORIES = ("grass", "brick")


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """Twelve pictures of noise with captions."""
    folder = tmp_path / "dataset"
    (folder / "images").mkdir(parents=True)
    rows = [_make_picture(folder, index) for index in range(12)]
    (folder / "captions.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    return folder


def _make_picture(folder: Path, index: int) -> dict[str, object]:
    pixels = np.random.default_rng(index).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    name = f"images/{index}.png"
    Image.fromarray(pixels).save(folder / name)
    category = CATEGORIES[index % 2]
    return {"file": name, "caption": f"green {category}", "category": category, "tileable": True}


@pytest.fixture
def tiny() -> DenoiserOptions:
    """A denoiser of a few thousand weights."""
    return DenoiserOptions(widths=(16, 16, 16), batch=2)
