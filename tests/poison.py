"""Garbage for every kind of key in Redis, as a bug, an operator or a failing disk may leave it."""

from collections.abc import Callable

from redis import Redis

NO_TEXT = b"\xff\xfe{garbage"
Poison = Callable[[Redis, bytes], None]


def spoil(redis: Redis, key: bytes) -> None:
    """Every value or member is garbage, or has garbage beside it; the key keeps its type."""
    match redis.type(key):
        case b"string":
            redis.set(key, NO_TEXT, keepttl=True)
        case b"hash":
            redis.hset(key, mapping={**dict.fromkeys(redis.hkeys(key), NO_TEXT), NO_TEXT: NO_TEXT, "x": "{}"})
        case b"set":
            redis.sadd(key, NO_TEXT, "../../etc", "")
        case b"zset":
            redis.zadd(key, {NO_TEXT: 1, "../../etc": 2.5e9, "a:b:c": 3e9, "": "inf"})
        case b"list":
            redis.lpush(key, NO_TEXT, "../../etc", "")
            redis.rpush(key, NO_TEXT)
        case b"stream":
            redis.xadd(key, {"x": NO_TEXT})
            redis.xadd(key, {"event": NO_TEXT, "job": NO_TEXT, "seq": NO_TEXT, "prev": NO_TEXT})
            redis.xadd(
                key, {"event": '{"type": "job.unknown", "data": {}}', "job": "a", "seq": "1-1", "prev": ""}
            )
        case other:
            raise AssertionError(f"{key!r} is of type {other!r}, which no test knows")


def change_type(redis: Redis, key: bytes) -> None:
    """The key is of another type than it should be."""
    of_list = redis.type(key) == b"list"
    with redis.pipeline(transaction=True) as transaction:
        transaction.delete(key)
        transaction.set(key, "1") if of_list else transaction.rpush(key, "1")
        transaction.execute()
