"""The captioned pictures: reading, checking and the deterministic held-out split."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

HELD_OUT_SHARE = 0.10
# Weights are CC BY-SA: what they are made from must allow it.
UNFIT_LICENSES = frozenset(["gpl", "lgpl"])


class DatasetError(Exception):
    """A dataset folder that cannot be trained on; the message says what is wrong with it."""


@dataclass(frozen=True, slots=True)
class Picture:
    """One captioned picture.

    Attributes:
        path: absolute.
        source: the file that it was made from.
        split: `train` or `heldout`, where the data set says so itself.
        license_class: such as `cc-by-sa`.
        tint: what it is painted in.
    """

    path: Path
    caption: str
    category: str
    source: str
    tileable: bool
    tint: tuple[float, float, float] | None = None
    split: str = ""
    license_class: str = ""

    @property
    def held_out(self) -> bool:
        """As the data set says, or about one source in ten, by hash: all crops of one source are on the same side."""
        if self.split:
            return self.split == "heldout"
        digest = hashlib.sha256(self.source.encode()).digest()
        return int.from_bytes(digest[:4], "big") / 2**32 < HELD_OUT_SHARE

    @property
    def for_training(self) -> bool:
        return not self.held_out and self.license_class not in UNFIT_LICENSES


def read_pictures(folder: Path) -> list[Picture]:
    """Read `captions.jsonl`, one JSON object a line, in the order of the file.

    Raises:
        DatasetError: no captions, an unreadable line, or a line whose picture is missing.
    """
    captions = folder / "captions.jsonl"
    if not captions.is_file():
        raise DatasetError(f"{folder} holds no captions.jsonl: training needs one caption for every picture")
    lines = captions.read_text(encoding="utf-8").splitlines()
    pictures = [
        _read_line(folder, number, line) for number, line in enumerate(lines, start=1) if line.strip()
    ]
    if not pictures:
        raise DatasetError(f"{captions} is empty")
    return pictures


def _read_line(folder: Path, number: int, line: str) -> Picture:
    try:
        row = json.loads(line)
        picture = Picture(
            path=folder / row["file"],
            caption=row["caption"],
            category=row["category"],
            source=f"{row.get('source_package', '')}/{row.get('original_path', row['file'])}",
            tileable=bool(row.get("tileable", False)),
            split=row.get("split", ""),
            license_class=row.get("license_class", ""),
        )
    except (ValueError, KeyError, TypeError) as error:
        raise DatasetError(f"captions.jsonl line {number}: {error!r}") from error
    if not picture.caption.strip():
        raise DatasetError(f"captions.jsonl line {number}: {row['file']} has an empty caption")
    if not picture.path.is_file():
        raise DatasetError(f"captions.jsonl line {number} names {row['file']}, which is not in {folder}")
    return picture


def read_folders(folders: list[Path]) -> list[Picture]:
    """The pictures of several shards, one after another."""
    return [picture for folder in folders for picture in read_pictures(folder)]
