"""A folder of images: ``root/CLASS/...``, ``root/train/CLASS/...``, or files alone.

Rows are ordered by the bytes of their relative path. A file is an image if its suffix says
so; hidden files and folders are passed over.
"""

import os
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from featpipe.errors import ImagesError
from featpipe.images import ImageSource, file_source
from featpipe.settings import ImageSettings
from featpipe.table import canonical_split, make_table

SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".dib", ".tif", ".tiff", ".gif"}
    | {".ppm", ".pgm", ".pbm", ".pnm"}
)
MOST_WAYS = 100  # to one folder


def accepts(location: str) -> bool:
    """Whether `location` is a folder."""
    return Path(location).is_dir()


def open(location: str, settings: ImageSettings) -> ImageSource:
    """List the images below a folder; labels and splits come from the folders' names."""
    root = Path(location)
    if not root.is_dir():
        raise ImagesError(f"{location} is not a folder.")
    ids, ignored = list_images(root)
    if not ids:
        raise ImagesError(
            f"There are no images in {location}"
            + (f"; {_kinds(ignored)} are not taken for images by their suffix." if ignored else ".")
            + f" featpipe reads {', '.join(sorted(SUFFIXES))}."
        )
    parts = [name.split("/") for name in ids]
    tops = {part[0] for part in parts if len(part) > 1}
    splits: list[str] | None = None
    if any(canonical_split(top) == "train" for top in tops):
        others = sorted(top for top in tops if canonical_split(top) is None)
        if others:
            raise ImagesError(
                f"{location} has a train folder beside folders that are no split: "
                f"{', '.join(others[:5])}. Move them away, or give the folder that holds the "
                "classes."
            )
    if tops and all(canonical_split(top) for top in tops):
        splits = [canonical_split(part[0]) or "" if len(part) > 1 else "" for part in parts]
        parts = [part[1:] if len(part) > 1 else part for part in parts]
    labels = [part[0] if len(part) > 1 else None for part in parts]
    unlabelled = sum(label is None for label in labels)
    notes = []
    if ignored:
        notes.append(f"{_kinds(ignored)} in {location} are not taken for images by their suffix")
    if 0 < unlabelled < len(ids):
        notes.append(f"{unlabelled} images lie outside every class folder and have no label")

    return file_source(location, root, make_table(ids, labels, splits), "; ".join(notes))


def list_images(root: Path) -> tuple[list[str], Counter[str]]:
    """Relative paths of the images below `root`, in order, and what was passed over."""
    ids: list[str] = []
    ignored: Counter[str] = Counter()
    suspects: list[str] = []  # folders with an image's name
    ways: Counter[str] = Counter()
    # Each folder's relative path, its real one, and the real ones of those it was reached by.
    waiting = [("", os.path.realpath(root), frozenset[str]())]
    while waiting:
        inside, real, above = waiting.pop()
        if real in above:  # a link to a folder that contains it would be walked for ever
            continue
        ways[real] += 1
        if ways[real] > MOST_WAYS:  # with ten folders that all link to each other, millions
            raise ImagesError(
                f"{real} can be reached from {root} in more than {MOST_WAYS} ways: links lead in "
                "circles. Remove some of them."
            )
        for name, folder in _entries(os.path.join(root, inside) if inside else str(root), real):
            path = f"{inside}/{name}" if inside else name
            if folder:
                waiting.append((path, folder, above | {real}))
            suffix = _suffix(name)
            if suffix in SUFFIXES:
                (suspects if folder else ids).append(path)
            elif not folder:
                ignored[suffix or "no suffix"] += 1
    # A folder x.jpg with no image below it was meant to be one: a row with a reason.
    ordered = sorted(ids)
    for name in suspects:
        first = bisect_left(ordered, f"{name}/")
        if not ordered[first : first + 1] or not ordered[first].startswith(f"{name}/"):
            ids.append(name)
    return sorted(ids, key=os.fsencode), ignored


def _entries(path: str, real: str) -> Iterator[tuple[str, str]]:
    """What is in a folder but for what is hidden: names, and the real paths of folders."""
    try:
        with os.scandir(path) as found:
            entries = list(found)
    except OSError as error:
        raise ImagesError(f"Cannot list {error.filename}: {error.strerror}.") from error
    for entry in entries:
        if entry.name.startswith("."):
            continue
        try:
            is_folder = entry.is_dir()
        except OSError:  # a link to itself
            is_folder = False
        linked = is_folder and (entry.is_symlink() or os.name == "nt")  # Windows has more kinds
        folder = os.path.realpath(entry.path) if linked else os.path.join(real, entry.name)
        yield entry.name, folder if is_folder else ""


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower()


def _kinds(ignored: Counter[str]) -> str:
    return ", ".join(f"{count} files ({suffix})" for suffix, count in ignored.most_common(4))
