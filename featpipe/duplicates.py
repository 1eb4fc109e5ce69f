"""Images that are there twice: the same bytes, or the same picture encoded, resized, mirrored."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from featpipe.cache import FeatureCache
from featpipe.copies import Copies
from featpipe.device import available_cores
from featpipe.errors import ImagesError
from featpipe.images import ImageSource
from featpipe.neighbours import Likeness
from featpipe.originals import Originals, open_originals
from featpipe.picture_hash import hash_pictures
from featpipe.settings import ImageSettings
from featpipe.split_file import Split
from featpipe.table import ImageTable

log = logging.getLogger(__name__)

# What the limits were chosen on; benchmarks/leaks.py has the figures. Copies: 150 of flowers,
# half of them mirrored, 0.4 to 1.5 times as large, JPEG or WebP of quality 30 to 95.
NEIGHBOURS = 10  # 149 of 150 copies were the very nearest or the next to what they are copies of
LEAST_SIMILARITY = 0.3  # copies: 0.42 and more
MOST_BITS = 20  # of 256. Copies: at most 12; two different pictures of four sets: at least 30
MOST_COLOUR = 0.1  # copies: at most 0.011, an edited one 0.06; a blue circle for a red one: more
Report = Callable[[str], Callable[[int, int], None]]


@dataclass(frozen=True)
class Pair:
    """Two rows that show one picture.

    Attributes
    ----------
    rows : pair of int
        The lower first.
    exact : bool
        Whether their files are the same, byte for byte.
    similarity : float
        Cosine of their features, less the mean of all.
    distance : int
        Bits of 256 in which their perceptual hashes differ.
    mirrored : bool
        Whether one is like the other's mirror image.
    across : tuple of str
        ``split`` where they are in different parts, ``class`` where they have different labels.
    """

    rows: tuple[int, int]
    exact: bool
    similarity: float
    distance: int = 0
    mirrored: bool = False
    across: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, as results have them."""
        return {
            "rows": list(self.rows),
            "similarity": round(self.similarity, 6),
            "hash_distance": self.distance,
            "across": list(self.across),
        }


@dataclass(frozen=True, eq=False)
class Duplicates:
    """All pairs that were found.

    Attributes
    ----------
    pairs : tuple of Pair
        Those of equal files first, then near-duplicates, the nearest first. Of equal files each
        is a pair with the first of them, and only that one may have near-duplicates.
    rows : int
        Of the table.
    candidates : int
        Pairs that are neighbours by their features, and so were compared as pictures.
    unseen : int
        Images that were not to be had, so that no near-duplicate of theirs could be found.
    """

    pairs: tuple[Pair, ...]
    rows: int
    candidates: int = 0
    unseen: int = 0
    numbers: np.ndarray = field(init=False, repr=False)

    def __post_init__(self) -> None:
        pairs = np.array([pair.rows for pair in self.pairs], np.int64).reshape(-1, 2)
        object.__setattr__(self, "numbers", Copies.of(pairs, self.rows).numbers)

    @property
    def groups(self) -> int:
        """Pictures that are there more than once."""
        return int((np.bincount(self.numbers) > 1).sum()) if self.rows else 0

    def copies(self, policy: str) -> Copies | None:
        """What `featpipe.split.split_rows` takes; None if there is nothing to be done.

        Parameters
        ----------
        policy : {"group", "drop", "keep"}
        """
        if policy == "keep" or not self.pairs:
            return None
        return Copies(self.numbers, follow=policy == "group")

    def on(self, table: ImageTable, split: Split | None = None) -> "Duplicates":
        """The same pairs, with what they are across by a split, or by the table's own."""
        parts = np.full(self.rows, "", object) if table.splits is None else table.splits
        if split is not None:
            parts = np.full(self.rows, "", object)
            for name, rows in split.parts().items():
                parts[rows] = name
        pairs = []
        for pair in self.pairs:
            one, other = pair.rows
            apart = bool(parts[one] and parts[other] and parts[one] != parts[other])
            labels = table.labels
            torn = labels is not None and min(labels[[one, other]]) >= 0
            differ = torn and labels is not None and labels[one] != labels[other]
            names = ("split",) * apart + ("class",) * bool(differ)
            pairs.append(replace(pair, across=names))
        return replace(self, pairs=tuple(pairs))

    @property
    def exact(self) -> list[list[int]]:
        """Rows of images that are the same, byte for byte, in order."""
        same: dict[int, list[int]] = {}
        for pair in self.pairs:
            if pair.exact:
                same.setdefault(pair.rows[0], [pair.rows[0]]).append(pair.rows[1])
        return list(same.values())

    @property
    def near(self) -> list[Pair]:
        """The pairs that are not."""
        return [pair for pair in self.pairs if not pair.exact]

    def to_dict(self, policy: str = "off") -> dict[str, Any]:
        """Plain JSON values, as results have them.

        Parameters
        ----------
        policy : {"group", "drop", "keep", "off"}
            What became of them.
        """
        return {
            "policy": policy,
            "exact": self.exact,
            "near": [pair.to_dict() for pair in self.near],
            "groups": self.groups,
        }

    def describe(self) -> str:
        """One sentence for people."""
        exact = sum(pair.exact for pair in self.pairs)
        torn = {name: sum(name in pair.across for pair in self.pairs) for name in SIDES}
        across = ", ".join(f"{n} across {SIDES[name]}" for name, n in torn.items() if n)
        return (
            f"{len(self.pairs)} pairs of images show one picture, {exact} of them byte for byte"
            + (f" ({across})" if across else "")
        )


