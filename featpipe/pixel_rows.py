"""Images as mini-batches of pixels: decoded once, changed a little each time they are seen."""

import math
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from shutil import disk_usage

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample

from featpipe.checksums import digest_bytes
from featpipe.decode import Preprocessing
from featpipe.device import available_cores
from featpipe.errors import DiskSpaceError
from featpipe.images import ImageSource
from featpipe.loading import load_image, scan


@dataclass(frozen=True)
class CropFlip:
    """Of each image of a batch a part of random size, shape and place, perhaps mirrored.

    Attributes
    ----------
    smallest : float
        Share of the area that is left at least.
    widest : float
        By which a side may be stretched against the other.
    """

    smallest: float = 0.4
    widest: float = 4 / 3

    def __call__(self, images: Tensor) -> Tensor:
        """Images of the same shape, (batch, channels, height, width); floating-point."""
        count = len(images)
        area = torch.empty(count).uniform_(self.smallest, 1)
        shape = torch.empty(count).uniform_(-1, 1).mul(math.log(self.widest)).exp()
        width, height = (area * shape).sqrt().clamp(max=1), (area / shape).sqrt().clamp(max=1)
        # One sampling does all of it: the corners are at -1 and 1.
        place = torch.zeros(count, 2, 3)
        place[:, 0, 0] = torch.where(torch.rand(count) < 0.5, width, -width)
        place[:, 1, 1] = height
        place[:, 0, 2] = torch.empty(count).uniform_(-1, 1) * (1 - width)
        place[:, 1, 2] = torch.empty(count).uniform_(-1, 1) * (1 - height)
        grid = affine_grid(place.to(images.device), list(images.shape), align_corners=False)
        return grid_sample(images, grid, padding_mode="border", align_corners=False)


class PixelRows:
    """Images as mini-batches: uint8 in a file or on the card, normalised when they are taken.

    Parameters
    ----------
    pixels : uint8 Tensor, shape (n, height, width, 3)
    preprocessing : Preprocessing
        Its mean, its standard deviation and whether it is reshaped are used.
    device : torch.device
    """

    def __init__(self, pixels: Tensor, preprocessing: Preprocessing, device: torch.device) -> None:
        self.device = device
        if device.type == "cuda" and pixels.nbytes < torch.cuda.mem_get_info(device)[0] // 4:
            pixels = pixels.to(device)
        self._pixels, self._reshaped = pixels, preprocessing.reshaped
        self._described = preprocessing.describe()
        self._mean, self._std = (
            torch.tensor(values, device=device).view(1, 3, 1, 1)
            for values in (preprocessing.mean, preprocessing.std)
        )

    def __repr__(self) -> str:
        return f"PixelRows({self._described})"  # other pixels of the same images make another

    def take(self, rows: Tensor) -> Tensor:
        """Some rows, float32, shape (rows, 3, height, width), on the device."""
        some = self._pixels[rows.to(self._pixels.device)].to(self.device)
        _, height, width, _ = some.shape
        some = some.view(-1, 3, height, width) if self._reshaped else some.permute(0, 3, 1, 2)
        return (some.float() / 255 - self._mean) / self._std

    def shuffled(self, rows: Tensor, generator: torch.Generator) -> Tensor:
        """The rows in any order, all orders being equally likely."""
        return rows[torch.randperm(len(rows), generator=generator)]


def fingerprint(images: ImageSource) -> str:
    """What says, to `featpipe.checkpoint.checkpointing`, that these are the same images."""
    digests, _, _ = scan(images, available_cores())
    return digest_bytes(digests.tobytes()).hex()


def decode_rows(
    images: ImageSource, rows: np.ndarray, preprocessing: Preprocessing, file: Path
) -> tuple[np.ndarray, list[str]]:
    """Pixels of the rows, uint8, shape (n, side, side, 3), backed by a file; and why not.

    Raises
    ------
    DiskSpaceError
        If the disk would not hold them.
    """
    needed, free = len(rows) * math.prod(preprocessing.crop) * 3, disk_usage(file.parent).free
    if needed > free:  # where the file could not grow, writing to it would end the process
        raise DiskSpaceError(
            f"The pixels of {len(rows):,} images need {needed:,} bytes in {file.parent.parent}, "
            f"where {free:,} are free. Take a smaller --input-size, or set TMPDIR to a folder on a "
            "larger disk."
        )
    pixels = np.memmap(file, np.uint8, "w+", shape=(len(rows), *preprocessing.crop, 3))

    def decode_into(place: int) -> str:
        image = load_image(images, int(rows[place]), preprocessing)
        if image.pixels is not None:
            pixels[place] = image.pixels
        return image.reason

    with ThreadPoolExecutor(available_cores()) as pool:
        return pixels, list(pool.map(decode_into, range(len(rows))))


@dataclass
class Decoded:
    """Images as pixels in a temporary file, that several trainings may share.

    Attributes
    ----------
    rows : int array, ascending
        Of the source.
    pixels : uint8 array, shape (n, side, side, 3)
    reasons : list of str
        Why an image could not be decoded; empty where it was.
    preprocessing : Preprocessing
    seconds : float
        Reading and decoding.
    """

    rows: np.ndarray
    pixels: np.ndarray
    reasons: list[str]
    preprocessing: Preprocessing
    seconds: float


@contextmanager
def decoding(
    images: ImageSource, rows: np.ndarray, preprocessing: Preprocessing
) -> Iterator[Decoded]:
    """Decode rows into a file that the system pages in and out, and take it away afterwards.

    Raises
    ------
    DiskSpaceError
        If the disk of temporary files would not hold the pixels.
    """
    begun = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="featpipe-", ignore_cleanup_errors=True) as folder:
        pixels, reasons = decode_rows(images, rows, preprocessing, Path(folder, "pixels"))
        made = Decoded(rows, pixels, reasons, preprocessing, time.perf_counter() - begun)
        del pixels
        try:
            yield made
        finally:  # with its file, which could not be taken away else
            made.pixels = np.empty(0, np.uint8)
