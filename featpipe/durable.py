"""Files that are there whole or not at all, whatever happens to the process."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def placing(path: Path, folder: Path | None = None) -> Iterator[Path]:
    """Yield a temporary name; on leaving without an error, sync it and put it in place.

    The temporary file lies beside the real one, or in a `folder` of the same file system, so
    that putting it in place is one rename.
    """
    temporary = (folder or path.parent) / f".{path.name}.{os.getpid()}.tmp"
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    if os.name == "posix":  # the rename itself is durable once its folder is synced
        handle = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def put(path: Path, content: bytes) -> None:
    """Write a small file."""
    with placing(path) as temporary:
        temporary.write_bytes(content)


def save_json(path: Path, document: Any) -> None:
    """Write plain values as JSON; bytes of a name that are not UTF-8 become its escapes."""
    text = json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False)
    put(path, (text + "\n").encode("utf-8", "backslashreplace"))
