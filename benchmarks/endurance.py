"""Memory, file descriptors, logs and the queue server's files over an hour of mixed jobs.

    .venv/bin/python -m benchmarks.endurance --minutes 60

A stack as `chorale up` starts it, with the toy model and short retention, so that what ends is also deleted. Jobs of
every kind follow one another: text, regions, pictures to begin with, and jobs derived from finished ones; a tenth are
canceled, some refused, and each has a viewer. Slopes are by Theil and Sen over what was sampled after `--settle`.
"""

import argparse
import os
import random
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import combinations
from pathlib import Path
from statistics import median
from threading import Event, Thread

import numpy as np
import psutil
from PIL import Image

from api_schemas.answers import JobView
from api_schemas.derived import ExtendRequest, RerollRequest, VariationsRequest
from api_schemas.generation import GenerationRequest
from api_schemas.regions import RectangleShape, Region, RegionShape
from api_schemas.source import Source, SourceMask
from benchmarks.picture import ROLES
from chorale.client import Client
from chorale.data_folder import DataFolder
from chorale.errors import ChoraleError
from chorale.local import LocalStack, StackOptions

RETENTION_DAYS = 3 / 1440
SAMPLE_S = 10.0
MOST_PAIRS = 400  # samples; more are thinned

Sample = dict[str, float]
Maker = Callable[["Mixer"], JobView]


def main() -> None:
    options = parse()
    os.environ |= {"CHORALE_RETENTION_DAYS": str(RETENTION_DAYS), "CHORALE_RECONCILE_INTERVAL_S": "5"}
    with tempfile.TemporaryDirectory(prefix="ch-") as name:
        folder = Path(name)
        with LocalStack(DataFolder(folder / "data"), StackOptions(models=("toy:delay_ms=2",))) as stack:
            stack.await_ready()
            with Client(stack.url) as client, Recorder(folder / "data") as recorder:
                mixer = Mixer(client, folder, random.Random(1))
                mixer.run(options.minutes * 60)
    print(f"{mixer.count} jobs in {options.minutes:g} minutes:", dict(mixer.ends), dict(mixer.kinds))
    recorder.report(options.settle * 60, mixer.count / (options.minutes * 60))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--settle", type=float, default=15, help="minutes at the start that do not count")
    return parser.parse_args()


class Mixer:
    """Asks for one job after another, and watches each."""

    def __init__(self, client: Client, folder: Path, chance: random.Random) -> None:
        self.ends: Counter[str] = Counter()
        self.kinds: Counter[str] = Counter()
        self.count = 0
        self.client, self.chance, self.folder = client, chance, folder
        self.finished: list[JobView] = []  # the last few, from which others are derived
        self.photo = folder / "photo.png"
        noise = np.random.default_rng(0).integers(0, 256, (256, 384, 3), dtype=np.uint8)
        Image.fromarray(noise).save(self.photo)

    def run(self, seconds: float) -> None:
        ends_at = time.monotonic() + seconds
        while time.monotonic() < ends_at:
            name, make = self.chance.choice(list(KINDS.items()))
            self.kinds[name] += 1
            try:
                self._follow(make(self))
            except ChoraleError as error:
                self.ends[type(error).__name__] += 1

    def _follow(self, job: JobView) -> None:
        self.count += 1
        if self.chance.random() < 0.1:
            self.client.cancel(job.id)
        for _ in self.client.live(job.id):
            pass
        ended = self.client.get(job.id)
        self.ends[ended.status] += 1
        if ended.status == "succeeded":
            self.client.download(job.id, self.folder / "result")
            self.finished = [*self.finished[-3:], ended]

    def request(self, **more: object) -> GenerationRequest:
        side = {"width_px": self._side(), "height_px": self._side()} if "source" not in more else {}
        words = " ".join(self.chance.choices(("lava", "snow", "sand", "ice", "moss"), k=4))
        drawn = {"prompt": words, "seed": self.chance.randrange(1000), **side}
        return GenerationRequest.model_validate(drawn | more)

    def parent(self) -> JobView:
        """A finished job, or a new one."""
        if self.finished:
            return self.chance.choice(self.finished)
        return self.client.wait(self.client.create(self.request()).id)

    def _side(self) -> int:
        return 64 * self.chance.randint(2, 16)


