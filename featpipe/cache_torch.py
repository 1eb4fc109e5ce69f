"""A feature cache as a torch data set."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch.utils.data import Dataset

from featpipe.errors import CacheDamagedError
from featpipe.table import UNLABELLED


class _Readable(Protocol):
    @property
    def identity(self) -> tuple[int, ...]: ...
    def features(self, layer: str, rows: np.ndarray) -> np.ndarray: ...


class FeatureDataset(Dataset[tuple[torch.Tensor, int]]):
    """Rows of one layer, read when they are asked for; made by `FeatureCache.dataset`.

    Each process opens the file for itself, so that forked and spawned workers may share the
    data set. An item is ``(features, label)``: a float tensor of the layer's shape and type,
    and the class index, -1 without a label.
    """

    def __init__(
        self,
        opener: Callable[[Path], _Readable],
        path: Path,
        identity: tuple[int, ...],
        layer: str,
        rows: np.ndarray,
        labels: np.ndarray | None,
    ) -> None:
        self._opener = opener
        self.path, self.layer, self.rows = path.resolve(), layer, rows
        self.labels = np.full(len(rows), UNLABELLED) if labels is None else labels[rows]
        self._identity = identity
        self._cache: _Readable | None = None
        self._process = 0

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: list[int]) -> list[tuple[torch.Tensor, int]]:
        """Several items in one read, which is how a DataLoader asks for a batch."""
        features = torch.from_numpy(self._open().features(self.layer, self.rows[indices]))
        labels = self.labels[indices].tolist()
        return list(zip(features, labels, strict=True))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_cache": None, "_process": 0}

    def _open(self) -> _Readable:
        if self._cache is None or self._process != os.getpid():
            cache = self._opener(self.path)
            if cache.identity != self._identity:
                raise CacheDamagedError(
                    f"{self.path} is another file than when this data set was made: make it anew."
                )
            self._cache, self._process = cache, os.getpid()
        return self._cache
