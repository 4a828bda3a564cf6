"""`chorale keys`, as an operator uses it."""

import os
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest
from redis import Redis
from typer.testing import CliRunner, Result

from api_schemas.keys import Quota, StoredKey, digest_secret, read_key
from api_schemas.webhook import webhook_key
from api_schemas.wire import KEYS_KEY, api_key_key
from chorale.cli import app
from chorale.errors import NoSuchKeyError, TakenNameError
from chorale.key_records import KeyRecords
from tests.poison import change_type

KEY = re.compile(r"chorale_[0-9a-f]{12}_[0-9a-f]{64}\n")


def run(*words: str, url: str = "") -> Result:
    return CliRunner().invoke(app, ["keys", *words], env={"CHORALE_REDIS_URL": url, "COLUMNS": "200"})


def make(*words: str, url: str = "") -> str:
    """The key, which stands alone on standard output."""
    done = run(*words, url=url)
    assert KEY.fullmatch(done.stdout), done.output
    return done.stdout.strip()


@pytest.fixture
def redis(valkey: str) -> Redis:
    return Redis.from_url(valkey)


def read(redis: Redis, key: str) -> StoredKey:
    return StoredKey.model_validate_json(redis.get(api_key_key(key.split("_")[1])))


def test_only_digests_of_secrets_are_stored_and_none_is_shown_again(valkey: str, redis: Redis) -> None:
    keys = [make("create", name, "--scope", "read,admin", url=valkey) for name in ("ann", "bob")]
    keys.append(make("rotate", "ann", "--overlap", "60", url=valkey))
    shown = run("list", url=valkey).output
    kept = b"".join(redis.dump(place) or b"" for place in redis.scan_iter("*")).decode("latin-1")
    for key in keys:
        key_id, secret = read_key(key) or ("", "")
        assert len(set(secret)) > 4
        assert f"chorale_{key_id}" in shown
        assert secret not in shown + kept
    stored, now = read(redis, keys[0]), time.time()
    assert stored.key.scopes == {"read", "admin"}
    assert [stored.accepts(digest_secret(key.split("_")[2]), now) for key in keys] == [True, False, True]
    assert not stored.accepts(digest_secret(keys[0].split("_")[2]), now + 61)


def test_every_secret_is_accepted_as_long_as_it_was_promised(valkey: str, redis: Redis) -> None:
    keys = [make("create", "ann", url=valkey)]
    keys += [
        make("rotate", "ann", "--overlap", str(overlap), url=valkey) for overlap in (600, 60, 900, 600, 600)
    ]

    def accepted(after_s: float) -> list[bool]:
        stored, now = read(redis, keys[0]), time.time()
        return [stored.accepts(digest_secret(key.split("_")[2]), now + after_s) for key in keys]

    assert accepted(0) == [True] * 6
    assert accepted(61) == [True, False, True, True, True, True]
    assert accepted(601) == [False, False, True, False, False, True]
    refused = str(run("rotate", "ann", "--overlap", "1", url=valkey).exception)
    assert re.search(r"ann has 5 former secrets .* ends in (59|60) s", refused)
    assert accepted(0) == [True] * 6
    keys.append(make("rotate", "ann", url=valkey))
    assert accepted(0) == [False] * 6 + [True]
    keys = keys[-1:] + [
        make("rotate", "ann", "--overlap", "0.001", url=valkey) for _ in range(7)
    ]  # soon over
    assert accepted(1) == [False] * 7 + [True]


def test_of_several_operators_at_once_one_gets_the_name(valkey: str, redis: Redis) -> None:
    start = Barrier(4)

    def create(name: str) -> bool:
        with Redis.from_url(valkey) as own:
            start.wait(10)
            try:
                return bool(KeyRecords(own).create(name, frozenset({"read"})))
            except TakenNameError:
                return False

    with ThreadPoolExecutor(4) as pool:
        for name in ("ann", "bob", "cleo", "dora", "eve"):
            assert sum(pool.map(create, [name] * 4)) == 1
    assert len(redis.keys("chorale:key:*")) == 5


@pytest.mark.parametrize("word", ["revoke", "delete"])
def test_the_webhook_of_a_key_goes_with_it(word: str, valkey: str, redis: Redis) -> None:
    ids = [make("create", name, url=valkey).split("_")[1] for name in ("ann", "bob")]
    for key_id in ids:
        redis.hset(webhook_key("key", key_id), "secrets", "whsec_")
    make("rotate", "ann", url=valkey)
    assert redis.exists(webhook_key("key", ids[0]))
    run(word, "ann", url=valkey)
    assert [redis.exists(webhook_key("key", key_id)) for key_id in ids] == [0, 1]