def _text(mixer: Mixer) -> JobView:
    format_ = mixer.chance.choice(("png", "jpeg", "webp", "tiff"))
    return mixer.client.create(mixer.request(output_format=format_))


def _seamless(mixer: Mixer) -> JobView:
    return mixer.client.create(mixer.request(seamless="both"))


def _regions(mixer: Mixer) -> JobView:
    half = RectangleShape(left_px=0, top_px=0, width_px=64, height_px=128)
    return mixer.client.create(
        mixer.request(regions=[Region(prompt="water", shape=RegionShape(rectangle=half))])
    )


def _enhance(mixer: Mixer) -> JobView:
    request = mixer.request(source=Source(), upscale=mixer.chance.choice((2, 4)))
    return mixer.client.create(request, pictures={"source_image": mixer.photo})


def _refused(mixer: Mixer) -> JobView:
    return mixer.client.create(mixer.request(model="none"))


def _reroll(mixer: Mixer) -> JobView:
    part = RectangleShape(left_px=0, top_px=0, width_px=64, height_px=64)
    asked = RerollRequest(region=SourceMask(rectangle=part), seed=mixer.chance.randrange(1000))
    return mixer.client.reroll(mixer.parent().id, asked)


def _extend(mixer: Mixer) -> JobView:
    return mixer.client.extend(mixer.parent().id, ExtendRequest(right_px=64))


def _vary(mixer: Mixer) -> JobView:
    return mixer.client.vary(mixer.parent().id, VariationsRequest(count=2)).data[0]


KINDS: dict[str, Maker] = {
    "text": _text, "seamless": _seamless, "regions": _regions, "enhance": _enhance,
    "refused": _refused, "re-roll": _reroll, "extend": _extend, "variations": _vary,
}  # fmt: skip


class Recorder:
    """Samples the stack beside what is done with it."""

    def __init__(self, data: Path) -> None:
        self._data, self._samples = data, list[tuple[float, Sample]]()
        self._began, self._ended = time.monotonic(), Event()
        self._thread = Thread(target=self._record, daemon=True)

    def __enter__(self) -> "Recorder":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _record(self) -> None:
        while not self._ended.wait(SAMPLE_S):
            self._samples.append((time.monotonic() - self._began, self._sample()))

    def _sample(self) -> Sample:
        sample = dict(_sample_processes())
        for name in ("logs", "queue", "store", "work"):
            sample[f"{name}/ MiB"] = _size_mib(self._data / name)
        return sample

    def report(self, settle_s: float, jobs_per_s: float) -> None:
        """First, middle and last values of each, and its slope by hour and by job."""
        counted = [(at, sample) for at, sample in self._samples if at >= settle_s]
        if len(counted) < 3:
            raise SystemExit("too short for a slope: more --minutes, or less to --settle")
        print("what  first  middle  last  slope an hour  slope a job")
        for name in counted[-1][1]:
            series = [(at, sample[name]) for at, sample in counted if name in sample]
            slope = find_slope(series)
            first, middle, last = series[0][1], series[len(series) // 2][1], series[-1][1]
            kind = "KiB" if "MiB" in name else ""
            a_job = slope / jobs_per_s * (1024 if kind else 1)
            print(f"{name}  {first:.1f}  {middle:.1f}  {last:.1f}  {slope * 3600:+.2f}  {a_job:+.3f} {kind}")


def find_slope(series: list[tuple[float, float]]) -> float:
    """By Theil (1950) and Sen (1968): the median of all pairs' slopes, which a few outliers do not move."""
    thinned = series[:: max(1, len(series) // MOST_PAIRS)]
    return median((y - x) / (b - a) for (a, x), (b, y) in combinations(thinned, 2))


def _sample_processes() -> Iterator[tuple[str, float]]:
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            line = " ".join(process.cmdline())
            role = next((role for word, role in ROLES.items() if word in line), None)
            if role is not None:
                yield f"{role} MiB", process.memory_full_info().uss / 2**20
                yield f"{role} descriptors", float(process.num_fds())


def _size_mib(folder: Path) -> float:
    """Of all files below it; folders and files may go meanwhile."""
    sizes = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):
                sizes += (Path(parent) / name).stat().st_size
    return sizes / 2**20


if __name__ == "__main__":
    main()
