"""What the engine process tells of a picture while it sings it."""

import multiprocessing
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from api_schemas.generation import ResolvedRequest
from worker.adapters.source import ModelSource
from worker.choir import Choir
from worker.messages import Previewed, Report, Shown, Sing, Stepped, Sung
from worker.performance import Performance
from worker.readiness import make_ready


def listen(pipe: Connection) -> list[Report]:
    reports = list[Report]()
    while not (reports and isinstance(reports[-1], Sung)):
        reports.append(pipe.recv())
        if isinstance(reports[-1], Previewed):
            pipe.send(Shown())
    return reports


@pytest.mark.parametrize("seamless", ["none", "both"])
def test_the_tiles_that_are_left_are_those_that_are_sung(tmp_path: Path, seamless: str) -> None:
    """Also where shifted grids have more of them than others, outer steps than inner, large canvases than small."""
    request = ResolvedRequest.model_validate(
        {
            "model": "toy",
            "steps": 6,
            "guidance_scale": 1.0,
            "seed": 500,
            "seamless": seamless,
            "layout": "cascade",
        }
    )
    source, (ours, theirs) = ModelSource("toy"), multiprocessing.Pipe()
    job = Sing(request, tmp_path, None, {})
    with Choir(source, ["cpu"]) as choir, ThreadPoolExecutor() as pool:
        heard = pool.submit(listen, ours)
        theirs.send(Performance(make_ready(source, "cpu"), job, theirs, choir, 0.0).finish())
        steps = [report for report in heard.result(60) if isinstance(report, Stepped)]
    assert len({step.tiles for step in steps}) > 2
    for index, step in enumerate(steps):
        assert step.tiles_left == sum(later.tiles for later in steps[index + 1 :])
