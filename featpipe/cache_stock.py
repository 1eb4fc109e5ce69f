"""Where rows that were computed once are to be found: by the digest of their image's bytes."""

import functools
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from featpipe.cache import FeatureCache
from featpipe.cache_parts import Part
from featpipe.cache_rows import Damage
from featpipe.errors import CacheDamagedError, ImagesChangedError, SpecMismatchError
from featpipe.spec import Spec
from featpipe.table import Status

SETTLED = (Status.OK, Status.UNDECODABLE, Status.NOT_FINITE)  # decided by the bytes alone


@dataclass(frozen=True, eq=False)
class Origin:
    """Rows of one file: a part, the file that is replaced, or another cache.

    Attributes
    ----------
    keys : S16 array
        Digest of each row's image.
    usable : bool array
        Which rows may be taken.
    status, reasons : arrays
    read : callable
        ``read(layer, rows)`` gives features, of all views where there are several.
    """

    keys: np.ndarray
    usable: np.ndarray
    status: np.ndarray
    reasons: np.ndarray
    read: Callable[[str, np.ndarray], np.ndarray]

    @classmethod
    def of_part(cls, part: Part) -> "Origin":
        """A part's rows."""
        usable = np.isin(part.status, SETTLED) & part.digests.any(axis=1)
        return cls(digest_keys(part.digests), usable, part.status, part.reasons, part.features)

    @classmethod
    def of_cache(cls, cache: FeatureCache, damage: Iterable[Damage]) -> "Origin":
        """A cache's rows but for those that do not match their checksums."""
        usable = np.isin(cache.status, SETTLED) & cache.digests.any(axis=1)
        if "reasons" in cache.damaged:
            usable &= cache.ok
        for found in damage:
            usable[found.rows] = False
        read = cache.features
        if cache.views > 1:
            read = functools.partial(cache.features, view=None)
        return cls(digest_keys(cache.digests), usable, cache.status, cache.reasons, read)


class Stock:
    """Some origins, and which of them has which image; the first that has it counts."""

    def __init__(self, origins: Sequence[Origin]) -> None:
        self.origins = list(origins)
        keys = [origin.keys[origin.usable] for origin in self.origins]
        places = [
            np.stack([np.full(len(rows), number), rows], axis=1)
            for number, origin in enumerate(self.origins)
            for rows in [np.flatnonzero(origin.usable)]
        ]
        everything = np.concatenate([np.zeros(0, "S16"), *keys])
        self._keys, first = np.unique(everything, return_index=True)
        self._places = np.concatenate([np.zeros((0, 2), np.int64), *places])[first]

    def has(self, keys: np.ndarray) -> np.ndarray:
        """Boolean array: which of these images it has."""
        return np.isin(keys, self._keys)

    def find(self, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """For each image, the number of its origin, -1 for none, and the row there."""
        if not len(self._keys):
            return np.full(len(keys), -1), np.zeros(len(keys), np.int64)
        at = np.minimum(np.searchsorted(self._keys, keys), len(self._keys) - 1)
        found = self._keys[at] == keys
        return np.where(found, self._places[at, 0], -1), self._places[at, 1]


def digest_keys(digests: np.ndarray) -> np.ndarray:
    """Digests, uint8 of shape (n, 16), as one sortable value each."""
    return np.ascontiguousarray(digests).view("S16").reshape(-1)


# ---- what lies there ---------------------------------------------------------------------


def refuse_other_spec(found: Spec, asked: Spec, where: str, way_out: str = "") -> None:
    """Raise SpecMismatchError, with each difference, unless the two are the same."""
    differences = found.differences(asked)
    if differences:
        raise SpecMismatchError(
            f"{where} was extracted with different settings:\n  "
            + "\n  ".join(differences)
            + f"\n{way_out or 'Extract to another --out, or pass --overwrite.'}"
        )


def open_old(path: Path) -> FeatureCache | None:
    """The finished file that is to be replaced, if there is one; its table may be damaged."""
    if not path.exists():
        return None
    try:
        return FeatureCache.salvage(path)
    except CacheDamagedError as error:
        raise CacheDamagedError(f"{error} To compute everything anew, pass --overwrite.") from error


def refuse_other(other: FeatureCache, spec: Spec) -> None:
    """Raise SpecMismatchError if no rows can be taken from a cache; it may hold more layers."""
    layers = [name for name in spec.layers if name in other.spec.layers]
    found = other.spec.only(layers) if len(layers) == len(spec.layers) else other.spec
    refuse_other_spec(found, spec, str(other.path), "Leave it out of --reuse.")


def refuse_other_images(old: FeatureCache, digests: np.ndarray, read: np.ndarray) -> None:
    """Raise ImagesChangedError if not one of the images that could be read is in the old file."""
    if not np.isin(digest_keys(digests[read]), digest_keys(old.digests)).any():
        raise ImagesChangedError(
            f"{old.path} holds the features of {len(old)} images, none of which is among "
            f"these {len(digests)}. Extract to another --out, or pass --overwrite."
        )


@dataclass(frozen=True)
class Begun:
    """What ``build.json`` says of a build that was begun."""

    spec: Spec
    batch_size: int
    overwrite: bool
    runtime: str


@dataclass(frozen=True)
class Precedent:
    """How the features that are there already were computed: `auto` means the same again."""

    spec: Spec
    runtime: str = ""
    batch_size: int | None = None
    conditions: Mapping[str, Any] = field(default_factory=dict)


def precedent_of(
    begun: Begun | None, old: FeatureCache | None, others: Sequence[FeatureCache]
) -> Precedent | None:
    """What an interrupted run, the finished file, or else another cache set."""
    conditions = old.conditions if old is not None else {}
    if begun is not None:
        return Precedent(begun.spec, begun.runtime, begun.batch_size, conditions)
    if old is not None:
        return Precedent(old.spec, conditions=conditions)
    return Precedent(others[0].spec) if others else None


def read_begun(folder: Path) -> Begun | None:
    """What was begun in a parts folder, if anything was.

    Raises
    ------
    CacheDamagedError
        If it cannot be told.
    """
    state = folder / "build.json"
    if not state.exists():
        return None
    try:
        begun = json.loads(state.read_text(encoding="utf-8"))
        spec, size, overwrite = (begun[name] for name in ("spec", "batch_size", "overwrite"))
        runtime = begun.get("runtime", "")
        if type(size) is not int or size < 1 or type(overwrite) is not bool:
            raise ValueError(f"batch size {size}, overwrite {overwrite}")
        if type(runtime) is not str:
            raise ValueError(f"runtime {runtime}")
        return Begun(Spec.from_dict(spec), size, overwrite, runtime)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CacheDamagedError(
            f"{state} is damaged ({error}). Remove {folder} to compute what was in it again, or "
            "pass --overwrite to start anew."
        ) from error


def read_work(folder: Path) -> np.ndarray:
    """Digest of each work item: uint8 array, shape (items, 16)."""
    file = folder / "work.bin"
    stored = file.read_bytes() if file.exists() else b""
    return np.frombuffer(stored[: len(stored) // 16 * 16], np.uint8).reshape(-1, 16)


def read_parts(folder: Path) -> tuple[list[Part], list[CacheDamagedError]]:
    """The parts that are whole, and what was wrong with the others."""
    parts, errors = [], []
    for path in sorted(folder.glob("part-*.h5")):
        try:
            parts.append(Part.read(path))
        except CacheDamagedError as error:
            errors.append(error)
    return parts, errors
