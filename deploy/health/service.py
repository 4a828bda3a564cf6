"""Exit code 0 while the API answers."""

import os
import sys
from urllib.error import URLError
from urllib.request import urlopen

url = f"http://127.0.0.1:{os.environ.get('CHORALE_PORT', '8000')}/healthz"
try:
    with urlopen(url, timeout=4) as response:
        sys.exit(response.status != 200)
except URLError as error:
    sys.exit(f"{url}: {error.reason}")
