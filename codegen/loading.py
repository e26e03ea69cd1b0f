"""Opens an artefact: its files checked, its tensors mapped, its kernels bound, its inputs fitted.

Depends on torch and the standard library alone: an artefact carries a copy of this file, and
`python loading.py` there says whether its files are as they were written.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import math
import mmap
import os
import platform
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import torch

FORMAT = "rewright-artefact"
VERSION = 1
READS = (1,)  # versions of the format
MANIFEST = "rewright.json"
CACHES = "__pycache__"  # Python's own, made when a program is imported

# The names that safetensors has for types of elements.
DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "U16": torch.uint16,
    "I16": torch.int16,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "U32": torch.uint32,
    "I32": torch.int32,
    "F32": torch.float32,
    "U64": torch.uint64,
    "I64": torch.int64,
    "F64": torch.float64,
    "C64": torch.complex64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E8M0": torch.float8_e8m0fnu,
}


class Refused(RuntimeError):
    """An artefact that cannot be used here; the words say why, and name the file."""


def opened(folder: Path, *, verify: bool = True) -> dict[str, Any]:
    """The manifest of an artefact whose files are in order, and which this machine can run.

    `verify` compares every file with its digest; without it they must only be there. Raises
    Refused.
    """
    manifest = read_manifest(folder)
    check_files(folder, manifest["files"], digests=verify)
    check_machine(manifest["target"])
    return manifest


# --- the manifest and the files -----------------------------------------------------------------


def read_manifest(folder: Path) -> dict[str, Any]:
    """Raises Refused for a folder that is no artefact, or one of another version."""
    path = folder / MANIFEST
    if not path.is_file():
        raise Refused(f"{folder} is not an artefact: it has no {MANIFEST}")
    if path.is_symlink():
        raise Refused(f"{path} is a link; an artefact holds its own files")
    try:
        manifest = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise Refused(f"{path} cannot be read: {error}") from None
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise Refused(f"{folder} is not an artefact: its {MANIFEST} is of another kind")
    version = manifest.get("version")
    if version not in READS:
        known = ", ".join(map(str, READS))
        raise Refused(
            f"{folder} was written by rewright {manifest.get('rewright')} in version {version} of "
            f"the format, and this reads version {known}: write it again with `rewright optimize`"
        )
    tables = all(isinstance(manifest.get(key), dict) for key in ("files", "target"))
    if manifest.get("sha256") != manifest_digest(manifest) or not tables:
        raise Refused(f"{path} was changed since it was written")
    return manifest


def manifest_digest(manifest: Mapping[str, Any]) -> str:
    """Of all that a manifest says, but for the digest itself."""
    rest = {key: value for key, value in manifest.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def check_files(folder: Path, files: Mapping[str, Any], *, digests: bool) -> None:
    """Raises Refused unless the folder holds exactly these files."""
    for name in sorted(files):
        check_name(name)
    for name in found_in(folder):
        if (folder / name).is_symlink():
            raise Refused(f"{folder / name} is a link; an artefact holds its own files")
        if name not in files and name != MANIFEST:
            raise Refused(f"{folder / name} is not one of the artefact's files")
    for name in sorted(files):
        if not (folder / name).is_file():
            raise Refused(f"{folder / name} is missing")
        if digests and file_facts(folder / name) != files[name]:
            raise Refused(f"{folder / name} was changed since it was written")


def check_name(name: str) -> None:
    """Raises Refused for the name of a file that may lie outside the folder."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name or str(path) != name:
        raise Refused(f"'{name}' does not name a file in the artefact")


def found_in(folder: Path) -> Iterator[str]:
    """Every file and link below the folder, and every empty folder, by its name from there."""
    for place, folders, files in os.walk(folder):
        links = [name for name in folders if os.path.islink(os.path.join(place, name))]
        folders[:] = [name for name in folders if name != CACHES and name not in links]
        inside = sorted([*files, *links])
        if not (inside or folders) and place != str(folder):
            yield Path(place).relative_to(folder).as_posix()
        yield from ((Path(place) / name).relative_to(folder).as_posix() for name in inside)


