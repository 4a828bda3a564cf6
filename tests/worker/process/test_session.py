"""What the engine process reports while it makes a picture."""

import multiprocessing
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from api_schemas.events import PhaseStartedData
from api_schemas.generation import PicturePart, ResolvedRequest, SentPicture
from worker.adapters.source import ModelSource
from worker.color_sums import recolor
from worker.colors import ColorFix
from worker.process.protocol import (
    BandReport,
    CellsPreviewed,
    CheckpointWritten,
    Command,
    Generate,
    Generated,
    PreviewsPublished,
    Report,
    StepReport,
    StillWorking,
    Stop,
    Stopped,
)
from worker.process.ranks import RankProcesses
from worker.process.session import StoppedError, run_session
from worker.process.warmup import make_ready
from worker.state_files import read_colors

# (report) -> what the consumer sends when it reads it.
Answer = Callable[[Report], Command | None]


def confirm(report: Report) -> Command | None:
    return PreviewsPublished() if isinstance(report, CellsPreviewed) else None


def collect(pipe: Connection, answer: Answer) -> list[Report]:
    reports = list[Report]()
    while not (reports and isinstance(reports[-1], Generated | Stopped)):
        reports.append(pipe.recv())
        if command := answer(reports[-1]):
            pipe.send(command)
    return reports


def run_toy(
    folder: Path,
    answer: Answer = confirm,
    checkpoint: Path | None = None,
    source_image: Path | None = None,
    **choices: object,
) -> list[Report]:
    """All reports of one picture by the toy."""
    asked = {"model": "toy", "steps": 6, "guidance_scale": 1.0, "seed": 500, "layout": "cascade"}
    model, (ours, theirs) = ModelSource("toy"), multiprocessing.Pipe()
    inputs: dict[PicturePart, Path] = {} if source_image is None else {"source_image": source_image}
    job = Generate(ResolvedRequest.model_validate(asked | choices), folder, checkpoint, inputs)
    with RankProcesses(model, ["cpu"]) as ranks, ThreadPoolExecutor() as pool:
        gathered = pool.submit(collect, ours, answer)
        try:
            theirs.send(run_session(make_ready(model, "cpu"), job, theirs, ranks, 0.0))
        except StoppedError as stopped:
            theirs.send(Stopped(stopped.step))
        return gathered.result(60)


def list_steps(reports: list[Report]) -> list[int]:
    return [report.data.step for report in reports if isinstance(report, StepReport)]


def list_stages(reports: list[Report]) -> list[tuple[str, int, int]]:
    return [
        (report.phase, report.level, report.done)
        for report in reports
        if isinstance(report, PhaseStartedData)
    ]


def test_nothing_lies_beyond_the_picture(tmp_path: Path) -> None:
    """Its last band is one row high, its last column of cells one pixel wide; the canvas has eight of both."""
    gathered = run_toy(tmp_path, width_px=1025, height_px=513)
    bands = [report for report in gathered if isinstance(report, BandReport)]
    assert [band.data.model_dump(exclude={"eta_s"}) for band in bands] == [
        {"top_px": 0, "height_px": 512, "bands_done": 1, "bands": 2},
        {"top_px": 512, "height_px": 1, "bands_done": 2, "bands": 2},
    ]
    assert [band.decoded_px for band in bands] == [512 * 1032, 8 * 1032]
    cells = [cell.data for report in gathered if isinstance(report, CellsPreviewed) for cell in report.cells]
    assert {cell.left_px + cell.width_px for cell in cells} == {512, 1024, 1025}
    assert {cell.top_px + cell.height_px for cell in cells} == {512, 513}


def test_signs_of_life_come_no_more_often_than_once_a_second(tmp_path: Path) -> None:
    """Decoding alone has 64 tiles here."""
    started_at = time.monotonic()
    gathered = run_toy(tmp_path, width_px=4096, height_px=4096, layout="flat", steps=2)
    signs = sum(isinstance(report, StillWorking) for report in gathered)
    assert signs <= time.monotonic() - started_at


@pytest.mark.parametrize("seamless", ["none", "both"])
def test_the_tiles_that_are_left_are_those_that_follow(tmp_path: Path, seamless: str) -> None:
    """Also where shifted grids have more of them than others, outer steps than inner, large canvases than small."""
    steps = [report for report in run_toy(tmp_path, seamless=seamless) if isinstance(report, StepReport)]
    assert len({step.data.tiles for step in steps}) > 2
    for index, step in enumerate(steps):
        assert step.work_left == sum(later.data.tiles for later in steps[index + 1 :])


