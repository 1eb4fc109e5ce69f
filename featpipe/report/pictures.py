"""Small pictures, put into the page as far as it may grow."""

import base64
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from featpipe.decode import decode
from featpipe.errors import DecodeError
from featpipe.regular import read_regular
from featpipe.thumbnails import SIZE, file_name, thumbnail

SMALL = (48, 40, 32, 24)  # of those on the map, the first that fits
LARGEST = 20_000  # bytes of one that is taken as it is
SAMPLE = 40  # pictures by which the size of many is judged


def embed(
    folder: Path, large: Sequence[int], small: Sequence[int], most: int
) -> tuple[dict[int, str], int]:
    """Pictures as base64 of WebP, in at most so many characters.

    Parameters
    ----------
    folder : Path
        Of `featpipe.thumbnails.save_thumbnails`.
    large : sequence of int
        Rows wanted as they are, the most wanted first: they get at most half of it.
    small : sequence of int
        Rows wanted, as small as it takes.
    most : int
        Characters.

    Returns
    -------
    pictures : dict of int to str
        By row.
    left_out : int
        Rows that have a picture there was no room for.
    """
    found: dict[int, str] = {}
    used = 0
    for row in dict.fromkeys(large):
        content = _read(folder, row)
        if content is None:
            continue
        text = base64.b64encode(content).decode()
        if used + len(text) > most // 2:
            break
        found[row] = text
        used += len(text)
    rest = [row for row in dict.fromkeys([*large, *small]) if row not in found]
    rest = [row for row in rest if (folder / file_name(row)).is_file()]
    if not rest:
        return found, 0
    spread = [rest[i] for i in np.linspace(0, len(rest) - 1, min(SAMPLE, len(rest))).astype(int)]
    edge = SMALL[-1]
    for edge in SMALL:
        mean = np.mean([len(_small(folder, row, edge) or "") for row in spread])
        if 1.05 * mean * len(rest) <= most - used:
            break
    left_out = 0
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for row, shrunk in zip(
            rest, pool.map(lambda row: _small(folder, row, edge), rest), strict=True
        ):
            if shrunk is None:
                continue
            if used + len(shrunk) > most:
                left_out += 1
                continue
            found[row] = shrunk
            used += len(shrunk)
    return found, left_out


def _read(folder: Path, row: int) -> bytes | None:
    """A small picture as it lies there, None if there is none."""
    try:
        content = read_regular(str(folder / file_name(row)))
    except OSError:
        return None
    if len(content) <= LARGEST and content[:4] == b"RIFF" and content[8:12] == b"WEBP":
        return content
    try:
        return thumbnail(decode(content), SIZE, 70)
    except DecodeError:
        return None


def _small(folder: Path, row: int, edge: int) -> str | None:
    try:
        picture = decode(read_regular(str(folder / file_name(row))))
    except (DecodeError, OSError):
        return None
    return base64.b64encode(thumbnail(picture, edge, 55)).decode()
