"""What another version has stored is read; what nobody can read is told apart, without its values."""

import json

import pytest
from pydantic import ValidationError
from redis import Redis

from api_schemas.catalog import Cost
from api_schemas.events import JobQueued, QueuedData
from api_schemas.generation import GenerationRequest, ResolvedRequest
from api_schemas.job import begin
from api_schemas.stored import RECORD_VERSION, UnreadableRecordError, read_card, read_event, write_card
from api_schemas.wire import (
    APPEND_EVENT,
    RECORD,
    SET_ASIDE,
    append_event,
    events_key,
    job_key,
    read_id,
    read_job,
)
from tests.story import CARD

REQUEST = ResolvedRequest(model="glow", steps=12, guidance_scale=5.0, seed=7, prompt="secret words")
COST = Cost(tiles=1, megapixel_steps=1.0, vram_gib=0.1)
QUEUED = JobQueued(job_id="one", attempt=0, ts=1.5, data=QueuedData(request=REQUEST, cost=COST))


def with_unknown_fields(value: object) -> object:
    """As a later version may store it: one field more at every place."""
    if isinstance(value, list):
        return [with_unknown_fields(each) for each in value]
    if not isinstance(value, dict):
        return value
    return {name: with_unknown_fields(each) for name, each in value.items()} | {"unknown": {"of": 1}}


def test_unknown_fields_of_what_is_stored_are_ignored_at_every_depth() -> None:
    event = with_unknown_fields(json.loads(QUEUED.model_dump_json()))
    del event["data"]["request"]["pictures"]["unknown"]  # keys of a mapping are no fields
    assert read_event(json.dumps(event).encode()) == QUEUED
    card = with_unknown_fields(json.loads(CARD.model_dump_json()))
    assert read_card(json.dumps(card).encode()) == CARD


def test_unknown_fields_of_requests_are_refused() -> None:
    with pytest.raises(ValidationError, match="Extra inputs"):
        GenerationRequest.model_validate_json('{"prompt": "lava", "unknown": 1}')
    with pytest.raises(ValidationError, match="Extra inputs"):
        GenerationRequest.model_validate_json('{"advanced": {"unknown": 1}}')


def test_a_card_is_stored_with_its_version() -> None:
    assert json.loads(write_card(CARD))["record_version"] == RECORD_VERSION
    assert read_card(write_card(CARD).encode()) == CARD


def test_job_and_log_are_stored_with_their_version(valkey: str) -> None:
    with Redis.from_url(valkey) as redis:
        keys, arguments = append_event(begin(QUEUED), QUEUED, after="")
        seq = redis.eval(APPEND_EVENT, len(keys), *keys, *arguments)
        record = redis.hmget(job_key("one"), RECORD)
        assert record[2] == str(RECORD_VERSION).encode()
        assert read_job("one", record) == begin(QUEUED).model_copy(update={"seq": seq.decode()})
        ((_, entry),) = redis.xrange(events_key("one"))
        assert read_event(entry[b"event"], entry[b"version"]) == QUEUED
        assert entry[b"version"] == record[2]


@pytest.mark.parametrize("body", [b"", b"\xff", b"{}", b"[1]", b'{"type": "job.unknown"}', b"null"])
def test_what_cannot_be_read_is_told_apart(body: bytes) -> None:
    for read in (read_event, read_card, lambda stored: read_job("one", (stored, b"1-1", None))):
        with pytest.raises(UnreadableRecordError):
            read(body)


def test_the_reason_names_fields_and_versions_but_no_values() -> None:
    event = json.loads(QUEUED.model_dump_json())
    event["data"]["request"]["width_px"] = "secret words"
    with pytest.raises(UnreadableRecordError) as raised:
        read_event(json.dumps(event).encode(), b"9")
    assert "data.request.width_px: Input should be a valid integer" in str(raised.value)
    assert f"stored as version b'9'; this one reads {RECORD_VERSION}" in str(raised.value)
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize("record", [(None, b"1-1", None), (b"{}", None, None), (b"{}", b"x", b"1")])
def test_half_a_record_is_no_record(record: tuple[bytes | None, ...]) -> None:
    with pytest.raises(UnreadableRecordError, match="not whole"):
        read_job("one", record)
    assert read_job("one", (None, None, None)) is None


def test_the_record_of_another_job_is_not_taken_for_this_ones() -> None:
    record = (begin(QUEUED).model_dump_json(exclude={"seq"}).encode(), b"1-1", None)
    with pytest.raises(UnreadableRecordError, match="of a job 'one'"):
        read_job("two", record)


def test_keys_of_another_type_are_moved_aside_and_others_left(valkey: str) -> None:
    with Redis.from_url(valkey) as redis:
        redis.set("wrong", "1")
        redis.sadd("right", "1")
        keys = ("wrong", "right", "absent")
        assert redis.eval(SET_ASIDE, 3, *keys, "zset", "set", "list") == [b"wrong"]
        assert sorted(redis.keys()) == [b"chorale:unreadable:wrong", b"right"]


@pytest.mark.parametrize("member", [b"", b"\xff", b"../x", b"a:b", b"a b", "é".encode()])
def test_what_is_no_id_is_none(member: bytes) -> None:
    assert read_id(member) is None
    assert read_id(b"01a225ea6cbc") == "01a225ea6cbc"