def test_keys_come_back_where_their_list_is_of_another_type(valkey: str, redis: Redis) -> None:
    for name in ("ann", "bob"):
        make("create", name, url=valkey)
    redis.set(api_key_key("0123456789ab"), "garbage")
    order = redis.zrange(KEYS_KEY, 0, -1)
    change_type(redis, KEYS_KEY.encode())
    assert isinstance(run("create", "ann", url=valkey).exception, TakenNameError)
    assert redis.zrange(KEYS_KEY, 0, -1) == order
    redis.delete(*redis.keys("chorale:key:*"))
    change_type(redis, KEYS_KEY.encode())
    assert run("list", url=valkey).exit_code == 0
    assert not redis.exists(KEYS_KEY)


def test_a_name_is_of_one_live_key(valkey: str, redis: Redis) -> None:
    first = make("create", "ann", url=valkey)
    assert isinstance(run("create", "ann", url=valkey).exception, TakenNameError)
    assert "is revoked" in run("revoke", "ann", url=valkey).stdout
    second = make("create", "ann", url=valkey)
    assert read(redis, first).key.revoked_at is not None
    assert read(redis, second).key.revoked_at is None
    assert isinstance(run("rotate", first.rpartition("_")[0], url=valkey).exception, NoSuchKeyError)
    assert "is deleted" in run("delete", first.split("_")[1], url=valkey).stdout
    assert read_key(make("rotate", "ann", url=valkey))[0] == second.split("_")[1]
    for word in ("revoke", "rotate", "delete"):
        assert isinstance(run(word, "zoe", url=valkey).exception, NoSuchKeyError)


def test_a_key_has_its_quota_and_a_wrong_one_makes_no_key(valkey: str, redis: Redis) -> None:
    key = make("create", "ann", "--quota", "calls=600/min, store=50GB", url=valkey)
    assert read(redis, key).key.quota == Quota(calls_per_minute=600, store_bytes=50 * 10**9)
    assert "calls=600/min, store=50GB" in run("list", url=valkey).output
    refused = run("create", "bob", "--quota", "calls=600", url=valkey)
    assert "--quota 'calls=600': allowed for calls" in str(refused.exception)
    assert "--quota: limits" in str(run("create", "bob", "--quota", "", url=valkey).exception)
    assert len(redis.keys("chorale:key:*")) == 1


def test_a_quota_is_changed_as_a_whole_and_may_be_none(valkey: str, redis: Redis) -> None:
    key = make("create", "ann", "--quota", "calls=600/min", url=valkey)
    told = run("quota", "ann", "--quota", "queued=3,store=20GiB", url=valkey).stdout
    assert told == f"ann ({key.rpartition('_')[0]}): queued=3,store=20GiB\n"
    assert read(redis, key).key.quota == Quota(queued_jobs=3, store_bytes=20 << 30)
    assert read(redis, key).accepts(digest_secret(key.split("_")[2]), time.time())
    for wrong in ("", " ", "calls=600", "none,calls=600/min"):
        assert "--quota" in str(run("quota", "ann", "--quota", wrong, url=valkey).exception)
    assert run("quota", "ann", url=valkey).exit_code == 2  # nothing said is not unlimited
    assert read(redis, key).key.quota == Quota(queued_jobs=3, store_bytes=20 << 30)
    assert "unlimited" in run("quota", "ann", "--quota", "none", url=valkey).stdout
    assert read(redis, key).key.quota == Quota()
    run("revoke", "ann", url=valkey)
    for name in ("ann", "zoe"):
        refused = run("quota", name, "--quota", "queued=3", url=valkey).exception
        assert isinstance(refused, NoSuchKeyError)


def test_a_list_that_another_program_reads_has_whole_lines(valkey: str) -> None:
    quota = "calls=600/min,concurrent=2,queued=100,megapixel_steps=5000/day,store=50GB"
    key = make("create", "the studio on the second floor", "--quota", quota, url=valkey)
    command = [sys.executable, "-m", "chorale.cli", "keys", "list"]
    environment = os.environ | {"CHORALE_REDIS_URL": valkey, "COLUMNS": "80"}
    listed = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    (line,) = [line for line in listed.splitlines() if key.rpartition("_")[0] in line]
    assert quota.replace(",", ", ") in line


@pytest.mark.parametrize("scope", ["", "write", "read,write", ",", "READ"])
def test_scopes_that_do_not_exist_are_named(scope: str, valkey: str, redis: Redis) -> None:
    refused = run("create", "ann", "--scope", scope, url=valkey)
    assert "create, read, admin" in str(refused.exception)
    assert redis.keys() == []


def test_an_address_with_a_password_is_not_repeated() -> None:
    for url in ("http://:hush@127.0.0.1:1", "redis://:hush@127.0.0.1:1", "redis://:hush@127.0.0.1:port"):
        refused = run("list", url=url)
        assert refused.exception is not None
        assert "hush" not in f"{refused.output} {refused.exception}"


def test_a_data_directory_has_its_keys_while_no_stack_runs(tmp_path: Path) -> None:
    key = make("create", "ann", "--data", str(tmp_path))
    assert key.rpartition("_")[0] in run("list", "--data", str(tmp_path)).stdout
