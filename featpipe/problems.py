"""A perceptron to train: its shape, its settings, its rows, and all that is drawn for it."""

import json
import math
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from featpipe.descent import Epochs
from featpipe.perceptrons import Layers
from featpipe.streamed import Features, batch_sizes

ORDER, DROPOUT, MIXUP, VIEWS = 0, 1, 2, 3  # streams of random numbers of one seed


@dataclass(frozen=True)
class Shape:
    """What the perceptrons of a stack have in common.

    Attributes
    ----------
    widths : tuple of int
        Features, hidden layers, outputs.
    epochs, patience : int
        A patience of 0 never stops early.
    batch_size : int or None
        None: all rows, one step an epoch.
    optimizer, schedule : str
        See `featpipe.optimizers`; the schedule is over all epochs.
    batch_norm : bool
    multilabel : bool
        A sigmoid for each output instead of one softmax.
    """

    widths: tuple[int, ...]
    epochs: int
    batch_size: int | None
    optimizer: str = "adam"
    schedule: str = "constant"
    patience: int = 0
    batch_norm: bool = False
    multilabel: bool = False

    @property
    def n_parameters(self) -> int:
        """Weights and biases of one perceptron."""
        return sum((inputs + 1) * outputs for inputs, outputs in pairwise(self.widths))


@dataclass(frozen=True, eq=False)
class Problem:
    """One perceptron to train.

    Attributes
    ----------
    train, val : int64 arrays
        Row numbers; those of `val` select the epoch, and may be none.
    lr, weight_decay, dropout, momentum, label_smoothing, mixup : float
        `mixup` is the parameter of its Beta distribution; 0 mixes nothing.
    clip : float
        Largest norm of the gradient.
    class_weight : float array, shape (outputs,), or None
        Of a row of each class; for multi-label, of the positives of each label.
    seed : int
        Of the initial weights, the order of rows, dropout, mixup and views.
    views : int
        Rows of each image, of which `train` names the first; an epoch draws one for each.
    """

    train: np.ndarray
    val: np.ndarray
    lr: float
    weight_decay: float = 0.0
    dropout: float = 0.0
    momentum: float = 0.9
    label_smoothing: float = 0.0
    mixup: float = 0.0
    clip: float = math.inf
    class_weight: np.ndarray | None = None
    seed: int = 0
    views: int = 1


@dataclass(eq=False)
class Trained:
    """A trained perceptron.

    Attributes
    ----------
    layers : Layers
        Of a stack of one, on the host, batch norm being part of them.
    curves : list of dict
        One an epoch: ``epoch`` (from 1), ``train_loss``, ``train_accuracy`` (both running means
        over the epoch, in training), ``val_loss``, ``val_accuracy``.
    kept : int
        The epoch it was taken from.
    diverged : int
        The epoch in which its loss stopped being finite; 0 if it never did.
    """

    layers: Layers = field(default_factory=list)
    curves: Epochs = field(default_factory=list)
    kept: int = 0
    diverged: int = 0


def shared(problem: Problem) -> tuple[int, int, bytes, bytes]:
    """Equal for problems that see the same batches and are validated on the same rows."""
    return problem.seed, problem.views, problem.train.tobytes(), problem.val.tobytes()


class Draws:
    """All that is drawn for problems of one seed and the same rows."""

    def __init__(self, problem: Problem, batch_size: int | None, X: Features) -> None:
        self._train = torch.from_numpy(problem.train)
        self._sizes = batch_sizes(len(problem.train), batch_size)
        self._seed, self._X = problem.seed, X
        self._views = problem.views
        self._order, self._partners, self._view = (
            torch.Generator().manual_seed(problem.seed + stream) for stream in (ORDER, MIXUP, VIEWS)
        )
        self._noise = torch.Generator(X.device).manual_seed(problem.seed + DROPOUT)
        self._shares: dict[float, np.random.Generator] = {}
        self.val = torch.from_numpy(problem.val).to(X.device)

    def epoch(self) -> list[Tensor]:
        """Rows of each batch of an epoch, on the device."""
        order = self._train
        if self._views > 1:
            order = order + torch.randint(self._views, (len(order),), generator=self._view)
        if len(self._sizes) > 1:  # a sum over all rows has no order
            order = self._X.shuffled(order, self._order)
        return list(torch.split(order.to(self._X.device), self._sizes))

    def state(self) -> tuple[list[Tensor], dict[float, str]]:
        """Where its streams of random numbers are."""
        shares = {alpha: json.dumps(one.bit_generator.state) for alpha, one in self._shares.items()}
        return [stream.get_state() for stream in self._streams()], shares

    def resume(self, state: tuple[list[Tensor], dict[float, str]]) -> None:
        """Go on from a state of before."""
        for stream, kept in zip(self._streams(), state[0], strict=True):
            stream.set_state(kept)
        for alpha, kept_share in state[1].items():
            self._share_of(alpha).bit_generator.state = json.loads(kept_share)

    def _streams(self) -> list[torch.Generator]:
        return [self._order, self._partners, self._view, self._noise]

    def noise(self, rows: int, width: int) -> Tensor:
        """Uniform in [0, 1), shape (rows, width)."""
        return torch.rand(rows, width, generator=self._noise, device=self._X.device)

    def partners(self, rows: int) -> Tensor:
        """With whom each row of a batch is mixed."""
        return torch.randperm(rows, generator=self._partners).to(self._X.device)

    def share(self, alpha: float) -> float:
        """How much of a row stays its own: from Beta(alpha, alpha)."""
        if not alpha:
            return 1.0
        return float(self._share_of(alpha).beta(alpha, alpha))

    def _share_of(self, alpha: float) -> np.random.Generator:
        return self._shares.setdefault(alpha, np.random.default_rng([self._seed, MIXUP]))
