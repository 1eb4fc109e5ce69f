"""Files that are there whole or not at all, whatever happens to the process."""

import contextlib
import io
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import platformdirs
from filelock import FileLock, Timeout

from featpipe.errors import CacheError

LOCK = "lock"


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
    except OSError as error:
        error.filename = error.filename or str(path)  # a full disk comes without a name
        raise
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


class Deferred(io.FileIO):
    """A file whose writer never meets an error; `check` raises it afterwards.

    HDF5 can crash when the disk becomes full under it. Through this, it goes on to its end and
    reads what it wrote, on the disk or not, and the error is Python's. What could not be
    written is held in memory: check often.
    """

    error: OSError | None = None

    def __init__(self, path: Path, mode: str) -> None:
        super().__init__(path, mode)
        self._unwritten: list[tuple[int, bytes]] = []

    def write(self, data: Any) -> int:
        """Write all of it, or note why not and hold the rest."""
        view, start, done = memoryview(data).cast("B"), self.tell(), 0
        if self.error is None:
            try:
                while done < len(view):
                    done += super().write(view[done:]) or 0
            except OSError as error:
                self.error = error
        if done < len(view):
            self._unwritten.append((start + done, bytes(view[done:])))
            self.seek(start + len(view))
        return len(view)

    def read(self, size: int | None = -1) -> bytes:
        """Read what was written here, on the disk or not; zeros where nothing was."""
        start, content = self.tell(), super().read(size)
        if size is None or size < 0 or (self.error is None and len(content) == size):
            return content
        known = bytearray(content.ljust(size, b"\0"))
        for at, data in self._unwritten:
            first, last = max(at, start), min(at + len(data), start + size)
            if first < last:
                known[first - start : last - start] = data[first - at : last - at]
        self.seek(start + size)
        return bytes(known)

    def truncate(self, size: int | None = None) -> int:
        """Set the length, or note why not."""
        if self.error is None:
            try:
                return super().truncate(size)
            except OSError as error:
                self.error = error
        return self.tell() if size is None else size

    def check(self) -> None:
        """Raise the first error that a write met."""
        if self.error is not None:
            raise OSError(self.error.errno, self.error.strerror, str(self.name))


@contextmanager
def exclusive(folder: Path, what: Path) -> Iterator[None]:
    """Make a folder and hold it alone, by the system's own lock on the file ``lock`` in it.

    The lock ends with the process that holds it, so that none is ever stale; over NFS it is
    what its server makes of ``flock``.

    Raises
    ------
    CacheError
        If another process holds it, or the folder cannot be made or written to.
    """
    file = folder / LOCK
    for _ in range(100):
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            if isinstance(error, FileExistsError) and not os.path.lexists(folder):
                continue  # the one who held it has just cleared up
            reason = "it is in the way" if os.path.lexists(folder) else error.strerror
            raise CacheError(f"Cannot make {folder}: {reason}. Choose another --out.") from error
        try:
            lock = FileLock(file)
            lock.acquire(timeout=0.2, poll_interval=0.05)
        except Timeout:
            raise CacheError(f"Another process is extracting to {what}.") from None
        except FileNotFoundError:
            continue  # the one who held it has just cleared up
        except OSError as error:
            with contextlib.suppress(OSError):
                folder.rmdir()  # unless something is in it
            raise CacheError(
                f"Cannot write to {folder}: {error.strerror}. Choose another --out."
            ) from error
        if file.exists():
            break
        lock.release()
    else:
        raise CacheError(f"Cannot lock {file}: it goes away again and again.")
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            lock.release()


def clear(folder: Path) -> None:
    """Take away a folder that is held by `exclusive`, if nothing but files is in it.

    The lock goes last: until then nobody else begins anything in it, and afterwards nothing of
    theirs is taken away.
    """
    with contextlib.suppress(OSError):
        for file in [*(file for file in folder.iterdir() if file.name != LOCK), folder / LOCK]:
            file.unlink(missing_ok=True)
        folder.rmdir()


def user_folder() -> Path:
    """Where what can be made again is kept for this user; it may be removed at any time."""
    named = os.environ.get("FEATPIPE_CACHE_DIR")
    return Path(named or platformdirs.user_cache_dir("featpipe", appauthor=False))
