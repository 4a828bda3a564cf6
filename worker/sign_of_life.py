"""What the service knows of a worker: keys that expire unless they are written again."""

from redis import Redis
from redis.exceptions import ResponseError

from api_schemas import wire
from worker.errors import ResourceError
from worker.resident import measure_resident

_SHORTEST_S = 15
_PREFIXES = (
    wire.WORKER_KEY_PREFIX,
    wire.CONNECTED_KEY_PREFIX,
    wire.MEMORY_KEY_PREFIX,
    wire.TROUBLE_KEY_PREFIX,
)


class SignOfLife:
    """The keys of one worker.

    Args:
        lease_s: the keys live as long, but at least 15 s.
    """

    def __init__(self, redis: "Redis", worker: str, lease_s: int) -> None:
        self._redis = redis
        self._worker = worker
        self._expiry_s = max(lease_s, _SHORTEST_S)
        self._is_visible: bool | None = None

    def give(self, model: str, trouble: str | None) -> None:
        """Say that the worker serves this model, and what is wrong with it."""
        if self._is_visible is None:
            self._is_visible = self._see_own_connection()
        self._redis.set(wire.WORKER_KEY_PREFIX + self._worker, model, ex=self._expiry_s)
        if self._is_visible:
            self._redis.set(wire.CONNECTED_KEY_PREFIX + self._worker, "1", ex=self._expiry_s)
        self._redis.set(wire.MEMORY_KEY_PREFIX + self._worker, measure_resident(), ex=self._expiry_s)
        if trouble is None:
            self._redis.delete(wire.TROUBLE_KEY_PREFIX + self._worker)
        else:
            self._redis.set(wire.TROUBLE_KEY_PREFIX + self._worker, trouble, ex=self._expiry_s)
        self._redis.sadd(wire.WORKERS_KEY, self._worker)

    def tell_pause(self, fault: ResourceError | None, expiry_s: int | None = None) -> None:
        """Say why the worker takes no jobs; None: it does.

        Args:
            expiry_s: of who tells it more often than once a lease.
        """
        key = wire.PAUSED_KEY_PREFIX + self._worker
        if fault is None:
            self._redis.delete(key)
            self._redis.srem(wire.PAUSED_KEY, self._worker)
        else:
            self._redis.set(key, f"{fault.code}: {fault}", ex=expiry_s or self._expiry_s)
            self._redis.sadd(wire.PAUSED_KEY, self._worker)

    def end(self) -> None:
        """Say at once that the worker is gone; the keys of a killed one expire."""
        self._redis.delete(*(prefix + self._worker for prefix in _PREFIXES))
        self._redis.srem(wire.WORKERS_KEY, self._worker)
        self.tell_pause(None)

    def _see_own_connection(self) -> bool:
        """Whether the server lists connections by name; a proxy in between, or a missing right, may hide them.

        Where it does, the service need not wait for keys to expire after a worker was killed.
        """
        try:
            clients = self._redis.client_list()  # pyright: ignore[reportUnknownMemberType]
        except ResponseError:
            return False
        return any(client.get("name") == self._worker for client in clients)
