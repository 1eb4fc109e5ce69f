"""Small pictures of a cache's images, one WebP file a row, for pages and contact sheets."""

import io
import json
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image

from featpipe.cache import FeatureCache
from featpipe.checksums import digest_column
from featpipe.device import available_cores
from featpipe.durable import save_json
from featpipe.images import ImageSource
from featpipe.originals import Originals, open_originals
from featpipe.settings import ImageSettings

SIZE = 160  # pixels of the longer side
QUALITY = 75
ABOUT = "thumbnails.json"
Progress = Callable[[int, int], None]


@dataclass(frozen=True, eq=False)
class Thumbnails:
    """A folder of thumbnails.

    Attributes
    ----------
    folder : Path
    missing : tuple of int
        Rows that were asked for, and of which there is no picture.
    """

    folder: Path
    missing: tuple[int, ...]

    def path(self, row: int) -> Path:
        """The file of a row, be it there or not."""
        return self.folder / file_name(row)

    def read(self, row: int) -> bytes | None:
        """The WebP file of a row; None if there is none."""
        try:
            return self.path(row).read_bytes() or None
        except FileNotFoundError:
            return None


def file_name(row: int) -> str:
    """``000012.webp``."""
    return f"{row:06d}.webp"


def thumbnail(picture: Image.Image, size: int = SIZE, quality: int = QUALITY) -> bytes:
    """WebP bytes of an RGB picture whose longer side is at most `size`; it is never enlarged."""
    small = picture.copy()
    small.thumbnail((size, size), Image.Resampling.BICUBIC, reducing_gap=2.0)
    buffer = io.BytesIO()
    small.save(buffer, "WEBP", quality=quality, method=4)
    return buffer.getvalue()


def save_thumbnails(
    cache: FeatureCache,
    folder: str | Path,
    rows: Sequence[int] | np.ndarray | None = None,
    images: str | Path | ImageSource | None = None,
    image_settings: ImageSettings | None = None,
    size: int = SIZE,
    quality: int = QUALITY,
    workers: int | None = None,
    on_progress: Progress | None = None,
) -> Thumbnails:
    """Make thumbnails of some rows; those that are there already are left as they are.

    Parameters
    ----------
    cache : FeatureCache
    folder : str or Path
        ``000000.webp``, ``000001.webp``, ... by row, and ``thumbnails.json``, which says what they
        are of: those of other images, or of another size, are made anew.
    rows : sequence of int
        All rows if left out.
    images : str, Path or ImageSource
        Where the pictures are; by default where the cache says.
    image_settings : ImageSettings
        For manifests; by default those of the extraction.
    size : int
        Pixels of the longer side, at most.
    quality : int
        Of WebP, to 100.
    workers : int
        Threads; one a core by default.
    on_progress : callable
        Is given thumbnails done and thumbnails in all.

    Returns
    -------
    Thumbnails
        Images that are gone, have changed or cannot be decoded are its `missing` ones.

    Raises
    ------
    ImagesError
        If the place of the images is not to be found.
    """
    originals = open_originals(cache, images, image_settings)
    folder = Path(folder)
    wanted = [int(row) for row in (range(len(cache)) if rows is None else rows)]
    _prepare(folder, {"images": digest_column(cache.digests), "size": size, "quality": quality})
    there = {name for name, length in _files(folder) if length}
    todo = [row for row in wanted if file_name(row) not in there]
    missing, done = [], len(wanted) - len(todo)
    rest = iter(todo)
    with ThreadPoolExecutor(workers or available_cores()) as pool:
        while some := list(islice(rest, 64)):
            made = pool.map(lambda row: _make(originals, folder, row, size, quality), some)
            missing += [row for row, good in zip(some, made, strict=True) if not good]
            done += len(some)
            if on_progress:
                on_progress(done, len(wanted))
    return Thumbnails(folder, tuple(missing))


def _make(originals: Originals, folder: Path, row: int, size: int, quality: int) -> bool:
    picture = originals.picture(row)
    if picture is None:
        return False
    # Put in place whole, or not at all; what a power cut leaves empty is made again.
    temporary = folder / f".{file_name(row)}.{os.getpid()}.tmp"
    try:
        temporary.write_bytes(thumbnail(picture, size, quality))
        os.replace(temporary, folder / file_name(row))
    finally:
        temporary.unlink(missing_ok=True)
    return True


def _prepare(folder: Path, about: dict[str, str | int]) -> None:
    """Make the folder; empty it of thumbnails that are of something else."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        known = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        known = None
    if known == about:
        return
    for name, _ in _files(folder):
        (folder / name).unlink(missing_ok=True)
    save_json(folder / ABOUT, about)


def _files(folder: Path) -> list[tuple[str, int]]:
    """Names and lengths of the thumbnails of a folder, and of nothing else in it."""
    with os.scandir(folder) as found:
        return [
            (one.name, one.stat().st_size)
            for one in found
            if one.name.endswith(".webp") and one.name[:-5].isdecimal()
        ]
