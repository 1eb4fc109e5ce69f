"""A multi-layer perceptron, trained by mini-batches."""

from collections.abc import Sequence
from numbers import Real

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
    lr : float or None
        Learning rate. None: 1 / features, at most 0.001, so that one step of Adam moves a
        logit about as far whatever the number of features.
    epochs, batch_size, optimizer, momentum, weight_decay, patience, seed
        See `featpipe.descent.Descent`.
    standardize : bool
        Standardise the features by the training rows.
    device : str
        ``auto``, ``cpu``, ``cuda``, ...
    """

    _parameter_constraints = LIMITS | {"dropout": [Interval(Real, 0, 1, closed="left")]}

    def __init__(
        self,
        hidden: Sequence[int] = (460,),
        dropout: float = 0.4,
        lr: float | None = None,
        epochs: int = 60,
        batch_size: int = 64,
        optimizer: str = "adam",
        momentum: float = 0.9,
        weight_decay: float = 1e-2,
        patience: int = 15,
        standardize: bool = True,
        seed: int = 0,
        device: str = "auto",
    ) -> None:
        self.hidden = hidden
        self.dropout = dropout
        self.lr = lr
        self.epochs = epochs
        self.batch_size = batch_size
        self.optimizer = optimizer
        self.momentum = momentum
        self.weight_decay = weight_decay
        self.patience = patience
        self.standardize = standardize
        self.seed = seed
        self.device = device
