"""A content-addressed store on disk for whatever is dear to build.

Every entry is one file: its content, then a digest of that content. Files appear by an atomic
rename, so readers and writers in other processes need no lock; an entry that was cut short or
changed is not found again, and the caller builds it anew. Where the disk refuses, entries go to a
private folder that lives as long as the process.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tempfile
import warnings
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

FORMAT: Final = "1"
DIGEST_BYTES: Final = 32


def cache_root() -> Path:
    """$REWRIGHT_CACHE_DIR, else `rewright` in $XDG_CACHE_HOME, else in ~/.cache. A user without a
    home gets the private folder."""
    named = os.environ.get("REWRIGHT_CACHE_DIR")
    if named:
        return Path(named)
    shared = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return private_folder() if shared.startswith("~") else Path(shared) / "rewright"


def digest(*parts: str | bytes) -> str:
    """A key for `parts`: no two lists of parts share one."""
    total = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        total.update(len(data).to_bytes(8, "little"))
        total.update(data)
    return total.hexdigest()


@dataclass(frozen=True)
class Cache:
    """Files by name below `root`. Names begin with a digest: an entry never changes its meaning."""

    root: Path

    def find(self, name: str) -> Path | None:
        """The file of a sound entry. It ends in the digest, which loaders of libraries skip."""
        for path in self._places(name):
            if _content(path) is not None:
                return path
        return None

    def read(self, name: str) -> bytes | None:
        for path in self._places(name):
            content = _content(path)
            if content is not None:
                return content
        return None

    def write(self, name: str, content: bytes) -> Path:
        """Store an entry; it replaces a broken one."""
        path = self._path(self.root, name)
        try:
            _replace(path, content)
        except OSError as error:
            path = self._path(private_folder(), name)
            _warn_once(str(self.root), error.strerror or type(error).__name__)
            _replace(path, content)
        return path

    def _places(self, name: str) -> tuple[Path, ...]:
        places = (
            (self.root, private_folder()) if private_folder.cache_info().currsize else (self.root,)
        )
        return tuple(self._path(root, name) for root in places)

    @staticmethod
    def _path(root: Path, name: str) -> Path:
        return root / FORMAT / name[:2] / name


def default_cache() -> Cache:
    return Cache(cache_root())


@cache
def private_folder() -> Path:
    """A folder of this process alone, removed when it ends."""
    import atexit

    folder = tempfile.mkdtemp(prefix="rewright-")
    owner = os.getpid()

    def remove() -> None:
        if os.getpid() == owner:  # not in a forked child
            shutil.rmtree(folder, ignore_errors=True)

    atexit.register(remove)
    return Path(folder)


def _content(path: Path) -> bytes | None:
    """What the file holds without its digest; None when there is no sound file."""
    try:
        data = path.read_bytes()
    except OSError:
        return None
    content = data[:-DIGEST_BYTES]
    return content if data[-DIGEST_BYTES:] == hashlib.sha256(content).digest() else None


def _replace(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".new-")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content + hashlib.sha256(content).digest())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


@cache
def _warn_once(root: str, reason: str) -> None:
    warnings.warn(
        f"the cache in {root} cannot be written ({reason}); what is built now is built again by "
        "the next process",
        stacklevel=4,
    )
