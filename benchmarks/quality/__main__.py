"""Quality of large pictures: one table, in markdown; a row for each measure, a column for each run.

    python -m benchmarks.quality --data DATASET --large LARGE --out runs/flat --layout flat
    python -m benchmarks.quality --data DATASET --large LARGE --out runs/cascade --layout cascade
    python -m benchmarks.quality --compare runs/flat runs/cascade
    python -m benchmarks.quality --out runs/off --set advanced.sync_strength=0 --seeds 1 --prompts 2    # no real pictures

Eight scenes and eight textures that stand in no caption, three seeds each; textures wrap. Requests go the way
of a worker's job. Pictures stay in `--out` and are not made again while model and request are the same: give
other code another folder. With `--real FILE` the figures of real pictures are kept in a file, and read from
it where it is: another machine then needs no pictures. What is measured:

- *KID* with EfficientNet-Lite0. Whole scenes reduced to 512 px, and the model's own 512 px pictures of the same
  prompts (four times as many), to the landscapes of the data set. Native 512 px crops of the scenes, to those of
  held-out large photographs of scenes. Errors are standard errors over prompts (jackknife).
- *Energy* of grey above 1/8 (the prototypes' measure: a quarter of the highest frequency) and 1/4 of the sampling
  rate, over that above 1/16, of all native 512 px crops together; over the same of large photographs. Of the same
  zoom: a photograph whose short side is longer than the picture's is reduced to it; a shorter one counts as it is,
  since enlarging would take the very band that is measured. So at 4096² a pixel of the picture is held to be as
  sharp as one of a camera.
- *Duplicates*: the middle square is cut into as many cells as the picture has tiles of 512 px; of the half of them
  with the most contrast, the two most alike that do not touch: distance of unit features, over that in large
  photographs cut into as many cells and seen at the same size.
- *Textures*: spread between cells of 256 px of tone, of contrast and of gradient over contrast (pattern scale), over
  that of real tileable pictures of the same categories; one period of those, which is all that repeating shows.
- *Seam ratio*: mean difference across lines over that across lines 24 to 64 px away; again after a blur of 8 px, which
  leaves only steps of tone. On the borders of every step's grid (the worst step is shown), of decode tiles, and the
  join of a canvas that wraps.
"""

import argparse
import json
import os
import shlex
import sys
from pathlib import Path

import torch
from pydantic import BaseModel
from torch import Tensor

from benchmarks.quality.figures import Figures, measure_pictures
from benchmarks.quality.pictures import Made, digest_weights, list_subjects, make_pictures
from benchmarks.quality.reality import Reality, keep_reality, load_reality, observe_reality, reduce_square
from benchmarks.quality.table import draw_table
from training.features import Features
from training.sheet import draw_sheet
from worker.adapters.source import ModelSource
from worker.process.memory import find_device
from worker.process.warmup import make_ready

SHOWN_PX = 384
KINDS = ["scene", "texture"]
SHORT = {
    "--layout": "layout",
    "--attention": "advanced.attention",
    "--sync-strength": "advanced.sync_strength",
}


class Run(BaseModel, frozen=True):
    """What `figures.json` holds; figures by side of the pictures."""

    command: str
    weights: str
    device: str
    figures: dict[int, Figures]


def main() -> None:
    options = parse()
    folders: list[Path] = options.compare or [options.out]
    if options.compare is None:
        measure(options)
    print(compare(folders))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.quality",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--out", type=Path, help="make pictures here, measure them, print their table")
    what.add_argument(
        "--compare", type=Path, nargs="+", metavar="RUN", help="print one table of these folders"
    )
    parser.add_argument("--model", default="worker/bundled")
    parser.add_argument("--device", default="auto", help="as a worker's: auto, cpu, cuda:0")
    parser.add_argument("--data", type=Path, help="folder of captions.jsonl and its pictures")
    parser.add_argument("--large", type=Path, help="the same, of large photographs with `split`")
    parser.add_argument("--real", type=Path, help="file of the real pictures' figures")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--prompts", type=int, default=8, help="of each kind")
    parser.add_argument("--seeds", type=int, default=3, help="of each prompt")
    parser.add_argument("--size", type=int, nargs="+", default=[2048, 4096], metavar="PX")
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE", dest="settings")
    for option, field in SHORT.items():
        parser.add_argument(
            option, action="append", dest="settings", metavar="VALUE", type=f"{field}={{}}".format,
            help=f"the same as --set {field}=VALUE",
        )  # fmt: skip
    options = parser.parse_args()
    if (options.data is None) != (options.large is None):
        parser.error("--data and --large go together")
    return options


