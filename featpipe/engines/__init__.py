"""Where the work runs. Each file here is one engine.

A plug-in has ``run(batches, load, forward, workers, lanes) -> Batches``, a generator that stops
its threads when it is closed; batches may come back in any order.
"""

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from featpipe.table import Status


@dataclass(frozen=True, eq=False)
class LoadedImage:
    """One image, ready for the network, or the reason why not.

    Attributes
    ----------
    pixels : uint8 array, shape (height, width, 3) or (views, height, width, 3), or None
    status : Status
    reason : str
        Empty if the status is OK.
    """

    pixels: np.ndarray | None
    status: Status = Status.OK
    reason: str = ""


Read = bytes | LoadedImage  # what a file holds, or why it is not used


class Loader(Protocol):
    """How images are had; several threads may call it.

    Attributes
    ----------
    whole : bool
        Whether a batch is decoded by one call, since that is faster than several.
    """

    @property
    def whole(self) -> bool: ...

    def read(self, items: Sequence[int]) -> list[Read]:
        """The bytes of each item."""

    def decode(self, found: Sequence[Read]) -> list[LoadedImage]:
        """The picture of each."""


@dataclass(frozen=True, eq=False)
class Batch:
    """Results of one forward pass; position ``i`` of everything is item ``items[i]``."""

    items: list[int]
    images: list[LoadedImage]
    features: dict[str, np.ndarray]


Forward = Callable[[np.ndarray], dict[str, np.ndarray]]
Batches = Generator[Batch, None, None]
