"""Scratch folders end with their workers, at the latest when the next one starts."""

import subprocess
import sys
from pathlib import Path

from worker.workdir import open_scratch


def test_a_folder_ends_with_its_worker(tmp_path: Path) -> None:
    with open_scratch(tmp_path / "work", "a") as folder:
        (folder / "image.tif").write_text("rows")
    assert not folder.exists()


def test_folders_of_killed_workers_go_and_those_in_use_stay(tmp_path: Path) -> None:
    code = (
        "import os, pathlib, sys; from worker.workdir import open_scratch\n"
        "with open_scratch(pathlib.Path(sys.argv[1]), 'killed') as folder:\n"
        "    (folder / 'image.tif').write_text('rows'); os._exit(9)"
    )
    with open_scratch(tmp_path, "alive") as alive:
        subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
        assert (tmp_path / "killed" / "image.tif").exists()
        with open_scratch(tmp_path, "new"):
            assert not (tmp_path / "killed").exists()
            assert alive.exists()


def test_workers_that_start_at_the_same_moment_keep_their_folders(tmp_path: Path) -> None:
    code = (
        "import pathlib, sys; from worker.workdir import open_scratch\n"
        "for number in range(100):\n"
        "    with open_scratch(pathlib.Path(sys.argv[1]), f'{sys.argv[2]}-{number}') as folder:\n"
        "        (folder / 'image.tif').write_text('rows')"
    )
    workers = [
        subprocess.Popen([sys.executable, "-c", code, str(tmp_path), str(number)], stderr=subprocess.PIPE)
        for number in range(4)
    ]
    assert [(worker.communicate()[1], worker.returncode) for worker in workers] == [(b"", 0)] * 4
    assert [path.name for path in tmp_path.iterdir()] == ["lock"]
