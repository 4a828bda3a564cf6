"""Seconds that a PNG takes by `worker.png_file`, and by libvips' own writer, in turns.

    python -m benchmarks.png --side 4096                  # noise of deviation 20 around grey, about what photographs cost
    python -m benchmarks.png PICTURE --side 4096 --rounds 5

Medians over rounds of seconds and of processor seconds, which count all threads; rows come from a file, as a job's do.
"""

import argparse
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
import pyvips

from worker.png_file import write_png


def main() -> None:
    options = parse()
    with tempfile.TemporaryDirectory(prefix="ch-") as name:
        rows, path = Path(name) / "rows.tif", Path(name) / "image.png"
        draw(options.picture, options.side).write_to_file(str(rows), bigtiff=True)
        ways: dict[str, Callable[[], None]] = {
            "libvips": lambda: open_rows(rows).write_to_file(f"{path}[compression=2,filter=sub]"),
            "png_file": lambda: write_png(open_rows(rows), path, 300, b"", b""),
        }
        found: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
        sizes: dict[str, int] = {}
        for _ in range(options.rounds):
            for way, write in ways.items():
                found[way].append(measure(write))
                sizes[way] = path.stat().st_size
        for way, rounds in found.items():
            seconds, processor_s = (median(each) for each in zip(*rounds, strict=True))
            print(f"{way:9s} {seconds:6.2f} s, {processor_s:6.2f} s of CPU, {sizes[way] / 1e6:6.1f} MB")


def draw(picture: Path | None, side_px: int) -> pyvips.Image:
    if picture is None:
        noise = np.random.default_rng(0).normal(128, 20, (side_px, side_px, 3))
        return pyvips.Image.new_from_array(noise.clip(0, 255).astype(np.uint8))
    image = pyvips.Image.new_from_file(str(picture))
    return image.resize(side_px / min(image.width, image.height)).crop(0, 0, side_px, side_px)


def open_rows(path: Path) -> pyvips.Image:
    return pyvips.Image.new_from_file(str(path), access="sequential")


def measure(write: Callable[[], None]) -> tuple[float, float]:
    """(seconds, processor seconds)."""
    began, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF)
    write()
    after = resource.getrusage(resource.RUSAGE_SELF)
    return time.perf_counter() - began, sum(after[:2]) - sum(before[:2])


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("picture", type=Path, nargs="?")
    parser.add_argument("--side", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=3)
    return parser.parse_args()


if __name__ == "__main__":
    main()
