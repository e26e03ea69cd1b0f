"""All that is to be measured on a GPU, in one go: `python -m benchmarks.gpu`.

Needs the repository, torch, Triton, rich and transformers; Rewright itself need not be installed.
The tests also want pytest, hypothesis, lark and safetensors.

    tests      the tests that are marked `gpu`
    rows       softmax, norms and cross entropy in bf16, forward and backward, beside a copy
    attention  forward in bf16, heads of 128: our kernel, torch's, FlexAttention
    gradients  the same backward
    products   a product with an epilogue, beside the product alone
    models     GPT-2 and a Llama in bf16: inference, and a training step

Each part runs in a process of its own, under a time limit: what breaks a GPU's context, or never
ends, costs that part alone, and what it had measured by then is kept. Answers are compared with
float64 before they are timed. `--device cpu --quick` tries the script where there is no GPU.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from time import monotonic
from typing import Any, Final

import torch

from benchmarks import gpu_cases, gpu_gradients
from benchmarks.device import Device
from benchmarks.gpu_cases import Case, Setting
from benchmarks.options import RESULTS, add_choice, add_count
from benchmarks.report import print_table
from benchmarks.steady import duration

PARTS: Final[Mapping[str, Callable[[Setting], Iterator[Case]]]] = {
    "rows": gpu_cases.rows,
    "attention": gpu_cases.attention,
    "gradients": gpu_gradients.gradients,
    "products": gpu_cases.products,
    "models": gpu_cases.models,
}
# In this order, with the share of the time that each may take.
SHARES: Final = {
    "tests": 0.25,
    "attention": 0.2,
    "gradients": 0.15,
    "rows": 0.15,
    "products": 0.1,
    "models": 0.15,
}
TESTS: Final = ("tests/test_triton.py", "tests/test_triton_attention.py")
MORE_TESTS: Final = (
    *("tests/test_triton_attention_backward.py", "tests/test_gpu_artefact.py"),
    "tests/test_gpu_here.py",
)
NO_GPU: Final = 2
MESSAGE: Final = 400


def options() -> argparse.ArgumentParser:
    asked = argparse.ArgumentParser(
        "python -m benchmarks.gpu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_choice(asked, "parts", list(SHARES), default=list(SHARES))
    add_choice(
        asked, "backends", ["rewright", "inductor", "eager"], ["rewright", "inductor", "eager"]
    )
    add_count(asked, "rounds", 21, "calls of each candidate that are timed")
    asked.add_argument("--minutes", type=float, default=9.0, help="for all parts (default: 9)")
    asked.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    asked.add_argument("--quick", action="store_true", help="small sizes: tries the script")
    asked.add_argument("--json", type=Path, default=RESULTS / "gpu.json", metavar="FILE")
    asked.add_argument("--into", type=Path, help=argparse.SUPPRESS)  # of one part's process
    return asked


def main(arguments: list[str] | None = None) -> int:
    asked = options().parse_args(arguments)
    if asked.device == "cuda" and not torch.cuda.is_available():
        print("torch finds no GPU here: nothing is measured", file=sys.stderr)
        return NO_GPU
    if asked.into is not None:
        return _measure_part(asked)
    found: dict[str, dict[str, Any]] = {}
    settings = {key: getattr(asked, key) for key in ("rounds", "backends", "device", "quick")}
    machine = Device(asked.device).described()
    for part in (part for part in SHARES if part in asked.parts):
        found[part] = _in_process(part, asked)
        record = {"benchmark": "gpu", "machine": machine, "settings": settings, "results": found}
        _write(asked.json, record)  # somebody may end this process, too
        _show(part, found[part])
    return 1 if any(_failed(result) for result in found.values()) else 0


def _failed(result: Mapping[str, Any]) -> bool:
    return "stopped" in result or any("wrong" in c or "error" in c for c in result.get("cases", ()))


# --- one part -------------------------------------------------------------------------------------


def _in_process(part: str, asked: argparse.Namespace) -> dict[str, Any]:
    """What a part's process had written when it ended, and how it ended unless well."""
    limit = 60 * asked.minutes * SHARES[part] / sum(SHARES[p] for p in asked.parts)
    print(f"{part}: at most {limit:.0f} s", file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "part.json"
        command = [sys.executable, "-m", "benchmarks.gpu", "--parts", part, "--into", str(file)]
        command += ["--device", asked.device, "--rounds", str(asked.rounds)]
        command += ["--backends", *asked.backends, *["--quick"] * asked.quick]
        began = monotonic()
        stopped = _ended(_tests(asked) if part == "tests" else command, limit)
        found = json.loads(file.read_text()) if file.exists() else {}
    found["seconds"] = round(monotonic() - began, 1)
    if part == "tests":
        return found | {"said": stopped[-1:] or ["passed"]} | _if_failed(stopped)
    return found | _if_failed(stopped)


def _if_failed(lines: list[str]) -> dict[str, Any]:
    return {"stopped": lines} if lines and lines[0] != "ended" else {}


def _ended(command: list[str], limit: float) -> list[str]:
    """ "ended" and the last line of what was said, or how it went wrong and the last lines."""
    try:
        done = subprocess.run(
            command, timeout=limit, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
    except subprocess.TimeoutExpired as late:
        said = late.output or b""
        text = said.decode(errors="replace") if isinstance(said, bytes) else said
        return [f"after {limit:.0f} s", *text.splitlines()[-5:]]
    lines = done.stdout.strip().splitlines()
    return (
        ["ended", *lines[-1:]]
        if done.returncode == 0
        else [f"exit code {done.returncode}", *lines[-8:]]
    )


def _tests(asked: argparse.Namespace) -> list[str]:
    files = TESTS[:1] if asked.quick else (*TESTS, *MORE_TESTS)
    at_once = ["-n", "8"] if find_spec("xdist") and not asked.quick else []  # most is compiling
    return [sys.executable, "-m", "pytest", "-q", "-m", "gpu", *at_once, *files]


def _measure_part(asked: argparse.Namespace) -> int:
    """Writes after each case: a limit may cut it short at any time."""
    (part,) = asked.parts
    device, setting = (
        Device(asked.device),
        Setting(asked.device, tuple(asked.backends), asked.quick),
    )
    torch.manual_seed(0)
    record: dict[str, Any] = {"cases": []}
    if part == "rows":
        nbytes = 1 << 16 if asked.quick else 1 << 30
        record["copy_bytes_per_second"] = device.copy_bandwidth(nbytes, asked.rounds)
    for case in PARTS[part](setting):
        print(case.name, flush=True)
        record["cases"].append(_measured(case, device, asked.rounds))
        _write(asked.into, record)
    return 0


def _measured(case: Case, device: Device, rounds: int) -> dict[str, Any]:
    """Candidates that fail are named, and the others are timed."""
    row: dict[str, Any] = {"case": case.name, **case.about}
    failed = _what_fails(case.calls)
    if failed:
        row["error"] = failed
    working = {name: call for name, call in case.calls.items() if name not in failed}
    wrong = case.restricted(working).wrong() if "eager" in working else {}
    if wrong:
        row["wrong"] = wrong
    found = device.compare(working, rounds)
    subjects = [name for name in ("rewright", "kernel") if name in working]
    row |= found.as_json(subjects)
    medians = {name: median(seconds) for name, seconds in found.seconds.items()}
    for needed, unit in ((case.bytes, "bytes_per_second"), (case.flops, "flops")):
        if needed:
            row[unit] = {name: needed / seconds for name, seconds in medians.items()}
    return row


def _what_fails(calls: Mapping[str, Callable[[], Any]]) -> dict[str, str]:
    failed = {}
    for name, call in calls.items():
        try:
            call()
        except Exception as error:  # whatever a compiler throws: the others are still measured
            failed[name] = f"{type(error).__name__}: {error}"[:MESSAGE]
    return failed


# --- results --------------------------------------------------------------------------------------


def _write(path: Path, record: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(path.name + ".part")
    unfinished.write_text(json.dumps(record, indent=1) + "\n")
    unfinished.replace(path)


def _show(part: str, result: Mapping[str, Any]) -> None:
    for line in (*result.get("stopped", ()), *result.get("said", ())):
        print(f"{part}: {line}")
    copied = result.get("copy_bytes_per_second")
    if copied:
        print(f"copy: {copied / 1e9:,.0f} GB/s")
    cases = result.get("cases", ())
    names = list(dict.fromkeys(name for case in cases for name in case["median_seconds"]))
    if cases:
        print_table(
            [part, *names], [[c["case"], *(_cell(c, n, copied) for n in names)] for c in cases]
        )
    for case in cases:
        for problem in ("error", "wrong"):
            for name, said in case.get(problem, {}).items():
                print(f"{problem}: {case['case']}: {name}: {said}")


def _cell(case: Mapping[str, Any], name: str, copied: float | None) -> str:
    """A time, with the rate that it comes to, as a share of a copy's where that was measured."""
    seconds = case["median_seconds"].get(name)
    if seconds is None:
        return ""
    text = duration(seconds)
    if name in case.get("flops", {}):
        text += f", {case['flops'][name] / 1e12:.0f} TFLOP/s"
    if copied and name in case.get("bytes_per_second", {}):
        text += f", {case['bytes_per_second'][name] / copied:.0%}"
    return text


if __name__ == "__main__":
    sys.exit(main())
