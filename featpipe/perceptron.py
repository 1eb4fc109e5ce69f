"""What the heads that are trained by mini-batches share."""

import time
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from numbers import Integral, Real
from typing import Any, Self

import numpy as np
import torch
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.class_weight import compute_class_weight
from torch import Tensor

from featpipe.device import choose_device
from featpipe.errors import HeadError
from featpipe.head import Head, Validation
from featpipe.optimizers import OPTIMIZERS, SCHEDULES
from featpipe.perceptrons import Layers, logits_of
from featpipe.problems import Problem, Shape, Trained
from featpipe.settings import SEEDS
from featpipe.stacked import block_rows, train_stacked
from featpipe.streamed import Features, ResidentRows, StreamedRows
from featpipe.targets import probabilities
from featpipe.tasks import Outcome, Task

LIMITS = {
    "lr": [Interval(Real, 0, None, closed="neither"), None],
    "epochs": [Interval(Integral, 1, None, closed="left")],
    "batch_size": [Interval(Integral, 1, None, closed="left"), None],
    "optimizer": [StrOptions(set(OPTIMIZERS))],
    "schedule": [StrOptions(set(SCHEDULES))],
    "momentum": [Interval(Real, 0, 1, closed="both")],
    "weight_decay": [Interval(Real, 0, None, closed="left")],
    "label_smoothing": [Interval(Real, 0, 1, closed="left")],
    "mixup": [Interval(Real, 0, None, closed="left")],
    "clip": [Interval(Real, 0, None, closed="neither"), None],
    "class_weight": [dict, StrOptions({"balanced"}), None],
    "patience": [Interval(Integral, 0, None, closed="left")],
    "standardize": ["boolean"],
    "seed": [Interval(Integral, 0, SEEDS, closed="both")],
}


def class_weights(given: Any, targets: np.ndarray, classes: int, head: Head) -> np.ndarray | None:
    """The weight of each class, 1 for a row on average; of labels, of the positives.

    Parameters
    ----------
    given : dict, "balanced" or None
        By the names of the head's classes, or their numbers where it has none.
    targets : int array, shape (n,), or 0 and 1, shape (n, classes)
    classes : int
    head : Head

    Raises
    ------
    HeadError
        If no class weighs anything, or one less than that.
    """
    if given is None:
        return None
    if targets.ndim == 2:
        if given != "balanced":
            raise HeadError("class_weight can only be balanced where there are several labels.")
        positive = targets.sum(axis=0).clip(1)
        return np.asarray((len(targets) - positive).clip(1) / positive)
    present, counts = np.unique(targets, return_counts=True)
    wanted = given
    if isinstance(given, dict):
        names = getattr(head, "classes_", np.arange(classes))
        wanted = {code: given.get(names[code], 1.0) for code in present.tolist()}
    weights = np.ones(classes)
    weights[present] = compute_class_weight(wanted, classes=present, y=targets)
    mean = float((weights[present] * counts).sum() / counts.sum())
    if mean <= 0 or weights.min() < 0:
        raise HeadError(f"class_weight is {given!r}; some class must weigh more than 0.")
    return weights / mean