def test_a_resumed_session_makes_the_same_picture_and_reports_only_what_it_does(tmp_path: Path) -> None:
    """From the first step, from the last, and from those between that a checkpoint was written after."""
    whole = run_toy(tmp_path, width_px=1024, height_px=1024)
    picture = (tmp_path / "image.tif").read_bytes()
    checkpoints = {report.step: report.path for report in whole if isinstance(report, CheckpointWritten)}
    steps, (*stages, decode) = list_steps(whole), list_stages(whole)
    assert {1, steps[-1]} <= checkpoints.keys()
    for step, checkpoint in checkpoints.items():
        folder = tmp_path / f"from-{step}"
        folder.mkdir()
        resumed = run_toy(folder, checkpoint=checkpoint, width_px=1024, height_px=1024)
        assert list_steps(resumed) == steps[step:]
        ends = [done for _, _, done in stages[1:]] + [steps[-1]]
        unfinished = [
            ("denoise", level, max(done, step))
            for (_, level, done), end in zip(stages, ends, strict=True)
            if step < end
        ]
        assert list_stages(resumed) == [*unfinished, decode]
        again = [report for report in resumed if isinstance(report, StepReport)]
        assert all(
            report.work_left == sum(later.data.tiles for later in again[index + 1 :])
            for index, report in enumerate(again)
        )
        assert (folder / "image.tif").read_bytes() == picture


def test_a_damaged_checkpoint_costs_only_time(tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(b"nothing")
    assert list_steps(run_toy(tmp_path, checkpoint=damaged)) == list_steps(run_toy(tmp_path))


def test_a_session_that_is_stopped_ends_with_a_checkpoint_of_its_last_step(tmp_path: Path) -> None:
    def stop_after_two(report: Report) -> Command | None:
        if isinstance(report, StepReport) and report.data.step == 2:
            return Stop(finish_step=True)
        return confirm(report)

    *reports, last = run_toy(tmp_path, stop_after_two)
    written = [report for report in reports if isinstance(report, CheckpointWritten)]
    assert isinstance(last, Stopped)
    assert last.step == written[-1].step == list_steps(reports)[-1]
    assert list_steps(run_toy(tmp_path, checkpoint=written[-1].path))[0] == last.step + 1


def test_a_session_that_is_stopped_while_it_decodes_ends_at_once(tmp_path: Path) -> None:
    """All steps have their checkpoint already, also where they were done by another session."""

    def stop(report: Report) -> Command | None:
        return Stop(finish_step=True) if isinstance(report, PhaseStartedData) else None

    whole = [report for report in run_toy(tmp_path) if isinstance(report, CheckpointWritten)]
    *_, last = run_toy(tmp_path, stop, checkpoint=whole[-1].path)
    assert last == Stopped(whole[-1].step)


def test_a_session_that_must_end_at_once_finishes_no_step(tmp_path: Path) -> None:
    """It reads the command at the next tile."""

    def stop(report: Report) -> Command | None:
        is_first = isinstance(report, PhaseStartedData) and report.level == 1
        return Stop(finish_step=False) if is_first else confirm(report)

    *reports, last = run_toy(tmp_path, stop, steps=50)
    assert isinstance(last, Stopped)
    assert len(list_steps(reports)) < 50


def test_an_enlarged_picture_has_its_sources_mean_colour_also_when_it_is_resumed(tmp_path: Path) -> None:
    """Whatever its source, the toy makes its waves of it."""
    own = np.random.default_rng(0).integers(0, 90, (128, 192, 3)).astype(np.uint8) + np.uint8([0, 40, 120])
    Image.fromarray(own).save(tmp_path / "source.png")
    fields = {"source": {}, "upscale": 2, "width_px": 384, "height_px": 256, "layout": "flat"}
    fields |= {"pictures": {"source_image": SentPicture(sha256="", width_px=192, height_px=128)}}
    folders = [tmp_path / name for name in ("whole", "resumed")]
    checkpoint: Path | None = None
    made: list[tuple[ColorFix, bytes, ColorFix | None]] = []
    for folder in folders:
        folder.mkdir()
        reports = run_toy(folder, checkpoint=checkpoint, source_image=tmp_path / "source.png", **fields)
        checkpoint = next(report.path for report in reports if isinstance(report, CheckpointWritten))
        generated = reports[-1]
        assert isinstance(generated, Generated)
        assert generated.colors is not None
        made.append((generated.colors, generated.path.read_bytes(), read_colors(generated.state)))
        corrected = recolor(tifffile.imread(generated.path), generated.colors, 8)
        assert np.abs(corrected.mean((0, 1)) - own.mean((0, 1))).max() < 1
    assert made[0] == made[1]
    assert made[0][0] == made[0][2]
