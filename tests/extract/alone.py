"""Code in a process of its own, whose memory can be measured."""

import subprocess
import sys
from pathlib import Path

CHECKOUT = Path(__file__).parents[2]
_PEAK = """
import re
def peak():
    "Most megabytes held so far; resource.getrusage begins with what the process that started this one had."
    return int(re.search(r"VmHWM:\\\\s+(\\\\d+)", open("/proc/self/status").read())[1]) // 1024
""".replace("\\\\", "\\")


def run_alone(code: str, *arguments: object) -> str:
    """What `code` prints, which may ask for its `peak()`. It must end well."""
    command = [sys.executable, "-c", _PEAK + code, *map(str, arguments)]
    done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout
