"""Files of features that grow: one a Spec, with a row for every image ever asked for."""

import hashlib
import json
import logging
import re
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
from filelock import FileLock

from featpipe.cache import FeatureCache
from featpipe.errors import (
    CacheDamagedError,
    CacheError,
    DecodeError,
    ImagesError,
    SpecMismatchError,
)
from featpipe.extract import extract_features
from featpipe.extractor import prepare
from featpipe.images import ImageSource
from featpipe.regular import read_regular
from featpipe.settings import ExtractSettings
from featpipe.table import Status, make_table

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class FeatureStore:
    """The file of features of one Spec.

    One file that grows, rather than one a set of images: the sets of a cross-validation
    overlap, and everything that makes extending a file safe is `extract_features`' already.
    A row's id is its image's path; an image that has changed takes the place of the old one.

    Attributes
    ----------
    backbone : str
        ``[source:]name[@weights]``.
    name : str
        Of the file.
    dimensions : int
        Values a row.
    """

    backbone: str
    name: str
    dimensions: int

    def features(
        self, folder: Path, settings: ExtractSettings, paths: list[str], digests: np.ndarray
    ) -> np.ndarray:
        """Features of images; those that are missing are computed and kept.

        Parameters
        ----------
        folder : Path
            Where the file lies, or is to be made.
        settings : ExtractSettings
            Those of the store; batch size and workers may be others.
        paths : list of str, n distinct ones
        digests : uint8 array, shape (n, 16)
            XXH3-128 of each file's bytes.

        Returns
        -------
        float32 array, shape (n, dimensions)

        Raises
        ------
        CacheError
            If nothing can be kept in `folder`.
        DecodeError
            If an image is no picture.
        """
        path = folder / self.name
        try:
            folder.mkdir(parents=True, exist_ok=True)
            # Held while the file is read as well: another process may be about to replace it,
            # and whoever has to wait mostly waits for rows of its own.
            lock = FileLock(f"{path}.lock")
            lock.acquire()
        except OSError as error:
            raise CacheError(
                f"Cannot keep features in {folder}: {error.strerror}. Give another folder as cache."
            ) from error
        try:
            return self._gather(path, settings, paths, digests)
        except SpecMismatchError as error:  # a decoder of another version has made it
            log.warning("%s\nIts features are computed again.", error)
            path.unlink(missing_ok=True)
            return self._gather(path, settings, paths, digests)
        finally:
            lock.release()

    def _gather(
        self, path: Path, settings: ExtractSettings, paths: list[str], digests: np.ndarray
    ) -> np.ndarray:
        keys = [digest.tobytes() for digest in digests]
        ids, known = [], np.zeros((0, digests.shape[1]), np.uint8)
        if path.exists():
            try:
                with FeatureCache.open(path) as cache:
                    if rows := _rows(cache, keys):
                        return _read(cache, rows)
                    here = set(paths)
                    kept = np.flatnonzero(cache.ok & [name not in here for name in cache.table.ids])
                    ids, known = cache.table.ids[kept].tolist(), cache.digests[kept]
            except CacheDamagedError as error:
                log.warning("%s Its features are computed again.", error)
                path.unlink()
        held = {digest.tobytes() for digest in known}
        fresh = [row for row, key in enumerate(keys) if key not in held]
        first = list({keys[row]: row for row in reversed(fresh)}.values())[::-1]
        source = _source(
            ids + [paths[row] for row in first], np.concatenate([known, digests[first]])
        )
        # Without a row to keep there is nothing to extend.
        wanted = replace(settings, overwrite=not ids)
        with extract_features(source, self.backbone, path, wanted) as cache:
            log.info("%d images, %.1f MB in %s.", len(cache), path.stat().st_size / 1e6, path)
            if rows := _rows(cache, keys):
                return _read(cache, rows)
            added = [paths[row] for row in first]
            refuse_unusable(added, cache.status[len(ids) :], cache.reasons[len(ids) :])
        raise AssertionError("every row has features, or a status that says why not")


@dataclass(frozen=True)
class _Digested(ImageSource):
    """A source whose digests are known: what is computed already need not be there any more."""

    digests: np.ndarray | None = None

    def digest(self, row: int) -> bytes:
        """XXH3-128 of an image's bytes."""
        assert self.digests is not None
        known: bytes = self.digests[row].tobytes()
        return known


def _source(ids: list[str], digests: np.ndarray) -> ImageSource:
    return _Digested(
        "the paths given", make_table(ids), lambda row: read_regular(ids[row]), digests=digests
    )


def _rows(cache: FeatureCache, keys: list[bytes]) -> list[int]:
    """The row of each image, or none at all if one is missing."""
    place = {cache.digests[row].tobytes(): int(row) for row in np.flatnonzero(cache.ok)}
    found = [place.get(key, -1) for key in keys]
    return [] if -1 in found else found


def _read(cache: FeatureCache, rows: list[int]) -> np.ndarray:
    """Features of some rows, in any order and any number of times; float32, flat."""
    distinct, back = np.unique(rows, return_inverse=True)
    flat = cache.features(rows=distinct).reshape(len(distinct), -1)
    found: np.ndarray = flat.astype(np.float32, copy=False)[back]
    return found


@lru_cache(maxsize=16)
def open_store(backbone: str, settings: ExtractSettings, weights: object) -> FeatureStore:
    """Where features are kept; the backbone is loaded once a process to know what it is."""
    extractor = prepare(backbone, settings)
    spec = extractor.spec.to_dict()
    for chosen in ("weights", "seed", "precision", "decoder"):
        del spec[chosen]  # digests are in it; `auto` is what the file says
    device = extractor.forward.device.partition(":")[0]
    decides = [spec, settings.precision, settings.decode, device]
    digest = hashlib.blake2b(json.dumps(decides, sort_keys=True).encode(), digest_size=12)
    title = re.sub(r"[^\w.]+", "-", extractor.spec.backbone)[-60:]
    (shape,) = extractor.shapes.values()
    return FeatureStore(backbone, f"{title}-{digest.hexdigest()}.h5", int(np.prod(shape)))


def refuse_unusable(paths: list[str], status: np.ndarray, reasons: np.ndarray) -> None:
    """Raise for the images that cannot be used, naming the first."""
    bad = np.flatnonzero(status != Status.OK)
    if not len(bad):
        return
    more = f" (and {len(bad) - 1} more)" if len(bad) > 1 else ""
    kind = ImagesError if status[bad[0]] in (Status.MISSING, Status.UNREADABLE) else DecodeError
    raise kind(
        f"{paths[bad[0]]}: {reasons[bad[0]]}{more}. A transformer cannot leave out rows: mend or "
        "remove the image, and its label."
    )
