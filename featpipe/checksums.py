"""XXH3 checksums: 128 bit for images and tables, 64 bit for stretches of features.

They find every accident. They are no defence against somebody who constructs two images of
one digest; whoever takes images from such people keeps one cache for each of them.
"""

from collections.abc import Iterable

import numpy as np
import xxhash

ALGORITHM = "xxh3-128"
DIGEST_BYTES = 16


def digest_bytes(data: bytes) -> bytes:
    """XXH3-128 of some bytes, such as an image's: 16 bytes."""
    return xxhash.xxh3_128_digest(data)


def digest_blocks(blocks: Iterable[bytes]) -> bytes:
    """XXH3-128 of bytes that come block by block, of which one at a time is held."""
    rest = iter(blocks)
    first, second = next(rest, b""), next(rest, b"")
    if not second:
        return digest_bytes(first)
    state = xxhash.xxh3_128(first)
    state.update(second)
    for block in rest:
        state.update(block)
    return state.digest()


def digest_column(values: np.ndarray) -> str:
    """XXH3-128, hex, of one column of a table: its type, its shape, its content.

    Texts (an object array) count by their UTF-8 bytes and their lengths.
    """
    state = xxhash.xxh3_128(f"{values.dtype.str} {values.shape}".encode())
    if values.dtype == object:
        texts = [text.encode("utf-8", "surrogateescape") for text in values]
        state.update(np.array([len(text) for text in texts], "<u8").tobytes())
        for text in texts:
            state.update(text)
    else:
        state.update(np.ascontiguousarray(values).data)
    return state.hexdigest()


def checksum(rows: np.ndarray) -> int:
    """XXH3-64 of the bytes of some rows."""
    return xxhash.xxh3_64_intdigest(rows.reshape(-1).view(np.uint8).data)


def checksum_each(rows: np.ndarray) -> np.ndarray:
    """XXH3-64 of each row: uint64 array, shape (n,)."""
    lines = rows.reshape(len(rows), -1).view(np.uint8)
    return np.array([xxhash.xxh3_64_intdigest(line.data) for line in lines], np.uint64)
