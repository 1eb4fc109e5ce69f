"""Where images come from. Each file here is one kind of source.

A plug-in has ``accepts(location) -> bool`` and ``open(location, settings) -> ImageSource``.
A location may also name its plug-in: ``torchvision:CIFAR10``.
"""

import logging
import os
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import numpy as np

from featpipe.checksums import digest_blocks, digest_bytes
from featpipe.errors import ImagesError
from featpipe.registry import load_plugin, plugin_names
from featpipe.regular import read_blocks, read_regular
from featpipe.settings import ImageSettings
from featpipe.table import ImageTable, make_table

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ImageSource:
    """An ordered table of images and a way to their bytes; it never decodes.

    Attributes
    ----------
    location : str
        What the user wrote.
    table : ImageTable
        One row an image.
    read : callable
        ``read(row) -> bytes``, safe to call from several threads. Raises OSError where the
        system will not give the bytes.
    note : str
        What was decided in reading the source and a user may want to know; may be empty.
    path_of : callable or None
        ``path_of(row)`` is the image's file, where each image is one.
    """

    location: str
    table: ImageTable
    read: Callable[[int], bytes]
    note: str = ""
    path_of: Callable[[int], str] | None = None

    def __len__(self) -> int:
        return len(self.table)

    def digest(self, row: int) -> bytes:
        """XXH3-128 of an image's bytes, which are not held in memory where they are a file.

        Raises OSError where the system will not give the bytes.
        """
        if self.path_of is None:
            return digest_bytes(self.read(row))
        return digest_blocks(read_blocks(self.path_of(row)))

    def only(self, rows: np.ndarray) -> "ImageSource":
        """The images of some rows; classes that none of them has are gone."""
        table, inner = self.table, self.path_of
        labels = splits = groups = None
        if table.labels is not None:
            labels = [table.classes[code] if code >= 0 else None for code in table.labels[rows]]
        if table.splits is not None:
            splits = table.splits[rows].tolist()
        if table.groups is not None:
            groups = table.groups[rows].tolist()
        return ImageSource(
            self.location,
            make_table(table.ids[rows].tolist(), labels, splits, groups),
            lambda row: self.read(int(rows[row])),
            self.note,
            None if inner is None else lambda row: inner(int(rows[row])),
        )


def file_source(location: str, root: Path, table: ImageTable, note: str = "") -> ImageSource:
    """A source whose ids are paths of files, relative to `root`."""
    ids, folder = table.ids, str(root)

    def path_of(row: int) -> str:
        return os.path.join(folder, ids[row])

    return ImageSource(location, table, lambda row: read_regular(path_of(row)), note, path_of)


def open_images(
    images: str | Path | ImageSource, settings: ImageSettings | None = None
) -> ImageSource:
    """Open a folder, a manifest, or a built-in data set.

    Parameters
    ----------
    images : str, Path or ImageSource
        ``photos/`` (classes as folders, optionally below ``train``/``val``/``test``),
        ``table.csv``, ``table.tsv``, ``table.parquet``, ``digits``, ``torchvision:CIFAR10``.
        A source is returned as it is.
    settings : ImageSettings
        Names of a manifest's columns, and its root.

    Raises
    ------
    ImagesError
        If nothing is there, nothing in it is an image, or a column is missing.
    """
    if isinstance(images, ImageSource):
        return images
    settings = settings or ImageSettings()
    location = str(images)
    if not location:  # an unset variable of a shell, not the folder it stands in
        raise ImagesError("The images' location is empty.")
    names = plugin_names("images")
    prefix, colon, rest = location.partition(":")
    if colon and prefix in names:
        source = load_plugin("images", prefix).open(rest, settings)
    else:
        for name in names:
            plugin = load_plugin("images", name)
            if plugin.accepts(location):
                source = plugin.open(location, settings)
                break
        else:
            raise ImagesError(
                f"{location} is no folder, no manifest (.csv, .tsv, .parquet) and no built-in "
                f"data set (digits, torchvision:CIFAR10, ...)."
                + ("" if Path(location).exists() else " Nothing of that name exists.")
            )
    if len(source) == 0:
        raise ImagesError(f"There are no images in {location}.")
    if source.note:
        log.info("%s: %s.", location, source.note)
    return source  # type: ignore[no-any-return]


def open_several(locations: Sequence[str]) -> ImageSource:
    """Open files and folders as one source; ids are paths as given, so that they stay unique.

    A single location is the same as `open_images`.
    """
    sources = [open_images(location) for location in locations]
    if len(sources) == 1:
        return sources[0]
    ids: list[str] = []
    labels: list[str | None] = []
    for location, source in zip(locations, sources, strict=True):
        table = source.table
        alone = len(source) == 1 and table.ids[0] == Path(location).as_posix()
        ids += table.ids.tolist() if alone else [f"{location.rstrip('/')}/{i}" for i in table.ids]
        codes = [-1] * len(source) if table.labels is None else table.labels.tolist()
        labels += [table.classes[code] if code >= 0 else None for code in codes]
    starts = list(accumulate((len(source) for source in sources), initial=0))

    def read(row: int) -> bytes:
        part = bisect_right(starts, row) - 1
        return sources[part].read(row - starts[part])

    def path_of(row: int) -> str:
        part = bisect_right(starts, row) - 1
        inner = sources[part].path_of
        assert inner is not None
        return inner(row - starts[part])

    files = all(source.path_of for source in sources)
    return ImageSource(
        ", ".join(locations), make_table(ids, labels), read, path_of=path_of if files else None
    )
