"""What it costs to sign and mark a picture, and what the mark survives.

    python -m benchmarks.provenance cost --side 8192
    python -m benchmarks.provenance survival PHOTOS --side 1024 4096 --count 20

- `cost`: a PNG of noise, which is as large as PNGs get, is signed, and signed again as the child of a signed one; and
  written from its rows with and without the mark. Each in a process of its own: seconds, and the most memory that it had.
- `survival`: each photo is cut (or enlarged, and cut) to a square, marked, and looked for again: as it is, as JPEG 80,
  halved (Lanczos), halved as JPEG 80, at 70 % as JPEG 80, a quarter of its area cut out as JPEG 80, and not marked at all.
  Worst and middle score over all photos, in standard deviations; from 9 on it counts as found.
"""

import argparse
import multiprocessing
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Final

import numpy as np
import pyvips
from PIL import Image

from provenance.detection import LEAST_SCORE, score_watermark
from provenance.manifest import Claim, ManifestSigner, Parent
from provenance.trial import make_trial
from provenance.watermark import add_watermark
from worker.marking import Marking
from worker.picture_writer import PictureWriter
from worker.process.files import ImageFile

_ROWS: Final = 512
_SUFFIXES: Final = frozenset({".jpg", ".jpeg", ".png"})
_CLAIM: Final = Claim("1", "trainedAlgorithmicMedia", {"model": {"name": "m", "sha256": "0" * 64}})


def main() -> None:
    options = _parse()
    if options.command == "cost":
        _measure_cost(options.side[0])
    else:
        for side in options.side:
            _measure_survival(_list_photos(options.photos, options.count), side)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=["cost", "survival"])
    parser.add_argument("photos", type=Path, nargs="?", default=Path())
    parser.add_argument("--side", type=int, nargs="+", default=[8192])
    parser.add_argument("--count", type=int, default=20)
    return parser.parse_args()


def _measure_cost(side: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_trial(folder)
        _write_rows(folder / "rows.tif", side)
        for has_watermark in (False, True):
            shown = "PNG from its rows, with the mark" if has_watermark else "PNG from its rows"
            _run(shown, _write_png, folder, has_watermark)
        print(f"{(folder / 'image.png').stat().st_size / 1e6:.0f} MB")
        _run("signed", _sign, folder, None)
        (folder / "image.png").rename(folder / "parent.png")
        _write_png(folder, False)
        _run("signed, with a parent", _sign, folder, folder / "parent.png")


def _write_rows(path: Path, side: int) -> None:
    random = np.random.default_rng(0)
    with ImageFile(path, side, side) as image:
        for top in range(0, side, _ROWS):
            image.write(top, random.integers(0, 256, (min(_ROWS, side - top), side, 3), np.uint8))


def _write_png(folder: Path, has_watermark: bool) -> None:
    marking = Marking(has_watermark=has_watermark)
    writer = PictureWriter(folder / "rows.tif", 300, mark=lambda rows: marking.mark(rows, None))
    writer.write_picture(folder / "image.png", "png", None)


def _sign(folder: Path, parent: Path | None) -> None:
    claim = Claim(_CLAIM.version, _CLAIM.source_type, _CLAIM.made, parent and Parent(parent, "parent"))
    ManifestSigner(folder / "certificate.pem", folder / "key.pem").sign(folder / "image.png", claim)


def _run(name: str, work: Callable[..., None], *given: object) -> None:
    process = multiprocessing.get_context("spawn").Process(target=_report, args=(name, work, given))
    process.start()
    process.join()


def _report(name: str, work: Callable[..., None], given: tuple[object, ...]) -> None:
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins again: a child begins with its parent's
    before, started_at, cpu_at = _read_peak_mb(), time.perf_counter(), time.process_time()
    work(*given)
    seconds, cpu_s = time.perf_counter() - started_at, time.process_time() - cpu_at
    print(
        f"{name}: {seconds:.2f} s, {cpu_s:.2f} s of CPU, peak {_read_peak_mb():.0f} MB, at first {before:.0f} MB",
        flush=True,
    )


def _read_peak_mb() -> float:
    """Most resident memory of this process; Linux only."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1e3


def _list_photos(folder: Path, count: int) -> list[Path]:
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in _SUFFIXES)
    return paths[:: max(len(paths) // count, 1)][:count]


def _measure_survival(photos: list[Path], side: int) -> None:
    found: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for path in photos:
            for name, score in _score_all(path, side, Path(folder)):
                found.setdefault(name, []).append(score)
    print(f"{len(photos)} photos of {side} px")
    for name, scores in found.items():
        print(
            f"  {name}: worst {min(scores):.1f}, middle {median(scores):.1f}, most {max(scores):.1f}",
            flush=True,
        )
    print(f"  found from {LEAST_SCORE:g} on")


def _score_all(path: Path, side: int, folder: Path) -> Iterator[tuple[str, float]]:
    plain = _cut(path, side)
    image = pyvips.Image.new_from_array(plain, interpretation="srgb")
    marked = add_watermark(image).numpy()
    error = float(np.mean((marked.astype(np.float64) - plain) ** 2))
    yield "PSNR, dB", 10 * np.log10(255**2 / error)
    whole = Image.fromarray(marked)
    half, less = (
        whole.resize((part, part), Image.Resampling.LANCZOS) for part in (side // 2, side * 7 // 10)
    )
    corner = whole.crop((side // 7, side // 5, side // 7 + side // 2, side // 5 + side // 2))
    files = {"as it is": (whole, "png"), "JPEG 80": (whole, "jpg"), "halved": (half, "png")}
    files |= {
        "halved, JPEG 80": (half, "jpg"),
        "70 %, JPEG 80": (less, "jpg"),
        "a quarter, JPEG 80": (corner, "jpg"),
    }
    files["not marked"] = (Image.fromarray(plain), "png")
    for name, (changed, kind) in files.items():
        changed.save(folder / f"image.{kind}", quality=80)
        yield name, score_watermark(folder / f"image.{kind}")


def _cut(path: Path, side: int) -> np.ndarray:
    with Image.open(path) as image:
        scale = max(side / min(image.size), 1)
        image = image.convert("RGB").resize((round(image.width * scale), round(image.height * scale)))
        left, top = (image.width - side) // 2, (image.height - side) // 2
        return np.ascontiguousarray(image.crop((left, top, left + side, top + side)))


if __name__ == "__main__":
    main()