def file_facts(path: Path) -> dict[str, Any]:
    """What a manifest says of a file. Raises Refused when it cannot be read."""
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            return {"bytes": file.tell(), "sha256": digest}
    except OSError as error:
        raise Refused(f"{path} cannot be read: {error.strerror or error}") from None


def write_manifest(manifest: dict[str, Any], folder: Path) -> None:
    sealed = manifest | {"sha256": manifest_digest(manifest)}
    unfinished = folder / f".{MANIFEST}"
    unfinished.write_text(json.dumps(sealed, indent=1) + "\n", encoding="utf-8")
    unfinished.replace(folder / MANIFEST)


# --- the machine --------------------------------------------------------------------------------


def cpu_flags() -> frozenset[str]:
    """What this CPU can do, in the words of Linux; nothing where the system does not say."""
    try:
        with open("/proc/cpuinfo") as file:
            lines = [line for line in file if line.startswith(("flags", "Features"))]
    except OSError:
        return frozenset()
    return frozenset(" ".join(lines[:1]).partition(":")[2].split())


def check_machine(target: Mapping[str, Any]) -> None:
    """Raises Refused when this machine lacks what the kernels were built for."""
    again = "run `rewright optimize` on this machine, or with --target cpu"
    machine, built = platform.machine(), target.get("machine", "")
    if built not in ("", machine):
        raise Refused(f"the kernels were built for {built}, and this is {machine}: {again}")
    if target.get("device") == "cuda" and not torch.cuda.is_available():
        raise Refused(f"the program is for a GPU ({target.get('isa')}), and torch finds none here")
    flags = cpu_flags()
    missing = sorted(set(target.get("needs", ())) - flags)
    if flags and missing:
        raise Refused(
            f"the kernels were built for a CPU with {', '.join(missing)}, which this one has not: "
            f"{again}"
        )


def library(path: Path) -> ctypes.CDLL:
    """The kernels. Under a name of its own, because a path that was loaded before gives what lay
    there then. Raises Refused."""
    with tempfile.TemporaryDirectory() as folder:
        link = Path(folder) / path.name
        link.symlink_to(path)
        try:
            return ctypes.CDLL(str(link))
        except OSError as error:
            raise Refused(
                f"{path} cannot be loaded here: {error}; build.sh builds it again"
            ) from None


