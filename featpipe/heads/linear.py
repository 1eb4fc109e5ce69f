"""One linear layer under softmax, trained by mini-batches: the linear probe."""

from featpipe.perceptron import PerceptronHead


class Head(PerceptronHead):
    """One linear layer.

    Parameters
    ----------
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

    def __init__(
        self,
        lr: float | None = None,
        epochs: int = 100,
        batch_size: int = 64,
        optimizer: str = "adam",
        momentum: float = 0.9,
        weight_decay: float = 1e-2,
        patience: int = 15,
        standardize: bool = True,
        seed: int = 0,
        device: str = "auto",
    ) -> None:
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
