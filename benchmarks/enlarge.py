"""Seconds, tiles and peak memory of an enhanced photograph, and of a re-roll of a part of it.

    .venv/bin/python benchmarks/enlarge.py PHOTO --side 2048 --upscale 4 --model toy

The photograph is cropped to a square and scaled to `--side`. Peaks (VmHWM, Linux) are of each process since it began:
those of the second row have the first one's in them. The re-roll is of `--part` pixels in the picture's middle.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from PIL import Image, ImageOps

from api_schemas.answers import JobView
from api_schemas.derived import RerollRequest
from api_schemas.generation import GenerationRequest
from api_schemas.regions import RectangleShape
from api_schemas.source import Source, SourceMask
from benchmarks.picture import peak_mib, stage_seconds
from chorale.client import Client
from chorale.data_folder import DataFolder
from chorale.local import LocalStack, StackOptions


def main() -> None:
    options = parse()
    with tempfile.TemporaryDirectory(prefix="ch-") as folder:
        photo = Path(folder) / "photo.png"
        with Image.open(options.photo) as image:
            mode = "RGBA" if image.has_transparency_data else "RGB"
            ImageOps.fit(image.convert(mode), (options.side, options.side)).save(photo)
        chosen = StackOptions(models=(options.model,) if options.model else ())
        with LocalStack(DataFolder(Path(folder)), chosen) as stack:
            stack.await_ready()
            with Client(stack.url) as client:
                measure_both(client, options, photo)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("photo", type=Path)
    parser.add_argument("--side", type=int, default=2048)
    parser.add_argument("--upscale", type=int, default=4)
    parser.add_argument("--part", type=int, default=1024)
    parser.add_argument("--model", help="model folder; the bundled one if left out")
    parser.add_argument("--prompt", default="")
    return parser.parse_args()


def measure_both(client: Client, options: argparse.Namespace, photo: Path) -> None:
    request = GenerationRequest(prompt=options.prompt, seed=7, source=Source(), upscale=options.upscale)
    print("what  tiles  of the whole  denoise  decode  store  total  peak MiB by process")
    enhanced = measure(client, "enhance", lambda: client.create(request, pictures={"source_image": photo}))
    edge_px = (enhanced.request.width_px - options.part) // 2
    middle = RectangleShape(left_px=edge_px, top_px=edge_px, width_px=options.part, height_px=options.part)
    asked = RerollRequest(region=SourceMask(rectangle=middle), seed=8)
    measure(client, "re-roll", lambda: client.reroll(enhanced.id, asked))


def measure(client: Client, name: str, create: Callable[[], JobView]) -> JobView:
    """One job as one row of the table."""
    began = time.monotonic()
    job = create()
    events = [event for event in client.events(job.id) if event.type != "snapshot"]
    total_s, seconds = time.monotonic() - began, stage_seconds(events)
    if events[-1].type != "job.succeeded":
        raise SystemExit(f"{name} ended with {events[-1].type}: {events[-1].data}")
    shown = [f"{seconds[phase]:.1f} s" for phase in ("denoise", "decode", "store")]
    peaks = "  ".join(f"{role} {size}" for role, size in peak_mib().items())
    print(
        name, job.cost.tiles, job.cost.canvas_tiles, *shown, f"{total_s:.1f} s", peaks, sep="  ", flush=True
    )
    return job


if __name__ == "__main__":
    main()
