"""The pictures that a cache's rows were made of, found again by id and checked by digest."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from featpipe.cache import FeatureCache
from featpipe.checksums import digest_bytes
from featpipe.decode import decode
from featpipe.errors import DecodeError, ImagesError
from featpipe.images import ImageSource, open_images
from featpipe.settings import ImageSettings


@dataclass(frozen=True, eq=False)
class Originals:
    """The images of a cache, by the cache's row numbers.

    Attributes
    ----------
    source : ImageSource
    rows : int array, shape (n,)
        The source's row of each row of the cache, -1 where it is not there.
    digests : uint8 array, shape (n, 16)
        Of the bytes that were extracted; zeros where they are not known.
    """

    source: ImageSource
    rows: np.ndarray = field(repr=False)
    digests: np.ndarray = field(repr=False)

    def __len__(self) -> int:
        return len(self.rows)

    def read(self, row: int) -> bytes | None:
        """The bytes of an image; None if they are not to be had, or are others by now."""
        if self.rows[row] < 0:
            return None
        try:
            data = self.source.read(int(self.rows[row]))
        except (OSError, ValueError, MemoryError):
            return None
        known = self.digests[row]
        if known.any() and digest_bytes(data) != known.tobytes():
            return None
        return data

    def picture(self, row: int) -> Image.Image | None:
        """The picture as a viewer shows it, RGB; None if it is not to be had."""
        data = self.read(row)
        try:
            return None if data is None else decode(data)
        except (DecodeError, MemoryError):
            return None


def open_originals(
    cache: FeatureCache,
    images: str | Path | ImageSource | None = None,
    settings: ImageSettings | None = None,
) -> Originals:
    """Open the images of a cache where they are, or where they were when it was made.

    Parameters
    ----------
    cache : FeatureCache
    images : str, Path or ImageSource
        By default the place that the cache names, seen from here or from the cache's folder.
    settings : ImageSettings
        For manifests; by default those of the extraction.

    Raises
    ------
    ImagesError
        If they are not there, or the cache names no place.
    """
    source = open_images(images, settings) if images is not None else named_images(cache, settings)
    row_of = {name: row for row, name in enumerate(source.table.ids)}
    rows = np.array([row_of.get(name, -1) for name in cache.table.ids], np.int64)
    if len(rows) and (rows < 0).all():
        raise ImagesError(
            f"None of the {len(cache)} images of {cache.path}, such as {cache.table.ids[0]!r}, is "
            f"in {source.location}. Give the place that holds them under these names."
        )
    return Originals(source, rows, cache.digests)


def named_images(cache: FeatureCache, settings: ImageSettings | None = None) -> ImageSource:
    """Open the images where the cache says that they lay, seen from here or from its folder.

    Raises
    ------
    ImagesError
        If the cache does not say, or they are not there.
    """
    made_of = dict(cache.conditions.get("images", {}))
    location = made_of.pop("location", None)
    if location is None:
        raise ImagesError(f"{cache.path} does not say where its images lay: give their place.")
    if settings is None:
        try:
            settings = ImageSettings(**made_of)
        except TypeError as error:
            raise ImagesError(
                f"{cache.path} says of its images what this featpipe does not know: {error}. Give "
                "their place."
            ) from error
    for place in (location, cache.path.parent / location):
        try:
            return open_images(place, settings)
        except ImagesError:
            continue
    raise ImagesError(f"The images of {cache.path} are not in {location}: give their place.")
