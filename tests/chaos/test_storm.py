"""One of each kind of process under `chorale up` is killed, and the API stopped: nothing is lost, and it says so."""

import os
import random
import signal
from pathlib import Path

from api_schemas.webhook import Webhook
from chorale.client import Client
from tests.chaos.outcome import digest, require_told
from tests.chaos.storm import KINDS, Storm, chorale_up, create
from tests.chaos.tenants import await_end, draw_request
from tests.local_stack import find_all, find_part
from tests.service.webhooks.receiver import receive


def test_up_outlives_all_of_its_parts(tmp_path: Path) -> None:
    seed = random.randrange(1 << 32)
    print(f"storm seed {seed}")
    request = draw_request(steps=40)
    with receive() as receiver, chorale_up(tmp_path) as (up, url), Client(url) as client:
        client.set_webhook(Webhook(url=receiver.url))
        first = create(client, request)
        undisturbed = digest(client, await_end(client, first).id, tmp_path)
        jobs = [create(client, request) for _ in range(2)]
        os.kill(find_part(up.pid, "service.main"), signal.SIGSTOP)
        with Storm(up.pid, url, random.Random(seed)) as storm:
            for kind in [kind for kind in KINDS if kind != "service.main"]:
                storm.kill_one(kind)
            ended = [await_end(client, job) for job in jobs]
        assert up.poll() is None
        assert [job.status for job in ended] == ["succeeded"] * 2
        assert [digest(client, job, tmp_path) for job in jobs] == [undisturbed] * 2
        for job in jobs:
            assert [event.type for event in client.events(job)].count("job.succeeded") == 1
        require_told(client, receiver, [first, *jobs])
    told = (tmp_path / "up.log").read_text()
    assert "service gave no answer to 3 probes" in told
    assert "queue was killed by SIGKILL; starts again in" in told
    assert "worker-1 was killed by SIGKILL; starts again in" in told
    assert "webhooks was killed by SIGKILL; starts again in" in told
    assert find_all(str(tmp_path)) == []
