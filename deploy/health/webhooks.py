"""Exit code 0 while Redis has a fresh sign of life of a process on this host that delivers webhooks."""

import os
import socket
import sys
import time

from redis import Redis
from redis.exceptions import RedisError

from api_schemas.webhook import WEBHOOK_WORKERS_KEY

_FRESH_S = 30
prefix = f"webhooks-{socket.gethostname()}-".encode()
try:
    with Redis.from_url(os.environ["CHORALE_REDIS_URL"], socket_timeout=4) as redis:
        alive = redis.zrangebyscore(WEBHOOK_WORKERS_KEY, time.time() - _FRESH_S, "+inf")
except (RedisError, ValueError) as error:
    sys.exit(f"Redis cannot be reached: {error}")
sys.exit(None if any(name.startswith(prefix) for name in alive) else f"no sign of life of {prefix.decode()}*")