class PerceptronHead(Head):
    """What `linear` and `mlp` share; the parameters are the subclass's.

    The whole training set moves to the device once; batches are gathered there.
    """

    _parameter_constraints = LIMITS
    multilabel = True
    streams = True

    hidden: Sequence[int] = ()
    dropout: float = 0.0
    batch_norm: bool = False
    lr: float | None
    epochs: int
    batch_size: int | None
    optimizer: str
    schedule: str
    momentum: float
    weight_decay: float
    label_smoothing: float
    mixup: float
    clip: float | None
    class_weight: Any
    patience: int
    seed: int
    device: str

    def _fit(self, X: np.ndarray, codes: np.ndarray, validation: Validation | None) -> None:
        rows, targets = X, codes
        if validation is not None:
            rows = np.concatenate([X, validation[0]])
            targets = np.concatenate([codes, validation[1]])
        train = np.arange(0, len(X), self._views)
        self._train(rows, targets, train, np.arange(len(X), len(rows)))

    def _learn_streamed(
        self, rows: StreamedRows, codes: np.ndarray, train: np.ndarray, select: np.ndarray
    ) -> None:
        self._train(rows, codes, train, select)

    def _train(
        self,
        X: np.ndarray | StreamedRows,
        targets: np.ndarray,
        train: np.ndarray,
        select: np.ndarray,
    ) -> None:
        shape = self._shape(X.shape[1], len(self.classes_), targets.ndim == 2)
        problem = self._problem(Task(train, select, select, self._views), targets, shape)
        (trained,) = train_stacked(*self._on_device(X, targets), shape, [problem])
        if trained.diverged:
            raise HeadError(
                f"The loss is no longer finite in epoch {trained.diverged}: lower the learning "
                f"rate (now {problem.lr:g}) or standardize the features."
            )
        self.curves_, self._layers = trained.curves, trained.layers

    def _shape(self, features: int, classes: int, multilabel: bool) -> Shape:
        """What must be equal for heads to be trained in one stack."""
        hidden: list[Any] = list(self.hidden) if isinstance(self.hidden, Iterable) else [None]
        if not all(isinstance(width, int | np.integer) and width > 0 for width in hidden):
            raise HeadError(f"hidden is {self.hidden!r}; it must be positive whole numbers.")
        return Shape(
            (features, *map(int, hidden), classes), self.epochs, self.batch_size, self.optimizer,
            self.schedule, self.patience, self.batch_norm, multilabel,
        )  # fmt: skip

    def _problem(self, task: Task, targets: np.ndarray, shape: Shape) -> Problem:
        """This head on the rows of a task."""
        return Problem(
            task.train,
            task.select,
            lr=min(1e-3, 1 / shape.widths[0]) if self.lr is None else self.lr,
            weight_decay=self.weight_decay,
            dropout=self.dropout,
            momentum=self.momentum,
            label_smoothing=self.label_smoothing,
            mixup=self.mixup,
            clip=float("inf") if self.clip is None else self.clip,
            class_weight=class_weights(
                self.class_weight, targets[task.train], shape.widths[-1], self
            ),
            seed=(self.seed + task.seed) % (SEEDS + 1),
            views=task.views,
        )

    def _on_device(
        self, X: np.ndarray | StreamedRows, targets: np.ndarray
    ) -> tuple[ResidentRows | StreamedRows, Tensor]:
        device = torch.device(choose_device(self.device))
        kind = torch.float32 if targets.ndim == 2 else torch.int64
        wanted = torch.tensor(targets, dtype=kind, device=device)
        if isinstance(X, StreamedRows):
            return X.on(device), wanted
        return ResidentRows(torch.tensor(X, dtype=torch.float32, device=device)), wanted

    @classmethod
    def cross_fit(
        cls,
        heads: Sequence[Self],
        X: np.ndarray | StreamedRows,
        targets: np.ndarray,
        n_classes: int,
        tasks: Sequence[Task],
    ) -> Iterator[Outcome]:
        """Fit each head on each task, those of one shape as one stack; see `Head.cross_fit`."""
        inputs, wanted = heads[0]._on_device(X, targets)
        multilabel = targets.ndim == 2
        shapes = [head._shape(X.shape[1], n_classes, multilabel) for head in heads]
        for shape in dict.fromkeys(shapes):
            begun = time.perf_counter()
            fits = [
                (number, place)
                for place in range(len(tasks))
                for number in range(len(heads))
                if shapes[number] == shape
            ]
            problems = [heads[i]._problem(tasks[j], targets, shape) for i, j in fits]
            trained = train_stacked(inputs, wanted, shape, problems)
            share = (time.perf_counter() - begun) / len(fits)
            done = zip(fits, trained, strict=True)
            for place, group in groupby(done, key=lambda pair: pair[0][1]):
                some = list(group)
                begun = time.perf_counter()
                probas = _predicted([one for _, one in some], inputs, targets, tasks[place])
                seconds = share + (time.perf_counter() - begun) / len(some)
                for ((number, _), one), proba in zip(some, probas, strict=True):
                    note = f"diverged in epoch {one.diverged}" if one.diverged else ""
                    yield Outcome(number, place, proba, seconds, one.kept, note)

    def refit(self, epochs: Sequence[int]) -> Self:
        """An unfitted copy that trains for as many epochs as the median trial.

        With a schedule it trains for all of them: the schedule is made for its end.
        """
        copy = super().refit(epochs)
        if epochs and self.schedule == "constant":
            copy.set_params(epochs=max(1, round(float(np.median(epochs)))))
        return copy

    def _decision(self, X: np.ndarray) -> np.ndarray:
        # In the features' own precision: from float64 comes no rounding that depends on the batch.
        inputs = torch.tensor(X)
        layers = [(weight.to(inputs.dtype), bias.to(inputs.dtype)) for weight, bias in self._layers]
        logits: np.ndarray = logits_of(layers, inputs)[0].numpy()
        return logits

    def arrays(self) -> dict[str, np.ndarray]:
        """Weights and biases by layer."""
        arrays = {}
        for number, (weight, bias) in enumerate(self._layers):
            arrays[f"{number}.weight"] = weight[0].numpy()
            arrays[f"{number}.bias"] = bias[0, 0].numpy()
        return arrays

    def set_arrays(self, arrays: dict[str, np.ndarray]) -> None:
        """The inverse of `arrays`."""
        numbers = sorted(int(name.partition(".")[0]) for name in arrays if ".weight" in name)
        self._layers = [
            (
                torch.tensor(arrays[f"{number}.weight"])[None],
                torch.tensor(arrays[f"{number}.bias"])[None, None],
            )
            for number in numbers
        ]


@torch.no_grad()
def _predicted(
    trained: Sequence[Trained], inputs: Features, targets: np.ndarray, task: Task
) -> list[np.ndarray | None]:
    """Probabilities of scored rows by perceptrons of one shape, None for those that diverged."""
    layers: Layers = [
        (torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts]))
        for parts in zip(*(one.layers for one in trained), strict=True)
    ]
    on_device = [(weight.to(inputs.device), bias.to(inputs.device)) for weight, bias in layers]
    blocks = torch.split(torch.from_numpy(task.scored), block_rows(layers))
    parts = [logits_of(on_device, inputs.take(block)).cpu() for block in blocks]
    logits = torch.cat(parts, dim=1).numpy()
    return [
        None if one.diverged else probabilities(values, targets.ndim == 2, targets[task.train])
        for one, values in zip(trained, logits, strict=True)
    ]
