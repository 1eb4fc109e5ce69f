"""Doing damage to files, for tests and benchmarks."""

from pathlib import Path

import h5py
import numpy as np


def flip(path: Path, row: int, layer: str | None = None) -> None:
    """Change one bit of one row's features."""
    with h5py.File(path) as file:
        data = file["features"][layer or next(iter(file["features"]))]
        size = int(np.prod(data.shape[1:])) * data.dtype.itemsize
        chunk = data.id.get_chunk_info(row // data.chunks[0]).byte_offset
    content = bytearray(path.read_bytes())
    content[chunk + row % data.chunks[0] * size + size // 2] ^= 1
    path.write_bytes(content)
