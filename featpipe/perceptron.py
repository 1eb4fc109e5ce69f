"""The network behind the heads that are trained by mini-batches."""

from collections.abc import Iterable, Sequence
from itertools import pairwise
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch
from sklearn.utils._param_validation import Interval, StrOptions
from torch import Tensor, nn

from featpipe.descent import Descent, descend, forward, seeded
from featpipe.device import choose_device
from featpipe.errors import HeadError
from featpipe.heads import Head, Validation


def perceptron(widths: Sequence[int], dropout: float) -> nn.Sequential:
    """Linear layers of these widths, with ReLU and dropout between them."""
    layers: list[nn.Module] = []
    for i, (inputs, outputs) in enumerate(pairwise(widths)):
        if i:
            layers += [nn.ReLU(), nn.Dropout(dropout)]
        layers.append(nn.Linear(inputs, outputs))
    return nn.Sequential(*layers)


LIMITS = {
    "lr": [Interval(Real, 0, None, closed="neither"), None],
    "epochs": [Interval(Integral, 1, None, closed="left")],
    "batch_size": [Interval(Integral, 1, None, closed="left")],
    "optimizer": [StrOptions({"adam", "adamw", "sgd"})],
    "momentum": [Interval(Real, 0, 1, closed="both")],
    "weight_decay": [Interval(Real, 0, None, closed="left")],
    "patience": [Interval(Integral, 0, None, closed="left")],
    "standardize": ["boolean"],
    "seed": [Interval(Integral, 0, None, closed="left")],
}


class PerceptronHead(Head):
    """What `linear` and `mlp` share; the parameters are the subclass's.

    The whole training set moves to the device once; batches are slices of it there.
    """

    _parameter_constraints = LIMITS

    hidden: Sequence[int] = ()
    dropout: float = 0.0
    lr: float | None
    epochs: int
    batch_size: int
    optimizer: str
    momentum: float
    weight_decay: float
    patience: int
    seed: int
    device: str

    def _fit(self, X: np.ndarray, codes: np.ndarray, validation: Validation | None) -> None:
        widths: list[Any] = list(self.hidden) if isinstance(self.hidden, Iterable) else [None]
        if not all(isinstance(width, int | np.integer) and width > 0 for width in widths):
            raise HeadError(f"hidden is {self.hidden!r}; it must be positive whole numbers.")
        device = choose_device(self.device)

        def on_device(rows: np.ndarray, labels: np.ndarray) -> tuple[Tensor, Tensor]:
            inputs = torch.tensor(rows, dtype=torch.float32, device=device)
            return inputs, torch.tensor(labels, dtype=torch.int64, device=device)

        widths = [X.shape[1], *widths, len(self.classes_)]
        network = seeded(self.seed, lambda: perceptron(widths, self.dropout)).to(device)
        lr = min(1e-3, 1 / X.shape[1]) if self.lr is None else self.lr
        settings = Descent(
            self.epochs, self.batch_size, lr, self.optimizer, self.momentum,
            self.weight_decay, self.patience, self.seed,
        )  # fmt: skip
        self.curves_ = descend(
            network, *on_device(X, codes), settings, on_device(*validation) if validation else None
        )
        self._network = network.cpu()

    def _decision(self, X: np.ndarray) -> np.ndarray:
        # In the features' own precision: from float64 comes no rounding that depends on the batch.
        inputs = torch.tensor(X)
        logits: np.ndarray = forward(self._network.to(inputs.dtype), inputs, len(X)).numpy()
        return logits

    def arrays(self) -> dict[str, np.ndarray]:
        """Weights and biases by layer."""
        state = self._network.float().state_dict()
        return {name: value.numpy() for name, value in state.items()}

    def set_arrays(self, arrays: dict[str, np.ndarray]) -> None:
        """The inverse of `arrays`."""
        names = sorted(
            (name for name in arrays if name.endswith(".weight")),
            key=lambda name: int(name.partition(".")[0]),
        )
        widths = [arrays[names[0]].shape[1], *(arrays[name].shape[0] for name in names)]
        self._network = perceptron(widths, self.dropout).eval()
        self._network.load_state_dict({name: torch.tensor(a) for name, a in arrays.items()})
