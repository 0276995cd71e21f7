"""One thread for every test and for every process that a test starts: cores are shared, and bytes are compared."""

import os

os.environ["OMP_NUM_THREADS"] = "1"
