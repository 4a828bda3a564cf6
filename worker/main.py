"""`python -m worker.main`: a worker, as `worker/serving.py` has it.

What `multiprocessing` spawns, the engine process and its ranks, imports this file again, and needs nothing of that.
"""

import sys

if __name__ == "__main__":
    from worker.serving import main

    sys.exit(main())
