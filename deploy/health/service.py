"""Exit code 0 while the API answers."""

import os
import sys
from urllib.error import URLError
from urllib.request import ProxyHandler, build_opener

url = f"http://127.0.0.1:{os.environ.get('CHORALE_PORT', '8000')}/healthz"
try:
    # Whatever proxy the environment names: this is the same container.
    with build_opener(ProxyHandler({})).open(url, timeout=4) as response:
        sys.exit(response.status != 200)
except URLError as error:
    sys.exit(f"{url}: {error.reason}")
