"""What happens to a checkpoint on its disk or in the store costs time, never the picture."""

import hashlib
import multiprocessing
import random
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from api_schemas.catalog import Dtype
from api_schemas.events import JobWarned, WarnedData
from api_schemas.generation import ResolvedRequest
from tests.tiny_models import tiny_stable_diffusion
from tests.worker.bench import Bench
from tests.worker.process.test_session import collect, confirm
from tests.worker.scripted_engine import ScriptedEngine, make_context
from tests.worker.test_runner import die_after_two_steps, run, succeed
from worker.adapters.source import ModelSource
from worker.checkpoints import CheckpointStore
from worker.engine.denoise import Step
from worker.engine.ranks import SingleRank
from worker.planner import plan_generation
from worker.process.files import CheckpointWriter
from worker.process.generation import generate_job
from worker.process.protocol import CheckpointWritten, Generate, Report
from worker.process.ranks import RankProcesses
from worker.process.session import run_session
from worker.process.warmup import Ready, make_ready
from worker.settings import WorkerSettings
from worker.storage import Storage

STEPS = 4
REQUEST = ResolvedRequest(
    model="tiny", steps=STEPS, guidance_scale=1.0, seed=5, prompt="lava", layout="flat",
    width_px=128, height_px=128,
)  # fmt: skip


class Engine:
    """The engine of a tiny model with a multistep solver, in this process: its picture depends on every step's state."""

    def __init__(self, folder: Path) -> None:
        tiny_stable_diffusion(folder / "tiny")
        self._source = ModelSource(str(folder / "tiny"))
        self.ready = make_ready(self._source, "cpu")
        self.undisturbed, _ = self.run(folder / "undisturbed", None)

    def run(
        self, folder: Path, checkpoint: Path | None, ready: Ready | None = None, **changes: int
    ) -> tuple[str, list[Report]]:
        """Digest of the finished rows, and all reports.

        Args:
            ready: another engine.
            changes: of the request.
        """
        ours, theirs = multiprocessing.Pipe()
        job = _make_job(folder, checkpoint, changes)
        with RankProcesses(self._source, ["cpu"]) as ranks, ThreadPoolExecutor() as pool:
            gathered = pool.submit(collect, ours, confirm)
            theirs.send(run_session(ready or self.ready, job, theirs, ranks, 3600.0))
            reports = gathered.result(60)
        return hashlib.sha256((folder / "image.tif").read_bytes()).hexdigest(), reports

    def write_checkpoints(
        self, folder: Path, ready: Ready | None = None, **changes: int
    ) -> list[CheckpointWritten]:
        """After every step but the last."""
        ready, job = ready or self.ready, _make_job(folder, None, changes)
        plan, written = (
            plan_generation(job.request, ready.card, ready.decode_memory, folder),
            list[CheckpointWritten](),
        )
        for event in generate_job(ready.model, job, plan, None, SingleRank()):
            if isinstance(event, Step) and event.index + 1 < event.steps:
                written.append(CheckpointWriter(folder, 0, 0, ready.setup).write(event.checkpoint, 0.0))
        return written


def _make_job(folder: Path, checkpoint: Path | None, changes: dict[str, int]) -> Generate:
    folder.mkdir()
    return Generate(REQUEST.model_copy(update=changes), folder, checkpoint, {})


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    return Engine(tmp_path_factory.mktemp("engine"))


def flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[random.randrange(len(content))] ^= 1 << random.randrange(8)
    path.write_bytes(content)


