"""Small pictures: made beside the results, and put into the page as far as it may grow."""

import base64
import io
import logging
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from featpipe.decode import decode
from featpipe.durable import put
from featpipe.errors import DecodeError
from featpipe.images import ImageSource
from featpipe.regular import read_regular

log = logging.getLogger(__name__)

EDGE = 160  # pixels of the longer side, of those that are made
SMALL = (48, 40, 32, 24)  # of those on the map, the first that fits
LARGEST = 20_000  # bytes of one that is taken as it is
SAMPLE = 40  # pictures by which the size of many is judged


def name_of(row: int) -> str:
    """``000017.webp``."""
    return f"{row:06d}.webp"


def write_thumbnails(source: ImageSource, rows: Iterable[int], folder: str | Path) -> int:
    """Make small pictures of some images, those that are not there yet.

    Parameters
    ----------
    source : ImageSource
    rows : iterable of int
    folder : str or Path
        Is made; ``NNNNNN.webp`` by row.

    Returns
    -------
    int
        Those of the rows that have one now; an image that cannot be read or decoded has none.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)

    def make(row: int) -> bool:
        path = folder / name_of(row)
        if path.is_file():
            return True
        try:
            picture = decode(source.read(row))
        except (DecodeError, OSError):
            return False
        put(path, _webp(picture, EDGE, 75))
        return True

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        return sum(pool.map(make, rows))


def embed(
    folder: Path, large: Sequence[int], small: Sequence[int], most: int
) -> tuple[dict[int, str], int]:
    """Pictures as base64 of WebP, in at most so many characters.

    Parameters
    ----------
    folder : Path
        Of `write_thumbnails`.
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
    rest = [row for row in rest if (folder / name_of(row)).is_file()]
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
        content = read_regular(str(folder / name_of(row)))
    except OSError:
        return None
    if len(content) <= LARGEST and content[:4] == b"RIFF" and content[8:12] == b"WEBP":
        return content
    try:
        return _webp(decode(content), EDGE, 70)
    except DecodeError:
        return None


def _small(folder: Path, row: int, edge: int) -> str | None:
    try:
        picture = decode(read_regular(str(folder / name_of(row))))
    except (DecodeError, OSError):
        return None
    return base64.b64encode(_webp(picture, edge, 55)).decode()


def _webp(picture: Image.Image, edge: int, quality: int) -> bytes:
    picture.thumbnail((edge, edge))
    buffer = io.BytesIO()
    picture.save(buffer, "WEBP", quality=quality, method=4)
    return buffer.getvalue()
