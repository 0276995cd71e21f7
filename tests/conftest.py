"""One thread for every test and for every process that a test starts: cores are shared, and bytes are compared. And a
cache of its own, empty at first."""

import os
import tempfile

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["SELFALIGN_CACHE"] = tempfile.mkdtemp(prefix="selfalign-tests-")