# --- tensors ------------------------------------------------------------------------------------


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a `.safetensors` file by name, where they lie: nothing is read before it is
    used, and what is written to them stays in memory. Raises Refused.

    `views` among the metadata gives, for a tensor that shares the memory of another or does not lie
    in the order of its dimensions, whose memory it is `in`, its dtype, shape, strides, and offset
    in elements.
    """
    try:
        with path.open("rb") as file:
            memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        start = 8 + int.from_bytes(memory[:8], "little")
        header = json.loads(memory[8:start])
        views = json.loads(header.pop("__metadata__", {}).get("views", "{}"))
        storages = {name: _storage(memory, start, entry) for name, entry in header.items()}
        plain = {name: _plain_view(name, entry) for name, entry in header.items()}
        return {
            name: _window(storages[view["in"]], view) for name, view in {**plain, **views}.items()
        }
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RuntimeError) as error:
        raise Refused(f"{path} cannot be read: {error}") from None


def _storage(memory: mmap.mmap, start: int, entry: Mapping[str, Any]) -> torch.UntypedStorage:
    first, end = entry["data_offsets"]
    if not 0 <= first <= end <= len(memory) - start:
        raise ValueError("it is truncated")
    if first == end:
        return torch.UntypedStorage(0)
    window = torch.frombuffer(memory, dtype=torch.uint8, count=end - first, offset=start + first)
    return window.untyped_storage()


def _plain_view(name: str, entry: Mapping[str, Any]) -> dict[str, Any]:
    shape = entry["shape"]
    strides = [math.prod(shape[place + 1 :]) for place in range(len(shape))]
    dtype = str(DTYPES[entry["dtype"]]).removeprefix("torch.")
    return {"in": name, "dtype": dtype, "shape": shape, "strides": strides, "offset": 0}


def _window(storage: torch.UntypedStorage, view: Mapping[str, Any]) -> torch.Tensor:
    dtype, shape, strides = getattr(torch, view["dtype"]), view["shape"], view["strides"]
    steps = sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    end = 0 if 0 in shape else view["offset"] + steps + 1
    if min([view["offset"], *shape, *strides]) < 0 or end * dtype.itemsize > storage.nbytes():
        raise ValueError("a tensor reaches beyond its memory")
    return torch.empty(0, dtype=dtype).set_(storage, view["offset"], shape, strides)


def on_device(
    tensors: Mapping[str, torch.Tensor], device: torch.device, elsewhere: Mapping[str, str]
) -> Mapping[str, torch.Tensor]:
    """The tensors on a device, but for those that `elsewhere` names another for; memory that
    several share is copied once to each."""
    moved: dict[tuple[int, torch.device], torch.UntypedStorage] = {}
    found = {}
    for name, tensor in tensors.items():
        home = torch.device(elsewhere.get(name, device))
        if home.type == "cpu":
            found[name] = tensor
            continue
        storage = tensor.untyped_storage()
        key = storage.data_ptr(), home
        if key not in moved:
            whole = torch.empty(0, dtype=torch.uint8).set_(storage)
            moved[key] = whole.to(home).untyped_storage()
        empty = torch.empty(0, dtype=tensor.dtype, device=home)
        found[name] = empty.set_(moved[key], tensor.storage_offset(), tensor.shape, tensor.stride())
    return found


# --- inputs -------------------------------------------------------------------------------------


def fitted(name: str, arg: Any, wanted: Any, device: torch.device) -> Any:
    """`arg` when it is what the program was built for: a number, or a tensor of (dtype, shape,
    strides). A tensor with other strides is copied; raises TypeError or ValueError for the rest."""
    if not isinstance(wanted, tuple):
        if arg != wanted:
            raise ValueError(f"{name} is {wanted}, not {arg!r}")
        return arg
    dtype, shape, strides = wanted
    if not isinstance(arg, torch.Tensor):
        raise TypeError(f"{name} is a tensor, not {type(arg).__name__}")
    if arg.dtype != dtype or tuple(arg.shape) != shape:
        raise ValueError(f"{name} is {dtype} {shape}, not {arg.dtype} {tuple(arg.shape)}")
    if arg.device.type != device.type:
        raise ValueError(f"{name} is on {device}, not on {arg.device}")
    arg = arg.resolve_conj().resolve_neg()
    steps = zip(shape, arg.stride(), strides, strict=True)
    as_wanted = all(size == 1 or step == asked for size, step, asked in steps)
    # Kernels of GPUs read so many bytes at once.
    as_wanted = as_wanted and (device.type == "cpu" or arg.data_ptr() % 16 == 0)
    if arg.numel() == 0 or as_wanted:
        return arg
    if any(size > 1 and step == 0 for size, step in zip(shape, strides, strict=True)):
        raise ValueError(f"{name} is a tensor with strides {strides}, not {arg.stride()}")
    return torch.empty_strided(shape, strides, dtype=dtype, device=arg.device).copy_(arg)


# --- by itself ----------------------------------------------------------------------------------


def main(arguments: Sequence[str]) -> int:
    """`loading.py` checks the artefact that it lies in; `loading.py seal NAME ...` has its manifest
    take these files as they are now."""
    folder, started = Path(__file__).resolve().parent, time.perf_counter()
    try:
        manifest = read_manifest(folder)
        files = manifest["files"]
        if arguments[:1] == ["seal"]:
            unknown = [name for name in arguments[1:] if name not in files]
            if unknown:
                raise Refused(f"{unknown[0]} is not one of the artefact's files")
            files |= {name: file_facts(folder / name) for name in arguments[1:]}
            write_manifest(manifest, folder)
        check_files(folder, files, digests=True)
    except Refused as refused:
        print(f"error: {refused}", file=sys.stderr)
        return 2
    seconds, size = time.perf_counter() - started, sum(f["bytes"] for f in files.values())
    print(f"{len(files)} files, {size:,} bytes, are as they were written ({seconds:.2f} s)")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
