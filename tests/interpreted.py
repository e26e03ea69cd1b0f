"""Results of a script that runs under Triton's interpreter."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch


def results_of(script: str, factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What all cases of a script beside this file give. The interpreter has to be chosen before
    triton is imported: they run in one other process, whatever the number of workers."""
    folder = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    path = Path(__file__).with_name(script)
    file = folder / f"{path.stem}.pt"
    with (folder / f"{path.stem}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not file.exists():
            # numpy warns of overflows, which are part of the cases.
            command = [sys.executable, "-W", "ignore", str(path), str(file)]
            subprocess.run(command, check=True, env={**os.environ, "TRITON_INTERPRET": "1"})
    results: dict[str, Any] = torch.load(file)
    return results
