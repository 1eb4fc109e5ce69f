"""One linear layer under softmax, trained by mini-batches: the linear probe."""

from typing import Any

from featpipe.perceptron import PerceptronHead


class Head(PerceptronHead):
    """One linear layer.

    Parameters
    ----------
    lr : float or None
        Learning rate. None: 1 / features, at most 0.001, so that one step of Adam moves a
        logit about as far whatever the number of features.
    epochs : int
        At most this many passes.
    batch_size : int or None
        Rows of a step. None: all of them, an exact gradient and one step an epoch, which asks
        for a higher learning rate or more epochs.
    optimizer : {"adam", "adamw", "sgd"}
    schedule : {"constant", "cosine", "one-cycle"}
        Of the learning rate, over all epochs.
    momentum : float
        Of SGD.
    weight_decay : float
    label_smoothing : float
        Share of the target that all classes have in common.
    mixup : float
        Rows are mixed in pairs by a share from Beta(mixup, mixup); 0: not at all.
    clip : float or None
        Largest norm of the gradient.
    class_weight : dict, "balanced" or None
        Of each class's rows.
    patience : int
        Stop after this many epochs without a lower validation loss; 0 never stops early.
    standardize : bool
        Standardise the features by the training rows.
    seed : int
        Of the initial weights and the order of the rows.
    device : str
        ``auto``, ``cpu``, ``cuda``, ...
    """

    def __init__(
        self,
        lr: float | None = None,
        epochs: int = 100,
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
