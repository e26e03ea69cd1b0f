"""Hot loops in C, built where they are first needed and kept in the cache; each has a twin in
Python, which gives the same and serves where there is no compiler.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path
from typing import Final

from rewright.ir.cache import default_cache, digest

FLAGS: Final = ("-std=c11", "-O2", "-fPIC", "-shared", "-ffp-contract=off")
COMPILERS: Final = ("cc", "gcc", "clang")
SECONDS: Final = 60


@cache
def native(name: str) -> ctypes.CDLL | None:
    """The library made of `name`.c in this folder; None where it cannot be built."""
    compiler = _compiler()
    if compiler is None or os.environ.get("REWRIGHT_NATIVE") == "0":
        return None
    source = Path(__file__).with_name(f"{name}.c")
    try:
        status = os.stat(compiler)
        known = (compiler, str(status.st_size), str(status.st_mtime_ns), *FLAGS)
        entry = f"{digest(source.read_bytes(), *known)}.so"
        path = default_cache().find(entry)
        if path is None:
            path = default_cache().write(entry, _built(compiler, source))
        return ctypes.CDLL(str(path))
    except (OSError, subprocess.SubprocessError):
        return None


def _compiler() -> str | None:
    named = os.environ.get("CC")
    found = (shutil.which(c) for c in ((named,) if named else COMPILERS))
    return next((os.path.realpath(path) for path in found if path), None)


def _built(compiler: str, source: Path) -> bytes:
    with tempfile.TemporaryDirectory(prefix="rewright-") as folder:
        made = Path(folder) / "native.so"
        command = [compiler, *FLAGS, str(source), "-o", str(made), "-lm"]
        subprocess.run(command, check=True, capture_output=True, timeout=SECONDS)
        return made.read_bytes()
