"""A server that still starts, or loads its model, is waited for."""

import socket
import time
from collections.abc import Callable
from pathlib import Path
from threading import Thread

import pytest

from api_schemas.errors import ErrorCode, Problem
from chorale.data_folder import DataFolder
from chorale.errors import NoServerError, UnavailableError
from chorale.server_options import find_server, once_served


def refuse(code: ErrorCode, detail: str) -> UnavailableError:
    problem = Problem(title="", status=503, detail=detail, code=code, request_id="-", retryable=True)
    return UnavailableError(problem)


def answer_in_turn(*answers: UnavailableError | str) -> Callable[[], str]:
    left = list(answers)

    def make() -> str:
        answer = left.pop(0)
        if isinstance(answer, UnavailableError):
            raise answer
        return answer

    return make


def test_a_model_that_still_loads_is_waited_for_and_that_is_told_once(
    capsys: pytest.CaptureFixture[str],
) -> None:
    loading = refuse("no_model", "no worker has announced a model yet")
    assert once_served(answer_in_turn(loading, loading, loading, "made"), ask_again_s=0) == "made"
    assert capsys.readouterr().err.split() == (
        [
            "no",
            "worker",
            "has",
            "announced",
            "a",
            "model",
            "yet:",
            "waiting",
            "for",
            "it,",
            "up",
            "to",
            "300",
            "s",
        ]
    )


@pytest.mark.parametrize(("code", "patience_s"), [("no_model", -1.0), ("queue_full", 60.0)])
def test_what_lasts_or_is_something_else_ends_it(code: ErrorCode, patience_s: float) -> None:
    with pytest.raises(UnavailableError, match="some reason"):
        once_served(answer_in_turn(refuse(code, "some reason")), patience_s=patience_s, ask_again_s=0)


def test_a_stack_whose_api_still_starts_is_waited_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as api:
        api.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{api.getsockname()[1]}"
        with DataFolder(tmp_path).hold(url):
            starting = Thread(target=lambda: (time.sleep(0.3), api.listen()))
            starting.start()
            assert find_server(None, tmp_path) == url
            starting.join()
    assert "is starting: waiting for it" in " ".join(capsys.readouterr().err.split())
    with pytest.raises(NoServerError):
        find_server(None, tmp_path)
