"""How a forward pass is executed. Each file here is one way.

A plug-in has ``Runtime(cut, layers, preprocessing, device)``; calling it with a batch of
pixels gives each layer's pooled features.
"""

from dataclasses import dataclass
from typing import Protocol, Self

import numpy as np

from featpipe.layers import Shape


@dataclass(frozen=True)
class PooledLayer:
    """A layer that is wanted, how it is pooled, and the shape before pooling."""

    name: str
    pool: str
    shape: Shape


class ForwardPass(Protocol):
    """What a runtime offers.

    Attributes
    ----------
    device : str
        Where it runs.
    precision : str
        What it computes in; part of the Spec.
    lanes : int
        How many forward passes to run side by side. While they do, the runtime is entered as
        a context manager.
    """

    device: str
    precision: str
    lanes: int

    def __enter__(self) -> Self:
        """Make ready for the lanes."""

    def __exit__(self, *error: object) -> None:
        """Leave the process as it was."""

    def __call__(self, pixels: np.ndarray) -> dict[str, np.ndarray]:
        """Features of a uint8 batch, shape (batch, 3, height, width), as float32 arrays."""
