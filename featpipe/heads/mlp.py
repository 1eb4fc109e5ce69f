"""A multi-layer perceptron, trained by mini-batches."""

from collections.abc import Sequence
from numbers import Real
from typing import Any

from sklearn.utils._param_validation import Interval

from featpipe.perceptron import LIMITS, PerceptronHead


class Head(PerceptronHead):
    """Linear layers with ReLU and dropout between them.

    Parameters
    ----------
    hidden : sequence of int
        Width of each hidden layer.
    dropout : float
        After each hidden layer.
    batch_norm : bool
        Before each hidden layer's ReLU.
    lr, epochs, batch_size, optimizer, schedule, momentum, weight_decay, label_smoothing, mixup
        As of `linear`.
    clip, class_weight, patience, standardize, seed, device
        As of `linear`.
    """

    _parameter_constraints = LIMITS | {
        "dropout": [Interval(Real, 0, 1, closed="left")],
        "batch_norm": ["boolean"],
    }

    def __init__(
        self,
        hidden: Sequence[int] = (460,),
        dropout: float = 0.4,
        batch_norm: bool = False,
        lr: float | None = None,
        epochs: int = 60,
        batch_size: int | None = 64,
        optimizer: str = "adam",
        schedule: str = "constant",
        momentum: float = 0.9,
        weight_decay: float = 1e-2,
        label_smoothing: float = 0.0,
        mixup: float = 0.0,
        clip: float | None = None,
        class_weight: Any = None,
        patience: int = 15,
        standardize: bool = True,
        seed: int = 0,
        device: str = "auto",
    ) -> None:
        self.hidden = hidden
        self.dropout = dropout
        self.batch_norm = batch_norm
        self.lr = lr
        self.epochs = epochs
        self.batch_size = batch_size
        self.optimizer = optimizer
        self.schedule = schedule
        self.momentum = momentum
        self.weight_decay = weight_decay
        self.label_smoothing = label_smoothing
        self.mixup = mixup
        self.clip = clip
        self.class_weight = class_weight
        self.patience = patience
        self.standardize = standardize
        self.seed = seed
        self.device = device