def zero_the_second_half(path: Path) -> None:
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[: size // 2] + bytes(size - size // 2))


def leave(_: Path) -> None:
    return


@pytest.mark.parametrize(
    ("newest", "earlier", "step"),
    [
        (leave, leave, 3),
        (flip_a_byte, leave, 2),
        (zero_the_second_half, leave, 2),
        (flip_a_byte, zero_the_second_half, 0),
    ],
)
def test_a_damaged_checkpoint_is_replaced_by_an_earlier_one_or_none(
    engine: Engine,
    tmp_path: Path,
    newest: Callable[[Path], None],
    earlier: Callable[[Path], None],
    step: int,
) -> None:
    store = tmp_path / "store"
    storage = Storage.open(WorkerSettings(store_url=store.as_uri()))
    with CheckpointStore(storage, "job") as checkpoints:
        for written in engine.write_checkpoints(tmp_path / "first"):
            checkpoints.add(written, attempt=1)
            while checkpoints.upload_next():
                time.sleep(0.01)
    older, newer = sorted(store.rglob("*.safetensors"))
    newest(newer)
    earlier(older)
    with CheckpointStore(storage, "job") as checkpoints:
        found = checkpoints.find_newest(tmp_path)
    assert (found.step, len(found.damaged)) == (step, [3, 2, 0].index(step))
    assert len(list(store.rglob("*.safetensors"))) == 2 - len(found.damaged)
    assert engine.run(tmp_path / "second", found.path)[0] == engine.undisturbed


def test_an_engine_that_gets_a_damaged_checkpoint_starts_over_and_says_so(
    engine: Engine, tmp_path: Path
) -> None:
    path = engine.write_checkpoints(tmp_path / "first")[1].path
    flip_a_byte(path)
    again, reports = engine.run(tmp_path / "second", path)
    (warned,) = [report for report in reports if isinstance(report, WarnedData)]
    assert warned.code == "checkpoint_damaged"
    assert again == engine.undisturbed


def change(ready: Ready, **changes: object) -> Ready:
    """An engine whose card says something else."""
    return replace(ready, card=ready.card.model_copy(update=changes))


def list_warnings(reports: list[Report]) -> list[str]:
    return [report.code for report in reports if isinstance(report, WarnedData)]


@pytest.mark.parametrize(("dtype", "warned"), [("float32", []), ("bfloat16", ["dtype_changed"])])
def test_a_checkpoint_of_another_type_is_gone_on_from_and_told(
    engine: Engine, tmp_path: Path, dtype: Dtype, warned: list[str]
) -> None:
    path = engine.write_checkpoints(tmp_path / "first", change(engine.ready, dtype=dtype))[1].path
    again, reports = engine.run(tmp_path / "second", path)
    assert list_warnings(reports) == warned
    assert again == engine.undisturbed  # what it holds was computed in float32


def test_an_engine_that_finds_other_memory_goes_on_as_the_one_before(engine: Engine, tmp_path: Path) -> None:
    """Its own batches or decode tiles would change the last bits; where there is less memory, it says so."""
    before = replace(change(engine.ready, default_num_modules=2), decode_memory=1 << 20)
    more_modules = change(before, default_num_modules=8)
    more_memory = replace(before, decode_memory=1 << 30)
    less = replace(change(before, default_num_modules=1), most_decode_memory=1 << 19)
    request = {"width_px": 264, "height_px": 64, "bit_depth": 16}  # five tiles; two to decode
    made, _ = engine.run(tmp_path / "made", None, before, **request)
    path = engine.write_checkpoints(tmp_path / "first", before, **request)[1].path
    for number, after in enumerate((more_modules, more_memory)):
        assert engine.run(tmp_path / f"own-{number}", None, after, **request)[0] != made
        again, reports = engine.run(tmp_path / f"resumed-{number}", path, after, **request)
        assert (again, list_warnings(reports)) == (made, [])
    assert list_warnings(engine.run(tmp_path / "less", path, less, **request)[1]) == ["memory_changed"]


def test_the_job_tells_of_a_damaged_checkpoint(bench: Bench, tmp_path: Path) -> None:
    def damage_and_die(job: Generate) -> Iterator[Report | Exception]:
        reports = list(die_after_two_steps(job))
        zero_the_second_half(job.folder / "checkpoint-0002.safetensors")
        yield from reports

    job_id, scripted = bench.submit(), ScriptedEngine(damage_and_die, succeed)
    assert run(make_context(bench, scripted, tmp_path), job_id) == "succeeded"
    warnings = [event.data for event in bench.events(job_id) if isinstance(event, JobWarned)]
    assert {warned.code for warned in warnings} == {"checkpoint_damaged"}
    assert warnings[0].message == "damaged checkpoints are not used (after step 2): starting over"


@pytest.mark.parametrize("damage", [flip_a_byte, zero_the_second_half])
def test_a_damaged_input_makes_no_other_picture(
    bench: Bench, tmp_path: Path, damage: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    """There is no other copy, so the job fails and says which picture to send again; the log has it in one line."""
    Image.effect_noise((64, 64), 80).convert("RGB").save(tmp_path / "sent.png")
    damage(tmp_path / "sent.png")
    pictures = {"control_image": {"sha256": "0" * 64, "width_px": 64, "height_px": 64}}
    job_id = bench.submit(
        stored={"control_image": (tmp_path / "sent.png").read_bytes()},
        pictures=pictures, control={"name": "edges"},
    )  # fmt: skip
    scripted = ScriptedEngine(succeed)
    assert run(make_context(bench, scripted, tmp_path), job_id) == "failed"
    error = bench.job(job_id).error
    assert error is not None
    assert (error.code, error.retryable, scripted.jobs) == ("input_damaged", False, [])
    assert "control_image" in error.message
    (line,) = (record for record in caplog.records if record.name == "worker.runner")
    assert (line.exc_info, error.message in line.getMessage()) == (None, True)
