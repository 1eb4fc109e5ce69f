"""Eager PyTorch in float32, on the CPU or on an accelerator."""

from typing import Self

import numpy as np
import torch
from torch import Tensor, nn

from featpipe.decode import Preprocessing
from featpipe.device import available_cores, choose_device
from featpipe.layers import pool
from featpipe.runtimes import PooledLayer

MOST_LANES = 8


class Runtime:
    """A cut of a network, on a device, that takes uint8 pixels.

    Pixels cross to the device as bytes; scaling and normalisation happen there, with the same
    operations in the same order as torchvision's presets.

    A CPU runs one single-threaded forward pass a core: threads that share one pass wait for
    each other at every layer, which beside decoding threads costs most of the time. Beyond
    eight cores passes get several threads, since each pass holds its own activations.
    """

    precision = "float32"

    def __init__(
        self, cut: nn.Module, layers: list[PooledLayer], preprocessing: Preprocessing, device: str
    ) -> None:
        self.device = choose_device(device)
        self.lanes = min(available_cores(), MOST_LANES) if self.device == "cpu" else 1
        self._layers = layers
        self._cut = cut.to(self.device).to(memory_format=torch.channels_last)
        self._mean = torch.tensor(preprocessing.mean, device=self.device).view(1, 3, 1, 1)
        self._std = torch.tensor(preprocessing.std, device=self.device).view(1, 3, 1, 1)

    def __enter__(self) -> Self:
        """Give each lane its share of the threads."""
        self._threads = torch.get_num_threads()
        if self.device == "cpu":
            torch.set_num_threads(max(1, available_cores() // self.lanes))
        return self

    def __exit__(self, *error: object) -> None:
        """Give the process its threads back."""
        torch.set_num_threads(self._threads)

    def __call__(self, pixels: np.ndarray) -> dict[str, np.ndarray]:
        """Features of a uint8 batch, shape (batch, 3, height, width), as float32 arrays."""
        with torch.inference_mode():
            images = torch.from_numpy(pixels).to(self.device)
            images = images.to(memory_format=torch.channels_last).float() / 255
            outputs = self._cut((images - self._mean) / self._std)
            return {
                layer.name: _to_numpy(pool(output, layer.pool, layer.shape))
                for layer, output in zip(self._layers, outputs, strict=True)
            }


def _to_numpy(features: Tensor) -> np.ndarray:
    return features.float().contiguous().cpu().numpy()
