"""Files that are there whole or not at all, whatever happens to the process."""

import json
import os
from pathlib import Path
from types import TracebackType
from typing import Any


class placing:
    """Yields a temporary name; on leaving without an error, syncs it and puts it in place.

    The temporary file lies beside the real one, so that putting it in place is one rename.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")

    def __enter__(self) -> Path:
        return self.temporary

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is not None:
            self.temporary.unlink(missing_ok=True)
            return
        with self.temporary.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(self.temporary, self.path)
        if os.name == "posix":  # the rename itself is durable once its folder is synced
            folder = os.open(self.path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)


def put(path: Path, content: bytes) -> None:
    """Write a small file."""
    with placing(path) as temporary:
        temporary.write_bytes(content)


def save_json(path: Path, document: Any) -> None:
    """Write plain values as JSON; bytes of a name that are not UTF-8 become its escapes."""
    text = json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False)
    put(path, (text + "\n").encode("utf-8", "backslashreplace"))
