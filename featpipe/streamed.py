"""Features that do not fit in memory: read block by block, as often as they are needed."""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

CHUNK_BYTES = 1 << 24  # read at once
RESIDENT_BYTES = 1 << 28  # copied at once
MOMENT_VALUES = 1 << 22  # in float64 at once


class Features(Protocol):
    """What mini-batches are taken from.

    Attributes
    ----------
    shape : pair of int
    device : torch.device
    shares_reading : bool
        Whether perceptrons of other rows or seeds may be trained beside each other; where rows
        are read from a file, each order of rows would read all of them.
    at_once : int
        Rows that are best taken at once; a sum over more is added up.
    most_rows : int
        Rows that can be taken at once.
    """

    shape: tuple[int, int]
    device: torch.device
    shares_reading: bool
    at_once: int
    most_rows: int

    def take(self, rows: Tensor, slot: int = 0) -> Tensor:
        """Some rows, float32, on the device; good until others are taken into the same slot."""

    def shuffled(self, rows: Tensor, generator: torch.Generator) -> Tensor:
        """The same row numbers in the order of an epoch."""


class ResidentRows:
    """Rows in memory, on their device."""

    shares_reading = True

    def __init__(self, X: Tensor) -> None:
        self._X, self.shape, self.device = X.float(), (len(X), X.shape[1]), X.device
        self.at_once, self.most_rows = max(1, RESIDENT_BYTES // (4 * X.shape[1])), len(X)
        self._slots: dict[int, Tensor] = {}

    def take(self, rows: Tensor, slot: int = 0) -> Tensor:
        """Some rows, float32, on the device; good until others are taken into the same slot."""
        # Fresh memory for every batch would cost as much as the copy.
        if slot not in self._slots or len(self._slots[slot]) < len(rows):
            self._slots[slot] = self._X.new_empty(len(rows), self.shape[1])
        into = self._slots[slot][: len(rows)]
        return torch.index_select(self._X, 0, rows.to(self.device), out=into)

    def shuffled(self, rows: Tensor, generator: torch.Generator) -> Tensor:
        """The rows in any order, all orders being equally likely."""
        return rows[torch.randperm(len(rows), generator=generator)]


class HeldRows:
    """Rows of arrays that follow one another, each of its own type and none of them copied.

    Parameters
    ----------
    parts : sequence of float array, shape (rows, d)
    device : torch.device
    each : sequence of int
        How many numbers each row of a part stands under, one after another; 1 if left out.
    """

    def __init__(
        self, parts: Sequence[np.ndarray], device: torch.device, each: Sequence[int] = ()
    ) -> None:
        self._each = list(each) or [1] * len(parts)
        rows = sum(len(part) * times for part, times in zip(parts, self._each, strict=True))
        self.shape, self.device = (rows, parts[0].shape[1]), device
        # torch warns of memory that it may not write to, though it only reads.
        given = [part if part.flags.writeable else part.copy() for part in parts]
        self._parts = [torch.from_numpy(part).to(device) for part in given]

    def take(self, rows: Tensor, slot: int = 0) -> Tensor:
        """Some rows of one array, of its type, on the device."""
        first = 0
        for part, times in zip(self._parts, self._each, strict=True):
            stop = first + len(part) * times
            if ((rows >= first) & (rows < stop)).all():
                return part.index_select(0, ((rows - first) // times).to(self.device))
            first = stop
        raise IndexError("rows of several arrays, or of none")

    def shuffled(self, rows: Tensor, generator: torch.Generator) -> Tensor:
        """The rows in any order, all orders being equally likely."""
        return rows[torch.randperm(len(rows), generator=generator)]


class StreamedRows:
    """Rows that are read, and standardised, when they are asked for.

    Parameters
    ----------
    read : callable
        ``read(rows)`` gives the features of ascending row numbers, float array of shape
        (rows, d).
    shape : pair of int
    most_bytes : int
        That are held at once.
    device : torch.device
    dtype : float32 or float16
        They are held, and handed out, in.
    """

    shares_reading = False

    def __init__(
        self,
        read: Callable[[np.ndarray], np.ndarray],
        shape: tuple[int, int],
        most_bytes: int,
        device: torch.device | None = None,
        dtype: type[np.floating[Any]] = np.float32,
    ) -> None:
        self.shape, self.most_bytes, self._dtype = shape, most_bytes, dtype
        self.device = device or torch.device("cpu")
        self._read = read
        self._mean: np.ndarray | None = None
        self._scale: np.ndarray | None = None
        row = np.dtype(dtype).itemsize * shape[1]
        self._chunk = max(1, min(CHUNK_BYTES, most_bytes // 8) // row)
        self.at_once, self.most_rows = self._chunk, most_bytes // row
        self._most = max(2, most_bytes // (row * self._chunk))
        self._held: OrderedDict[int, np.ndarray] = OrderedDict()

    def on(self, device: torch.device) -> "StreamedRows":
        """The same rows, handed out on another device."""
        other = StreamedRows(self._read, self.shape, self.most_bytes, device, self._dtype)
        other._mean, other._scale = self._mean, self._scale
        return other

    def standardised(self, mean: np.ndarray, scale: np.ndarray) -> "StreamedRows":
        """The same rows less a mean and divided by a scale."""
        other = self.on(self.device)
        other._mean, other._scale = mean, scale
        return other

    def blocks(self, rows: np.ndarray, size: int | None = None) -> Iterator[np.ndarray]:
        """Features of ascending row numbers, at most `size` of them at once."""
        size = min(size or self._chunk, self._chunk)
        for start in range(0, len(rows), size):
            yield self._finished(rows[start : start + size])

    def _finished(self, rows: np.ndarray) -> np.ndarray:
        features = self._read(rows).astype(self._dtype, copy=False)
        if self._mean is not None:
            features = (features - self._mean) / self._scale
        return features

    def moments(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean and variance of each feature over some rows, float64."""
        return moments_of(self.blocks(rows), self.shape[1])

    def take(self, rows: Tensor, slot: int = 0) -> Tensor:
        """Some rows on the device."""
        numbers = rows.cpu().numpy()
        result = np.empty((len(numbers), self.shape[1]), self._dtype)
        chunks = numbers // self._chunk
        for chunk in np.unique(chunks):
            here = chunks == chunk
            result[here] = self._hold(int(chunk))[numbers[here] - chunk * self._chunk]
        return torch.from_numpy(result).to(self.device)

    def _hold(self, chunk: int) -> np.ndarray:
        """A chunk's rows; those that were used last stay in memory."""
        if chunk not in self._held:
            while len(self._held) >= self._most:
                self._held.popitem(last=False)
            first = chunk * self._chunk
            self._held[chunk] = self._finished(
                np.arange(first, min(first + self._chunk, self.shape[0]))
            )
        self._held.move_to_end(chunk)
        return self._held[chunk]

    def shuffled(self, rows: Tensor, generator: torch.Generator) -> Tensor:
        """The rows in an order that reads each chunk once.

        Chunks are shuffled, then the rows of as many chunks as half the memory holds.
        """
        chunks = rows // self._chunk
        numbers = torch.from_numpy(np.unique(chunks.numpy()))
        order = numbers[torch.randperm(len(numbers), generator=generator)]
        parts = []
        for some in torch.split(order, max(1, self._most // 2)):
            here = rows[torch.isin(chunks, some)]
            parts.append(here[torch.randperm(len(here), generator=generator)])
        return torch.cat(parts)


def batch_sizes(rows: int, batch_size: int | None) -> list[int]:
    """Batch sizes of an epoch; a last one of a single row joins the one before (batch norm)."""
    batch_size = batch_size or max(1, rows)
    sizes = [batch_size] * (rows // batch_size)
    left = rows - sum(sizes)
    if left == 1 and sizes:
        sizes[-1] += 1
    elif left:
        sizes.append(left)
    return sizes


def moments_of(blocks: Iterable[np.ndarray], features: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean and variance of each feature over all rows of some blocks, float64."""
    count, mean, squares = 0, np.zeros(features), np.zeros(features)
    for block in blocks:
        if not len(block):
            continue
        # Two parts are joined by their means, so that large ones do not cancel.
        own = block.mean(axis=0, dtype=np.float64)
        apart, total = own - mean, count + len(block)
        squares += np.square(block - own).sum(axis=0)
        squares += apart**2 * (count * len(block) / total)
        mean += apart * (len(block) / total)
        count = total
    return mean, squares / max(1, count)


def moments(X: np.ndarray, weights: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Mean and deviation of each feature, by which it is standardised.

    Parameters
    ----------
    X : float array, shape (n, d)
    weights : float array, shape (n,), or None

    Returns
    -------
    mean, scale : arrays, shape (d,), of the type of `X`
        A feature that hardly varies has a scale of 1.
    """
    if weights is None:
        size = max(1, MOMENT_VALUES // X.shape[1])
        parts = (X[start : start + size] for start in range(0, len(X), size))
        mean, variance = moments_of(parts, X.shape[1])
        deviation = np.sqrt(variance)
    else:
        mean = np.average(X, axis=0, weights=weights)
        deviation = np.sqrt(np.average((X - mean) ** 2, axis=0, weights=weights))
    return scales(mean, deviation, X.dtype)


def scales(
    mean: np.ndarray, deviation: np.ndarray, dtype: np.dtype[Any]
) -> tuple[np.ndarray, np.ndarray]:
    """Mean and scale of features, given their mean and deviation in float64."""
    mean, scale = mean.astype(dtype), deviation.astype(dtype)
    return mean, np.where(scale > 1e-6 * np.abs(mean) + 1e-12, scale, 1).astype(dtype)
