"""What all tests share: one thread for each of the processes that run them."""

import os

# Read when torch is imported, here and in the processes that tests start: with a worker on each core (pytest -n auto),
# more threads wait for each other at every operation.
os.environ.setdefault("OMP_NUM_THREADS", "1")
