"""What the engine process tells of a picture while it sings it."""

import multiprocessing
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from api_schemas.generation import ResolvedRequest
from worker.adapters.source import ModelSource
from worker.process.protocol import BandWritten, Generate, Generated, Previewed, Report, Shown, Stepped
from worker.process.ranks import RankProcesses
from worker.process.session import Session
from worker.process.warmup import make_ready


def collect(pipe: Connection) -> list[Report]:
    reports = list[Report]()
    while not (reports and isinstance(reports[-1], Generated)):
        reports.append(pipe.recv())
        if isinstance(reports[-1], Previewed):
            pipe.send(Shown())
    return reports


def run_session(folder: Path, **choices: object) -> list[Report]:
    """All that is told of a picture by the toy."""
    asked = {"model": "toy", "steps": 6, "guidance_scale": 1.0, "seed": 500, "layout": "cascade"}
    source, (ours, theirs) = ModelSource("toy"), multiprocessing.Pipe()
    job = Generate(ResolvedRequest.model_validate(asked | choices), folder, None, {})
    with RankProcesses(source, ["cpu"]) as ranks, ThreadPoolExecutor() as pool:
        gathered = pool.submit(collect, ours)
        theirs.send(Session(make_ready(source, "cpu"), job, theirs, ranks, 0.0).finish())
        return gathered.result(60)


def test_nothing_lies_beyond_the_picture(tmp_path: Path) -> None:
    """Its last band is one row high, its last column of cells one pixel wide; the canvas has eight of both."""
    gathered = run_session(tmp_path, width_px=1025, height_px=513)
    bands = [report for report in gathered if isinstance(report, BandWritten)]
    assert [(band.top_px, band.height_px, band.done, band.bands) for band in bands] == [
        (0, 512, 1, 2),
        (512, 1, 2, 2),
    ]
    assert [band.decoded_px for band in bands] == [512 * 1032, 8 * 1032]
    cells = [cell for report in gathered if isinstance(report, Previewed) for cell in report.cells]
    assert {cell.left_px + cell.width_px for cell in cells} == {512, 1024, 1025}
    assert {cell.top_px + cell.height_px for cell in cells} == {512, 513}


@pytest.mark.parametrize("seamless", ["none", "both"])
def test_the_tiles_that_are_left_are_those_that_are_sung(tmp_path: Path, seamless: str) -> None:
    """Also where shifted grids have more of them than others, outer steps than inner, large canvases than small."""
    steps = [report for report in run_session(tmp_path, seamless=seamless) if isinstance(report, Stepped)]
    assert len({step.tiles for step in steps}) > 2
    for index, step in enumerate(steps):
        assert step.tiles_left == sum(later.tiles for later in steps[index + 1 :])
