"""Exit code 0 while Redis has a fresh heartbeat of a worker of this host."""

import os
import socket
import sys

from redis import Redis
from redis.exceptions import RedisError

from api_schemas.wire import WORKER_KEY_PREFIX

pattern = f"{WORKER_KEY_PREFIX}{socket.gethostname()}-*"
try:
    with Redis.from_url(os.environ["CHORALE_REDIS_URL"], socket_timeout=4) as redis:
        alive = next(redis.scan_iter(pattern, count=1000), None)
except (RedisError, ValueError) as error:
    sys.exit(f"Redis cannot be reached: {error}")
sys.exit(None if alive else f"no heartbeat at {pattern}")
