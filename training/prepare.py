"""Check a captioned folder, split it, and shrink the training pictures into shards that travel well."""

import argparse
import io
import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from training.dataset import DatasetError, Picture, read_pictures


@dataclass(frozen=True, slots=True)
class Encoded:
    """A picture as it goes into a shard: WebP bytes, re-encoded for training, untouched if held out."""

    picture: Picture
    data: bytes


def prepare(folder: Path, out: Path, quality: int, shards: int) -> None:
    """Write `out/shard-N/` with images and captions.jsonl.

    Raises:
        DatasetError: the captions are unusable, or pictures are broken (all of them are named).
    """
    pictures = read_pictures(folder)
    with ThreadPoolExecutor() as pool:
        results = list(pool.map(partial(_encode, quality=quality), pictures))
    broken = [result for result in results if isinstance(result, str)]
    if broken:
        raise DatasetError(
            f"{len(broken)} of {len(pictures)} pictures cannot be read: " + "; ".join(broken[:10])
        )
    encoded = [result for result in results if isinstance(result, Encoded)]
    for index in range(shards):
        _write_shard(out / f"shard-{index}", encoded[index::shards])
    _report(encoded)


def _encode(picture: Picture, quality: int) -> Encoded | str:
    try:
        with Image.open(picture.path) as image:
            pixels = image.convert("RGB")
    except (UnidentifiedImageError, OSError) as error:
        return f"{picture.path.name} ({error})"
    if picture.held_out:
        return Encoded(picture, picture.path.read_bytes())
    buffer = io.BytesIO()
    pixels.save(buffer, "WEBP", quality=quality, method=4)
    return Encoded(picture, min(buffer.getvalue(), picture.path.read_bytes(), key=len))


def _write_shard(folder: Path, encoded: list[Encoded]) -> None:
    (folder / "images").mkdir(parents=True, exist_ok=True)
    with (folder / "captions.jsonl").open("w", encoding="utf-8") as lines:
        for item in encoded:
            name = f"images/{item.picture.path.name}"
            (folder / name).write_bytes(item.data)
            lines.write(json.dumps(_describe(item.picture, name)) + "\n")


def _describe(picture: Picture, name: str) -> dict[str, object]:
    package, _, original = picture.source.partition("/")
    return {
        "file": name,
        "caption": picture.caption,
        "category": picture.category,
        "source_package": package,
        "original_path": original,
        "tileable": picture.tileable,
    }


def _report(encoded: list[Encoded]) -> None:
    held_out = sum(item.picture.held_out for item in encoded)
    size = sum(len(item.data) for item in encoded)
    print(f"{len(encoded) - held_out} for training, {held_out} held out, {size / 1e6:.1f} MB")


def main() -> None:
    """Command line: `python -m training.prepare DATASET OUT`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--quality", type=int, default=80, help="WebP quality of the training pictures")
    parser.add_argument("--shards", type=int, default=2)
    options = parser.parse_args()
    try:
        prepare(options.dataset, options.out, options.quality, options.shards)
    except DatasetError as error:
        raise SystemExit(f"prepare: {error}") from error


if __name__ == "__main__":
    main()
