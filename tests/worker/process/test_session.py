"""What the engine process reports while it makes a picture."""

import multiprocessing
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from api_schemas.generation import ResolvedRequest
from worker.adapters.source import ModelSource
from worker.process.protocol import (
    BandFinished,
    CellsPreviewed,
    Generate,
    Generated,
    PreviewsPublished,
    Report,
    StepCompleted,
)
from worker.process.ranks import RankProcesses
from worker.process.session import run_job
from worker.process.warmup import make_ready


def collect(pipe: Connection) -> list[Report]:
    reports = list[Report]()
    while not (reports and isinstance(reports[-1], Generated)):
        reports.append(pipe.recv())
        if isinstance(reports[-1], CellsPreviewed):
            pipe.send(PreviewsPublished())
    return reports


def run_session(folder: Path, **choices: object) -> list[Report]:
    """All reports of one picture by the toy."""
    asked = {"model": "toy", "steps": 6, "guidance_scale": 1.0, "seed": 500, "layout": "cascade"}
    source, (ours, theirs) = ModelSource("toy"), multiprocessing.Pipe()
    job = Generate(ResolvedRequest.model_validate(asked | choices), folder, None, {})
    with RankProcesses(source, ["cpu"]) as ranks, ThreadPoolExecutor() as pool:
        gathered = pool.submit(collect, ours)
        theirs.send(run_job(make_ready(source, "cpu"), job, theirs, ranks, 0.0))
        return gathered.result(60)


def test_nothing_lies_beyond_the_picture(tmp_path: Path) -> None:
    """Its last band is one row high, its last column of cells one pixel wide; the canvas has eight of both."""
    gathered = run_session(tmp_path, width_px=1025, height_px=513)
    bands = [report for report in gathered if isinstance(report, BandFinished)]
    assert [band.data.model_dump(exclude={"eta_s"}) for band in bands] == [
        {"top_px": 0, "height_px": 512, "bands_done": 1, "bands": 2},
        {"top_px": 512, "height_px": 1, "bands_done": 2, "bands": 2},
    ]
    assert [band.decoded_px for band in bands] == [512 * 1032, 8 * 1032]
    cells = [cell.data for report in gathered if isinstance(report, CellsPreviewed) for cell in report.cells]
    assert {cell.left_px + cell.width_px for cell in cells} == {512, 1024, 1025}
    assert {cell.top_px + cell.height_px for cell in cells} == {512, 513}


@pytest.mark.parametrize("seamless", ["none", "both"])
def test_the_tiles_that_are_left_are_those_that_follow(tmp_path: Path, seamless: str) -> None:
    """Also where shifted grids have more of them than others, outer steps than inner, large canvases than small."""
    steps = [
        report for report in run_session(tmp_path, seamless=seamless) if isinstance(report, StepCompleted)
    ]
    assert len({step.data.tiles for step in steps}) > 2
    for index, step in enumerate(steps):
        assert step.tiles_left == sum(later.data.tiles for later in steps[index + 1 :])
