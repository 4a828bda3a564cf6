"""A part that dies starts again, ever later, and sooner after a healthy life."""

import time
from pathlib import Path

from chorale.part import Death, Part
from tests.disks import small_disk


def await_death(part: Part) -> Death:
    while (death := part.look_after()) is None:
        time.sleep(0.02)
    return death


def test_pauses_grow_with_each_death_in_a_row(tmp_path: Path) -> None:
    part = Part("broken", ("no_such_module",), {}, tmp_path / "log", guard=None)
    deaths = [await_death(part) for _ in range(3)]
    assert [death.pause_s for death in deaths] == [0.5, 1, 2]
    assert [death.in_a_row for death in deaths] == [1, 2, 3]
    assert "code 1" in deaths[0].text
    assert "no_such_module" in deaths[0].text


def test_a_healthy_life_is_a_new_beginning(tmp_path: Path) -> None:
    part = Part("broken", ("no_such_module",), {}, tmp_path / "log", guard=None, healthy_s=0)
    assert [await_death(part).pause_s for _ in range(2)] == [0.5, 0.5]


def test_a_part_whose_log_has_no_space_tells_what_is_free_and_no_older_reason(tmp_path: Path) -> None:
    with small_disk() as disk:
        part = Part("broken", ("no_such_module",), {}, disk.folder / "log", guard=None)
        part.log.write_text("an older reason".ljust(4096, "\n"))  # a whole block
        with disk.filled():
            told = "bytes are free" if disk.is_mounted else "no_such_module"
            for death in [await_death(part) for _ in range(2)]:
                assert told in death.text
                assert "older" not in death.text
        assert "no_such_module" in await_death(part).text
