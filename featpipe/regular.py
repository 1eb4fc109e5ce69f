"""Opening files that somebody else named: regular files, and nothing else, are ever opened."""

import os
import stat
from collections.abc import Iterator

BLOCK_BYTES = 1 << 20
MOST_BYTES = 1 << 30  # of an image file; the largest picture that is decoded fits into it
_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


class IrregularFileError(OSError):
    """What has this name is not a regular file, or too large a one; it was not read."""


def read_blocks(path: str, size: int = BLOCK_BYTES) -> Iterator[bytes]:
    """The bytes of a regular file, at most `size` at a time; nothing else is ever opened.

    Raises
    ------
    IrregularFileError
        If it is anything but a regular file of at most 1 GiB.
    OSError
        If the system will not give its bytes.
    """
    _refuse_irregular(os.stat(path))
    # Should it have become a pipe by now, opening it must not wait for somebody to write.
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    try:
        found = os.fstat(handle)
        _refuse_irregular(found)
        size, done = min(max(found.st_size + 1, 4096), size), 0  # a small file is one block
        while block := os.read(handle, size):
            done += len(block)
            _refuse_large(done)  # what the system makes up as it is read may have no size
            yield block
            if done == found.st_size:
                return
    finally:
        os.close(handle)


def read_regular(path: str) -> bytes:
    """All bytes of a regular file; errors are those of `read_blocks`."""
    found = list(read_blocks(path, MOST_BYTES))
    return found[0] if len(found) == 1 else b"".join(found)


def _refuse_irregular(found: os.stat_result) -> None:
    if not stat.S_ISREG(found.st_mode):
        kind = next((name for test, name in _KINDS if test(found.st_mode)), "no regular file")
        raise IrregularFileError(f"it is {kind}, which is not opened")
    _refuse_large(found.st_size)


def _refuse_large(size: int) -> None:
    if size > MOST_BYTES:
        raise IrregularFileError(f"it has more than the {MOST_BYTES:,} bytes that are read")
