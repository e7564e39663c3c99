"""What all tests share: one thread for each of the processes that run them, and less work for the garbage collector."""

import gc
import os

# Read when torch is imported, here and in the processes that tests start: with a worker on each core (pytest -n auto),
# more threads wait for each other at every operation.
os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_collection_finish() -> None:
    """Let the collector ignore what imports have made, and run a hundred times less often."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 20, 20)
