"""A table of images: CSV, TSV, or Parquet (with the ``parquet`` extra)."""

import os
import posixpath
from pathlib import Path

from featpipe.errors import ImagesError
from featpipe.images import ImageSource, file_source
from featpipe.manifest import SUFFIXES, is_bytes, not_utf8, read_manifest
from featpipe.settings import ImageSettings
from featpipe.table import make_table


def accepts(location: str) -> bool:
    """Whether `location` is a file with a manifest's suffix."""
    path = Path(location)
    return path.suffix.lower() in SUFFIXES and path.is_file()


def open(location: str, settings: ImageSettings) -> ImageSource:
    """Read the table; paths are relative to ``settings.root``, or to the table's folder."""
    manifest = Path(location)
    found = read_manifest(manifest, settings)
    root = Path(settings.root) if settings.root else manifest.parent
    ids = [_posix(name, root) for name in found.paths]
    if not settings.allow_outside:
        _refuse_outside(root, ids, location)
    for name in ids:
        if is_bytes(name) and not os.path.exists(root / name):
            raise not_utf8(manifest)
    _check_root(root, ids, location)
    return file_source(
        location, root, make_table(ids, found.labels, found.splits, found.groups), found.note
    )


def _posix(path: str, root: Path) -> str:
    """A path with ``/`` and nothing superfluous, so that one image has one id."""
    as_plain = path.strip().replace("\\", "/")  # what hand-made and Windows tables mean
    if path != as_plain and not os.path.exists(root / path):
        path = as_plain
    return posixpath.normpath(path)


def _refuse_outside(root: Path, ids: list[str], location: str) -> None:
    """A table from elsewhere must not make featpipe read whatever file it names."""
    inside = os.path.abspath(root)
    outside = []
    for name in ids:
        where = os.path.abspath(os.path.join(inside, name))
        try:
            common = os.path.commonpath([inside, where])
        except ValueError:  # another drive
            common = ""
        if common != inside:
            outside.append(name)
    if outside:
        raise ImagesError(
            f"{len(outside)} paths of {location} lie outside {root} (the first: {outside[0]}). "
            "Pass the folder that holds them all as --root, or --allow-outside if you trust the "
            "table."
        )


def _check_root(root: Path, ids: list[str], location: str) -> None:
    """Refuse a root under which none of the first images lies, and look for the right one."""
    sample = ids[:100]
    if any(os.path.exists(root / name) for name in sample):
        return
    folders = sorted(path for path in root.iterdir() if path.is_dir()) if root.is_dir() else []
    hint = next((folder for folder in folders if os.path.exists(folder / sample[0])), None)
    raise ImagesError(
        f"None of the first {len(sample)} images of {location} lies below {root} "
        f"(looked for {sample[0]}). "
        + (f"They are in {hint}: pass --root {hint}." if hint else "Pass their folder as --root.")
    )
