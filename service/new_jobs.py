"""How records of new jobs are written."""

from collections.abc import Mapping, Sequence
from typing import cast

from redis.asyncio import Redis
from redis.asyncio.client import Pipeline
from redis.typing import EncodableT, FieldT

from api_schemas.events import JobQueued
from api_schemas.job import Job, find_deadline
from api_schemas.keys import Quota
from api_schemas.webhook import webhook_key
from api_schemas.wire import (
    ACTIVE_KEY,
    APPEND_EVENT,
    CHANGE_SET,
    DEADLINES_KEY,
    JOBS_KEY,
    SET_ASIDE,
    append_event,
    children_key,
    job_key,
    jobs_of_key,
)
from service.quotas.places import APPEND_IF_PLACE, Lack, read_lack, write_limits


async def write_all(
    redis: Redis,
    jobs: Sequence[Job],
    events: Sequence[JobQueued],
    webhook: Mapping[FieldT, EncodableT] | None,
    quota: Quota,
) -> list[bytes] | Lack:
    """What APPEND_EVENT says of each, or what the key lacks: then they are only listed, and are to be deleted.

    Args:
        jobs: of one key, as `events` begin them.
    """
    indexes = sorted({JOBS_KEY, DEADLINES_KEY, jobs_of_key(jobs[0].key_id)})
    kinds = "set", *("zset" for _ in indexes)
    async with redis.pipeline(transaction=True) as transaction:
        transaction.eval(SET_ASIDE, len(kinds), ACTIVE_KEY, *indexes, *kinds)
        for job in jobs:
            _list(transaction, job, webhook)
        for job, event in zip(jobs, events, strict=True):
            keys, arguments = append_event(job, event, after="")
            if job.key_id:
                arguments += [job_key(jobs[0].id), len(jobs), *write_limits(quota)]
            script = APPEND_IF_PLACE if job.key_id else APPEND_EVENT
            transaction.eval(script, len(keys), *keys, *arguments)
        answers = cast(list[bytes | list[bytes]], await transaction.execute())[-len(jobs) :]
    return read_lack(answers[0]) if isinstance(answers[0], list) else cast(list[bytes], answers)


def _list(transaction: Pipeline, job: Job, webhook: Mapping[FieldT, EncodableT] | None) -> None:
    """Add a job to all indexes, and its webhook."""
    transaction.sadd(ACTIVE_KEY, job.id)
    for index in {JOBS_KEY, jobs_of_key(job.key_id)}:
        transaction.zadd(index, {job.id: job.created_at})
    if (deadline := find_deadline(job)) is not None:
        transaction.zadd(DEADLINES_KEY, {job.id: deadline})
    if webhook is not None:
        transaction.hset(webhook_key("job", job.id), mapping=webhook)
    if job.request.parent is not None:  # one of another type is found out when it is read
        transaction.eval(CHANGE_SET, 1, children_key(job.request.parent), "SADD", job.id)