SIDES = {"split": "parts of the split", "class": "classes"}


def find_duplicates(
    cache: FeatureCache,
    images: str | Path | ImageSource | None = None,
    layer: str | None = None,
    image_settings: ImageSettings | None = None,
    workers: int | None = None,
    device: str = "auto",
    on_progress: Report | None = None,
) -> Duplicates:
    """Find exact duplicates by digest, and near-duplicates by features and perceptual hash.

    Each image's nearest neighbours in feature space are compared with it as pictures: only what
    both call the same is a near-duplicate. Pictures taken a moment apart are none, nor are crops
    of one photograph: such belong together by a group.

    Parameters
    ----------
    cache : FeatureCache
        Rows with features take part, labelled or not.
    images : str, Path or ImageSource
        Where the pictures are; by default where the cache says.
    layer : str
        By default the cache's last.
    image_settings : ImageSettings
        For manifests; by default those of the extraction.
    workers : int
        Threads that decode; one a core by default.
    device : str
        Where features are compared.
    on_progress : callable
        Given a name, returns what is given things done and things in all.

    Raises
    ------
    ImagesError
        If `images` is given and holds none of them. Where the cache's own place does not, a
        warning says that only exact duplicates were looked for.
    """
    rows = np.flatnonzero(cache.ok)
    exact, alone = _exact(cache, rows)
    found = [Pair(pair, True, 1.0) for pair in exact]
    try:
        originals = open_originals(cache, images, image_settings)
    except ImagesError as error:
        if images is not None:
            raise
        log.warning("Only exact duplicates are looked for. %s", error)
        return Duplicates(tuple(found), len(cache), unseen=len(rows)).on(cache.table)
    layer = layer or list(cache.spec.layers)[-1]
    likeness = Likeness(cache, layer, alone, device=device)
    report = on_progress("compare features") if on_progress else None
    candidates = likeness.neighbours(NEIGHBOURS, LEAST_SIMILARITY, report)
    report = on_progress("compare pictures") if on_progress else None
    near, unseen = _confirmed(originals, candidates, workers or available_cores(), report)
    cosines = likeness.cosines(np.array([pair.rows for pair in near]).reshape(-1, 2))
    near = [replace(pair, similarity=float(s)) for pair, s in zip(near, cosines, strict=True)]
    found += sorted(near, key=lambda pair: (pair.distance, -pair.similarity, pair.rows))
    return Duplicates(tuple(found), len(cache), len(candidates), unseen).on(cache.table)


def decide(found: Duplicates, policy: str) -> Copies | None:
    """Say what there is, and return what a policy makes of it, for `featpipe.split.split_rows`.

    Parameters
    ----------
    found : Duplicates
    policy : {"group", "drop", "keep"}
    """
    copies = found.copies(policy)
    if copies is not None:
        log.info("%s.", found.describe())
    elif found.pairs:
        log.warning(
            "%s. They are kept: what is trained on and scored, too, flatters every figure. Use "
            "--leaks group or drop.",
            found.describe(),
        )
    return copies


def copies_of(
    cache: FeatureCache, policy: str, images: str | Path | ImageSource | None = None
) -> Copies | None:
    """Find duplicates and `decide` what becomes of them.

    Parameters
    ----------
    cache : FeatureCache
    policy : {"group", "drop", "keep"}
    images : str, Path or ImageSource
        By default where the cache says.
    """
    return decide(find_duplicates(cache, images), policy)


def _exact(cache: FeatureCache, rows: np.ndarray) -> tuple[list[tuple[int, int]], np.ndarray]:
    """Pairs of rows with equal bytes, and one row of each image, ascending."""
    known = cache.digests[rows].any(axis=1)
    _, first, numbers = np.unique(
        cache.digests[rows[known]], axis=0, return_index=True, return_inverse=True
    )
    leaders = rows[known][first[numbers.ravel()]]
    twice = leaders != rows[known]
    pairs = [(int(a), int(b)) for a, b in zip(leaders[twice], rows[known][twice], strict=True)]
    return pairs, np.union1d(leaders, rows[~known])


def _confirmed(
    originals: Originals,
    candidates: np.ndarray,
    workers: int,
    report: Callable[[int, int], None] | None,
) -> tuple[list[Pair], int]:
    """Candidates whose pictures are the same, and the number of pictures not to be had."""
    rows = np.unique(candidates).tolist()
    hashes = hash_pictures(originals.picture, rows, workers, report)
    near = []
    for one, other in candidates.tolist():
        if one not in hashes or other not in hashes:
            continue
        distance, colour, mirrored = hashes[one].compare(hashes[other])
        if distance <= MOST_BITS and colour <= MOST_COLOUR:
            near.append(Pair((one, other), False, 0.0, distance, mirrored))
    return near, len(rows) - len(hashes)
