"""How a forward pass is executed. Each file here is one way.

A plug-in has ``rank(device, precision) -> int``, how fast it is beside the others there (0: it
cannot), and ``Runtime(network, device, precision, batch_size, compiled)``, a `ForwardPass`.
"""

from collections.abc import Callable
from typing import Protocol, Self

import numpy as np

from featpipe.registry import load_plugin, plugin_names


class ForwardPass(Protocol):
    """What a runtime offers. It is entered as a context manager while it runs.

    Attributes
    ----------
    name : str
        Of the plug-in.
    device : str
        Where it runs.
    precision : str
        What it computes in; part of the Spec.
    lanes : int
        How many forward passes to run side by side, once entered.
    """

    name: str
    device: str
    precision: str
    lanes: int

    def __enter__(self) -> Self:
        """Make ready for the lanes; here, not before, anything costly happens.

        Raises
        ------
        RuntimeUnavailableError
            If it cannot run this network after all.
        """

    def __exit__(self, *error: object) -> None:
        """Leave the process as it was."""

    def __call__(self, pixels: np.ndarray) -> dict[str, np.ndarray]:
        """Features of a uint8 batch, shape (batch, height, width, 3), as float32 arrays."""


def fastest(device: str, precision: str) -> list[str]:
    """Names of the runtimes that can run there in that precision, the fastest first."""
    ranks = {
        name: load_plugin("runtimes", name).rank(device, precision)
        for name in plugin_names("runtimes")
    }
    able = [name for name, rank in ranks.items() if rank > 0]
    return sorted(able, key=lambda name: -ranks[name])


def of_views(
    forward: Callable[[np.ndarray], dict[str, np.ndarray]], pixels: np.ndarray
) -> dict[str, np.ndarray]:
    """Features of every view, shape (batch, views, ...), of uint8 (batch, views, h, w, 3).

    One forward pass a view: the plain ones are computed in the same company as without others,
    and no batch is larger than it would be.
    """
    each = [forward(np.ascontiguousarray(pixels[:, view])) for view in range(pixels.shape[1])]
    return {layer: np.stack([one[layer] for one in each], axis=1) for layer in each[0]}


def in_batches(
    pixels: np.ndarray, size: int, run: Callable[[np.ndarray], tuple[np.ndarray, ...]]
) -> tuple[np.ndarray, ...]:
    """Run batches of exactly `size` images, the last one filled up; results of the real ones."""
    done = []
    for start in range(0, len(pixels), size):
        batch = pixels[start : start + size]
        count = len(batch)
        if count < size:
            filling = np.zeros((size - count, *batch.shape[1:]), batch.dtype)
            batch = np.concatenate([batch, filling])
        done.append([rows[:count] for rows in run(batch)])
    return tuple(
        parts[0] if len(parts) == 1 else np.concatenate(parts) for parts in zip(*done, strict=True)
    )