def measure(options: argparse.Namespace) -> None:
    """Make the pictures that are missing, and write sheets and `figures.json`."""
    ready = make_ready(ModelSource(options.model), options.device)
    subjects = list_subjects(
        options.kinds, options.prompts, options.seeds, options.size, ready.card.native_size_px
    )
    settings = dict(parse_setting(each) for each in options.settings)
    folder, weights = options.out / "pictures", digest_weights(options.model)
    made = list(make_pictures(ready, weights, subjects, settings, folder))
    for kind in options.kinds:
        draw(made, kind, options.out)
    features = Features().to(find_device(options.device))
    reality = find_reality(options, features)
    figures = {side: measure_pictures(pick(made, side), reality, features) for side in options.size}
    command = f"python -m benchmarks.quality {shlex.join(sys.argv[1:])}"
    run = Run(command=command, weights=weights, device=describe(ready.device), figures=figures)
    (options.out / "figures.json").write_text(run.model_dump_json(indent=1))


def describe(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"{os.cpu_count()} CPU cores"


def pick(made: list[Made], side_px: int) -> list[Made]:
    """Pictures of one size, and the small ones."""
    return [each for each in made if each.subject.side_px == side_px or each.subject.kind == "native"]


def parse_setting(setting: str) -> tuple[str, object]:
    """`advanced.sync_strength=0` to (name, value); what is no JSON is text."""
    name, _, value = setting.partition("=")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def find_reality(options: argparse.Namespace, features: Features) -> Reality | None:
    """From its file if that knows these sizes, else measured and kept there."""
    kept = load_reality(options.real) if options.real and options.real.is_file() else None
    if kept and set(options.size) <= set(kept.bands):
        return kept
    if options.data is None:
        if options.real:
            sys.exit(f"{options.real} knows not all of {options.size} px: give --data and --large")
        return None
    reality = observe_reality(options.data, options.large, options.size, features)
    if options.real:
        keep_reality(reality, options.real)
    return reality


def draw(made: list[Made], kind: str, folder: Path) -> None:
    """Every picture whole, and beside it its middle at 1:1."""
    images: list[Tensor] = []
    labels: list[str] = []
    for each in made:
        if each.subject.kind == kind:
            image = each.image
            corner = (each.subject.side_px - SHOWN_PX) // 2
            middle = image[:, corner : corner + SHOWN_PX, corner : corner + SHOWN_PX]
            images += [shown / 127.5 - 1 for shown in (reduce_square(image, SHOWN_PX), middle)]
            labels += [
                f"{each.subject.prompt}, {each.subject.seed}, {each.subject.side_px} px",
                "middle, 1:1",
            ]
    draw_sheet(images, labels, 6, SHOWN_PX, folder / f"{kind}s.jpg")


def compare(folders: list[Path]) -> str:
    """The tables of all sizes, and the commands behind their columns."""
    runs = {each.name: Run.model_validate_json((each / "figures.json").read_text()) for each in folders}
    sizes = sorted({size for run in runs.values() for size in run.figures})
    tables = [
        draw_table(f"{size}²", {name: run.figures.get(size, {}) for name, run in runs.items()})
        for size in sizes
    ]
    commands = [f"- {name}: `{run.command}`, {run.device}" for name, run in runs.items()]
    return "\n\n".join([*tables, "\n".join(commands)])


if __name__ == "__main__":
    main()
