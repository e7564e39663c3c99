"""Files that are written whole or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import IO, Any


def write_atomically(path: Path, write: Callable[[IO[bytes]], Any], prefix: str | None = None) -> Path:
    """Let `write` fill a temporary file beside `path`, force it to the disk, then give it its name.

    Args:
        path: what is written, or replaced.
        write: is given the open file.
        prefix: of the temporary file's name, which is left behind only if the process is killed.
    """
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=prefix or f".{path.name}.")
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as stream:
            write(stream)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return path


@cache
def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def sweep_up(folder: Path, prefix: str) -> None:
    """Remove temporary files that killed processes left; only for who holds the lock under which they are written."""
    for path in folder.glob(f"{prefix}*"):
        path.unlink(missing_ok=True)
