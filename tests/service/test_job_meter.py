"""Outcomes, phases and tiles in the metrics: a fold over events, and through the live stream to /metrics."""

import json
import time

import httpx
from redis import Redis

from api_schemas.wire import MEMORY_KEY_PREFIX
from service.job_meter import JobMeter
from service.messages import EventMessage
from service.metrics import PHASES, Metrics
from tests.story import Story

JOB = "7" * 28


def tell(meter: JobMeter, kind: str, ts: float, job_id: str = JOB, **data: object) -> None:
    body = {"type": kind, "job_id": job_id, "ts": ts, "data": data}
    meter.observe(EventMessage(kind, "", json.dumps(body)))


def phases(metrics: Metrics) -> dict[str, tuple[float | None, float | None]]:
    """Number and sum of seconds of each."""
    name = "chorale_job_phase_seconds"
    return {
        phase: tuple(metrics.registry.get_sample_value(f"{name}_{kind}", {"phase": phase}) for kind in ("count", "sum"))
        for phase in PHASES
    }  # fmt: skip


def outcome(metrics: Metrics, name: str) -> float | None:
    return metrics.registry.get_sample_value("chorale_jobs_ended_total", {"outcome": name})


def test_every_second_of_a_job_that_succeeds_belongs_to_one_phase() -> None:
    """Two stages of a cascade, an interruption that makes the second one begin again, and then the rest."""
    meter = JobMeter(metrics := Metrics())
    tell(meter, "job.queued", 100)
    tell(meter, "job.started", 103)
    tell(meter, "phase.started", 104, phase="denoise")
    tell(meter, "step.completed", 105, tiles=4)
    tell(meter, "phase.started", 106, phase="denoise")
    tell(meter, "job.preempted", 110)
    tell(meter, "job.resumed", 112)
    tell(meter, "stage.started", 115, stage="denoise")  # as it is stored by earlier versions
    tell(meter, "step.completed", 119, tiles=9)
    tell(meter, "phase.started", 120, phase="decode")
    tell(meter, "band.finished", 121)
    tell(meter, "phase.started", 130, phase="store")
    tell(meter, "job.succeeded", 131)
    assert phases(metrics) == {
        "queued": (1, 3 + 2),
        "loading": (1, 1 + 3),
        "denoise": (1, 6 + 5),
        "decode": (1, 10),
        "store": (1, 1),
    }
    assert outcome(metrics, "succeeded") == 1
    assert metrics.registry.get_sample_value("chorale_tiles_total") == 13


def test_jobs_that_end_otherwise_are_counted_and_not_measured() -> None:
    meter = JobMeter(metrics := Metrics())
    for job_id, end in (("a", "job.failed"), ("b", "job.canceled"), ("c", "job.canceled")):
        tell(meter, "job.queued", 1, job_id)
        tell(meter, "job.started", 2, job_id)
        tell(meter, end, 3, job_id)
    tell(meter, "phase.started", 4, "unknown", phase="decode")
    tell(meter, "job.succeeded", 5, "unknown")  # queued before this process began
    assert [outcome(metrics, name) for name in ("succeeded", "failed", "canceled")] == [1, 1, 2]
    assert set(phases(metrics).values()) == {(None, None)}


def test_an_event_of_another_form_does_no_harm() -> None:
    meter = JobMeter(metrics := Metrics())
    for text in (
        "{}",
        '{"job_id": 1, "ts": null}',
        '{"job_id": "a", "ts": 1, "data": []}',
        '{"job_id": 1, "ts": 1, "data": {}}',
    ):
        for kind in ("step.completed", "phase.started", "job.strange"):
            meter.observe(EventMessage(kind, "", text))
    assert metrics.registry.get_sample_value("chorale_tiles_total") == 0


def test_warnings_are_counted_by_their_code_and_no_event_adds_a_series() -> None:
    meter = JobMeter(metrics := Metrics())
    for code in ("unsigned", "unsigned", "invented"):
        tell(meter, "job.warned", 1, code=code, message="")
    counts = [
        metrics.registry.get_sample_value("chorale_jobs_warned_total", {"code": code})
        for code in ("unsigned", "untimed", "invented")
    ]
    assert counts == [2, 0, None]


def test_metrics_tell_of_jobs_tiles_and_memory(api: httpx.Client, story: Story, redis: Redis) -> None:
    redis.set(f"{MEMORY_KEY_PREFIX}w1", 123_456_789)
    redis.set(f"{MEMORY_KEY_PREFIX}gone", 1)
    job_id = api.post("/v1/jobs", json={"prompt": "lava"}).json()["id"]
    story.start(job_id)
    story.stage(job_id)
    story.step(job_id, 1)
    story.fail(job_id)
    deadline = time.monotonic() + 20
    while 'jobs_ended_total{outcome="failed"} 1.0' not in (text := api.get("/metrics").text):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert "chorale_tiles_total 4.0" in text
    assert 'chorale_jobs_ended_total{outcome="succeeded"} 0.0' in text
    assert 'chorale_worker_resident_memory_bytes{worker="w1"} 1.23456789e+08' in text
    assert 'worker="gone"' not in text
    (memory,) = [line for line in text.splitlines() if line.startswith("process_resident_memory_bytes ")]
    assert float(memory.split()[1]) > 10e6
    redis.delete("chorale:worker:w1")
    assert "chorale_worker_resident_memory_bytes{" not in api.get("/metrics").text
