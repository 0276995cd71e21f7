"""A disk without locks: a library that is loaded before all others and refuses `flock` and `fcntl` locks."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

_SOURCE = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>

int flock(int file, int operation) { errno = ENOLCK; return -1; }

static int refused(const char *name, int file, int command, void *argument) {
    switch (command) {
    case F_SETLK: case F_SETLKW: case F_OFD_SETLK: case F_OFD_SETLKW:
        errno = ENOLCK;
        return -1;
    }
    int (*next)(int, int, ...) = dlsym(RTLD_NEXT, name);
    return next(file, command, argument);
}

#define REFUSING(name) \
    int name(int file, int command, ...) { \
        va_list rest; va_start(rest, command); void *argument = va_arg(rest, void *); va_end(rest); \
        return refused(#name, file, command, argument); }
REFUSING(fcntl)
REFUSING(fcntl64)
"""


def without_locks(folder: Path) -> dict[str, str]:
    """The environment of processes that find no locks; the library is made in `folder`."""
    compiler = shutil.which("cc") or pytest.skip("there is no C compiler")
    source, library = folder / "no_locks.c", folder / "no_locks.so"
    source.write_text(_SOURCE)
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
    return os.environ | {"LD_PRELOAD": str(library)}
