"""Where the work runs. Each file here is one engine.

A plug-in has ``run(batches, load, forward, workers, lanes) -> Batches``, a generator that stops
its threads when it is closed; batches may come back in any order.
"""

from collections.abc import Callable, Generator
from dataclasses import dataclass

import numpy as np

from featpipe.table import Status


@dataclass(frozen=True, eq=False)
class LoadedImage:
    """One image, ready for the network, or the reason why not.

    Attributes
    ----------
    pixels : uint8 array, shape (height, width, 3), or None
    status : Status
    reason : str
        Empty if the status is OK.
    """

    pixels: np.ndarray | None
    status: Status = Status.OK
    reason: str = ""


@dataclass(frozen=True, eq=False)
class Batch:
    """Results of one forward pass; position ``i`` of everything is item ``items[i]``."""

    items: list[int]
    images: list[LoadedImage]
    features: dict[str, np.ndarray]


Load = Callable[[int], LoadedImage]
Forward = Callable[[np.ndarray], dict[str, np.ndarray]]
Batches = Generator[Batch, None, None]
