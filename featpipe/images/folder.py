"""A folder of images: ``root/CLASS/...``, ``root/train/CLASS/...``, or files alone.

Rows are ordered by the bytes of their relative path. A file is an image if its suffix says
so; hidden files and folders are passed over.
"""

import os
from collections import Counter
from pathlib import Path

from featpipe.errors import ImagesError
from featpipe.images import ImageSource
from featpipe.settings import ImageSettings
from featpipe.table import canonical_split, make_table

SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".dib", ".tif", ".tiff", ".gif"}
    | {".ppm", ".pgm", ".pbm", ".pnm"}
)


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

    def read(row: int) -> bytes:
        return (root / ids[row]).read_bytes()

    return ImageSource(location, make_table(ids, labels, splits), read, "; ".join(notes))


def list_images(root: Path) -> tuple[list[str], Counter[str]]:
    """Relative paths of the images below `root`, in order, and what was passed over."""
    ids: list[str] = []
    ignored: Counter[str] = Counter()
    above: dict[str, frozenset[str]] = {}  # real paths of the folders that a folder lies in
    for folder, folders, files in os.walk(root, followlinks=True, onerror=_refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        real, outer = os.path.realpath(folder), above.pop(folder, frozenset())
        if real in outer:  # a link to a folder that contains it would be walked for ever
            folders.clear()
            continue
        above |= {os.path.join(folder, name): outer | {real} for name in folders}
        for name in files:
            if name.startswith("."):
                continue
            suffix = os.path.splitext(name)[1].lower()
            if suffix in SUFFIXES:
                ids.append(Path(folder, name).relative_to(root).as_posix())
            else:
                ignored[suffix or "no suffix"] += 1
    return sorted(ids, key=os.fsencode), ignored


def _refuse(error: OSError) -> None:
    raise ImagesError(f"Cannot list {error.filename}: {error.strerror}.")


def _kinds(ignored: Counter[str]) -> str:
    return ", ".join(f"{count} files ({suffix})" for suffix, count in ignored.most_common(4))
