"""What is measured of the queue from events."""

import json

from service.messages import EventMessage
from service.throughput import Throughput


def tell(throughput: Throughput, kind: str, job_id: str, ts: float) -> None:
    body: dict[str, object] = {"job_id": job_id, "ts": ts}
    if kind == "job.queued":
        body["data"] = {"key_id": "k", "cost": {"tiles": 1}, "request": {"model": "m"}}
    throughput.observe(EventMessage(kind, f"{int(ts * 1000)}-0", json.dumps(body)))


def test_a_queue_that_stands_still_is_not_said_to_drain_as_it_did() -> None:
    throughput = Throughput()
    for number in range(4):
        tell(throughput, "job.queued", f"j{number}", 0)
    for number in range(3):
        tell(throughput, "job.started", f"j{number}", 10 + number)
    assert throughput.seconds_per_start("k", 12.5) == 1
    assert throughput.seconds_per_start("k", 112) == 100
    tell(throughput, "job.started", "j3", 200)
    assert throughput.seconds_per_start("k", 900) == 1  # nothing waits
