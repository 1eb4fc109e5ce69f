"""What tells a picture from others, and survives being encoded, resized or mirrored anew."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice

import imagehash
import numpy as np
from PIL import Image, ImageOps

SIDE = 16  # of the hash, in frequencies: 256 bits
SEEN = 256  # pictures are made this small, at least, before anything else: hashing looks at 64
COLOURS = 8  # side of the small picture that colours are compared in
Progress = Callable[[int, int], None]


@dataclass(frozen=True, eq=False)
class PictureHash:
    """Signs of low frequencies of a picture and of its mirror image, and its rough colours.

    Attributes
    ----------
    bits, mirrored : uint8 array, shape (32,)
        Perceptual hash (pHash), 256 bits: which of the 16 x 16 lowest frequencies of the
        brightness, by a discrete cosine transform of 64 x 64 pixels, are above their median.
    colours : uint8 array, shape (8, 8, 3)
        Mean RGB of each part of the picture.

    References
    ----------
    Zauner, "Implementation and benchmarking of perceptual image hash functions", 2010.
    """

    bits: np.ndarray
    mirrored: np.ndarray
    colours: np.ndarray

    @classmethod
    def of(cls, picture: Image.Image) -> "PictureHash":
        """Hash an RGB picture."""
        picture = _smaller(picture)
        small = picture.resize((COLOURS, COLOURS), Image.Resampling.BOX)
        return cls(_bits(picture), _bits(ImageOps.mirror(picture)), np.asarray(small))

    def compare(self, other: "PictureHash") -> tuple[int, float, bool]:
        """How far another picture, or its mirror image, is from this one.

        Returns
        -------
        distance : int
            Bits of 256 that differ: about 128 for pictures that have nothing in common.
        colour : float
            Mean difference of their colours, from 0 to 1.
        mirrored : bool
            Whether it is the mirror image that is so near.
        """
        straight = _apart(self.bits, other.bits)
        turned = min(_apart(self.bits, other.mirrored), _apart(self.mirrored, other.bits))
        mirrored = turned < straight
        theirs = other.colours[:, ::-1] if mirrored else other.colours
        colour = np.abs(self.colours.astype(np.int16) - theirs).mean() / 255
        return min(straight, turned), float(colour), mirrored


def _smaller(picture: Image.Image) -> Image.Image:
    """The same picture, but small, as a large one is resized as often as it is looked at."""
    if min(picture.size) <= 2 * SEEN:
        return picture
    scale = SEEN / min(picture.size)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    return picture.resize(size, Image.Resampling.BOX)


def _bits(picture: Image.Image) -> np.ndarray:
    found: np.ndarray = np.packbits(imagehash.phash(picture, hash_size=SIDE).hash)
    return found


def _apart(one: np.ndarray, other: np.ndarray) -> int:
    return int(np.bitwise_count(one ^ other).sum())


def hash_pictures(
    picture: Callable[[int], Image.Image | None],
    rows: Sequence[int],
    workers: int,
    on_progress: Progress | None = None,
) -> dict[int, PictureHash]:
    """Hash the pictures of some rows, by several threads; those that are None are left out.

    Parameters
    ----------
    picture : callable
        ``picture(row)``, safe to call from several threads.
    rows : sequence of int
    workers : int
        Threads, each of which holds one picture.
    on_progress : callable
        Is given pictures done and pictures in all.
    """

    def one(row: int) -> tuple[int, PictureHash | None]:
        found = picture(row)
        return row, None if found is None else PictureHash.of(found)

    hashes: dict[int, PictureHash] = {}
    rest = iter(rows)
    with ThreadPoolExecutor(workers) as pool:
        done = 0
        while some := list(islice(rest, 16 * workers)):
            for row, found in pool.map(one, some):
                if found is not None:
                    hashes[row] = found
            done += len(some)
            if on_progress:
                on_progress(done, len(rows))
    return hashes
