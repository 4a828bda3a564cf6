"""The data directory of a stack as files that can be read and kept: the queue server's keys as JSON, and the store."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from redis import Redis
from redis.exceptions import ResponseError

KEPT_TTL_S = 600  # what expires sooner says that a process lives: it does not after an upgrade


@dataclass(frozen=True)
class DataDirectory:
    """`keys.json`, `store/` and `jobs.json` (which job should be what) in one folder."""

    folder: Path

    @property
    def jobs(self) -> dict[str, str]:
        """What each job is there for: job id by that name."""
        return json.loads((self.folder / "jobs.json").read_text())

    def keep(self, redis: Redis, store: Path, jobs: dict[str, str]) -> None:
        """Write what is in the queue server and in the store, but few previews and no pyramids."""
        shutil.copytree(store, self.folder / "store", ignore=shutil.ignore_patterns("image_files"))
        frames = [seq for seq, row in redis.xrange("chorale:live") if b"frame" in row]
        redis.xdel("chorale:live", *frames[1:])
        redis.delete(f"chorale:previews:{jobs['ended']}")
        keys = {
            _text(key): _read(redis, key)
            for key in sorted(redis.scan_iter())
            if redis.ttl(key) == -1 or redis.ttl(key) > KEPT_TTL_S
        }
        (self.folder / "keys.json").write_text(json.dumps(keys, indent=1) + "\n")
        (self.folder / "jobs.json").write_text(json.dumps(jobs, indent=1) + "\n")

    def load(self, redis: Redis, store: Path) -> None:
        """Add all of it to what is there."""
        shutil.copytree(self.folder / "store", store, dirs_exist_ok=True)
        for key, kept in json.loads((self.folder / "keys.json").read_text()).items():
            _write(redis, _bytes(key), kept["type"], kept["value"])


def _read(redis: Redis, key: bytes) -> dict[str, Any]:
    match redis.type(key):
        case b"string":
            return {"type": "string", "value": _text(redis.get(key))}
        case b"hash":
            return {"type": "hash", "value": {_text(k): _text(v) for k, v in redis.hgetall(key).items()}}
        case b"set":
            return {"type": "set", "value": sorted(map(_text, redis.smembers(key)))}
        case b"zset":
            return {
                "type": "zset",
                "value": {_text(k): v for k, v in redis.zrange(key, 0, -1, withscores=True)},
            }
        case b"list":
            return {"type": "list", "value": [_text(each) for each in redis.lrange(key, 0, -1)]}
        case b"stream":
            rows = redis.xrange(key)
            return {
                "type": "stream",
                "value": {_text(seq): {_text(k): _text(v) for k, v in row.items()} for seq, row in rows},
            }
        case other:
            raise AssertionError(f"{key!r} is of type {other!r}, which no test knows")


def _write(redis: Redis, key: bytes, kind: str, value: Any) -> None:
    match kind:
        case "string":
            redis.set(key, _bytes(value))
        case "hash":
            redis.hset(key, mapping={_bytes(k): _bytes(v) for k, v in value.items()})
        case "set":
            redis.sadd(key, *map(_bytes, value))
        case "zset":
            redis.zadd(key, {_bytes(k): v for k, v in value.items()})
        case "list":
            redis.rpush(key, *map(_bytes, value))
        case _:
            for seq, row in value.items():
                _append(redis, key, seq, {_bytes(k): _bytes(v) for k, v in row.items()})


def _append(redis: Redis, key: bytes, seq: str, row: dict[bytes, bytes]) -> None:
    try:
        redis.xadd(key, row, id=seq)
    except ResponseError:  # the live stream of another directory is ahead; nobody reads what is so old
        assert key == b"chorale:live", key


def _text(value: bytes) -> str:
    return value.decode("latin-1")


def _bytes(text: str) -> bytes:
    return text.encode("latin-1")
