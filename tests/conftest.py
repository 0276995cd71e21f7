"""One thread for every test and for every process that a test starts: cores are shared, and bytes are compared. And a
cache of its own, empty at first."""

import os
import sys
import tempfile

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["SELFALIGN_CACHE"] = tempfile.mkdtemp(prefix="selfalign-tests-")


def pytest_runtest_setup() -> None:
    """A command that a test calls in this process may have set as many threads as there are cores."""
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(1)
