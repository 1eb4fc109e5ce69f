"""Multinomial logistic regression, by featpipe's own second-order solver."""

import time
import warnings
from collections.abc import Iterator, Sequence
from numbers import Integral, Real
from typing import Self

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.class_weight import compute_sample_weight
from torch import Tensor

from featpipe.device import choose_double
from featpipe.errors import HeadError
from featpipe.linear_head import WeightedHead, both_columns
from featpipe.logistic import Rows, Solution, Solver
from featpipe.streamed import StreamedRows
from featpipe.targets import probabilities
from featpipe.tasks import Outcome, Task, every_view

MOST_BYTES = 1 << 30  # that the solver remembers of the tasks it solves side by side
MEMORIES = 32  # times the coefficients: its history, and what is in between


class Head(WeightedHead):
    """Logistic regression with an L2 penalty, on standardised features.

    The objective is that of `sklearn.linear_model.LogisticRegression`.

    Parameters
    ----------
    C : float
        Inverse strength of the penalty. Standardised features of a pretrained network want a
        strong one.
    class_weight : dict, "balanced" or None
        Of each class, beside the rows' own weights. Each label of several has its own balance.
    fit_intercept : bool
        The intercept is not penalised.
    tol : float
        Share of the objective by which it may lie above its minimum, as estimated.
    max_iter : int
        Of L-BFGS.
    standardize : bool
        Standardise the features by the training rows.
    device : str
        ``auto``, ``cpu``, ``cuda``, ...

    Attributes
    ----------
    n_iter_ : int
    gap_ : float
        By how much of itself the objective may lie above its minimum.
    """

    _parameter_constraints = {  # noqa: RUF012
        "C": [Interval(Real, 0, None, closed="neither")],
        "class_weight": [dict, StrOptions({"balanced"}), None],
        "fit_intercept": ["boolean"],
        "tol": [Interval(Real, 0, None, closed="neither")],
        "max_iter": [Interval(Integral, 1, None, closed="left")],
        "standardize": ["boolean"],
    }
    multilabel = True
    streams = True

    def __init__(
        self,
        C: float = 0.01,
        class_weight: dict[object, float] | str | None = None,
        fit_intercept: bool = True,
        tol: float = 1e-8,
        max_iter: int = 1000,
        standardize: bool = True,
        device: str = "auto",
    ) -> None:
        self.C = C
        self.class_weight = class_weight
        self.fit_intercept = fit_intercept
        self.tol = tol
        self.max_iter = max_iter
        self.standardize = standardize
        self.device = device

    def _solve(
        self, X: np.ndarray, codes: np.ndarray, weights: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        return self._solve_rows(_rows_of(X, np.arange(len(X)), self.device), codes, weights)

    def _learn_streamed(
        self, rows: StreamedRows, codes: np.ndarray, train: np.ndarray, select: np.ndarray
    ) -> None:
        every = every_view(train, self._views)
        given, weights = _rows_of(rows, every, self.device), np.full(len(every), 1 / self._views)
        self._coef, self._intercept = self._solve_rows(given, codes[every], weights)

    def _solve_rows(
        self, given: Rows, codes: np.ndarray, weights: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        solver = Solver(given, self.fit_intercept)
        rows = self._row_weights(codes, weights[None], self.classes_)
        (found,) = self._minima(solver, codes, rows, len(self.classes_), [self.C])
        self.n_iter_, self.gap_ = int(found.iterations.max()), float(found.gap.max())
        if not found.converged.all():
            warnings.warn(
                f"The objective may lie {self.gap_:.1e} of itself above its minimum after "
                f"{self.n_iter_} iterations, more than tol={self.tol:g}. Raise max_iter or tol, or "
                "standardize the features.",
                ConvergenceWarning,
                stacklevel=4,
            )
        # Labels are as many problems of one vector each; classes are one problem.
        several = codes.ndim == 2
        coef = found.coef[:, 0] if several else found.coef[0]
        intercept = found.intercept[:, 0] if several else found.intercept[0]
        return coef.cpu().numpy(), intercept.cpu().numpy()

    def _minima(
        self, solver: Solver, codes: np.ndarray, weights: np.ndarray, classes: int,
        Cs: Sequence[float],
    ) -> list[Solution]:  # fmt: skip
        """For each C; `weights` are of each row in each problem, several labels side by side."""
        device = choose_double(self.device)
        given = codes
        if codes.ndim == 2:
            given, classes = np.tile(codes.T, (len(weights) // codes.shape[1], 1)), 2
        return solver.fit(
            torch.as_tensor(given.astype(np.int64), device=device), classes, Cs,
            torch.as_tensor(weights, device=device), self.tol, self.max_iter,
        )  # fmt: skip

    def _row_weights(
        self, codes: np.ndarray, weights: np.ndarray, classes: np.ndarray
    ) -> np.ndarray:
        """Weights of rows, shape (problems, n), with their classes' own; of labels, for each."""
        columns = [codes] if codes.ndim == 1 else list(codes.T)
        result = []
        for problem in weights:
            used = problem > 0
            for column in columns:
                row = problem.astype(np.float64)
                if self.class_weight is not None:
                    names = classes[column] if codes.ndim == 1 else column
                    row[used] *= compute_sample_weight(self.class_weight, names[used])
                if not row.any():
                    raise HeadError("class_weight leaves no row any weight.")
                result.append(row)
        return np.stack(result)

    @classmethod
    def cross_fit(
        cls,
        heads: Sequence[Self],
        X: np.ndarray | StreamedRows,
        targets: np.ndarray,
        n_classes: int,
        tasks: Sequence[Task],
    ) -> Iterator[Outcome]:
        """All tasks side by side, along the path of all C; see `Head.cross_fit`."""
        solvers: dict[bool, Solver] = {}
        rows = _rows_of(X, np.arange(X.shape[0]), heads[0].device)
        each = 8 * n_classes * (MEMORIES * min(X.shape) + X.shape[0])
        at_once = max(1, MOST_BYTES // each)
        parts = [tasks[start : start + at_once] for start in range(0, len(tasks), at_once)]
        unlike: dict[str, list[int]] = {}
        for number, head in enumerate(heads):
            same = {name: value for name, value in head.get_params().items() if name != "C"}
            unlike.setdefault(repr(same), []).append(number)
        for numbers in unlike.values():
            head = heads[numbers[0]]
            if head.fit_intercept not in solvers:
                solvers[head.fit_intercept] = Solver(rows, head.fit_intercept)
            Cs = [heads[number].C for number in numbers]
            for place, some in enumerate(parts):
                begun = time.perf_counter()
                weights = np.zeros((len(some), X.shape[0]))
                for row, task in zip(weights, some, strict=True):
                    row[task.every] = 1 / task.views
                weights = head._row_weights(targets, weights, np.arange(n_classes))
                path = head._minima(solvers[head.fit_intercept], targets, weights, n_classes, Cs)
                share = (time.perf_counter() - begun) / (len(some) * len(numbers))
                open_ = sum(int((~found.converged).sum()) for found in path)
                if open_:
                    warnings.warn(
                        f"{open_} of {len(weights) * len(path)} regressions did not converge to "
                        f"tol={head.tol:g}. Raise max_iter or tol.",
                        ConvergenceWarning,
                        stacklevel=2,
                    )
                for j, probas in enumerate(_scored(path, X, targets, some)):
                    for number, proba in zip(numbers, probas, strict=True):
                        yield Outcome(number, place * at_once + j, proba, share)


def _rows_of(X: np.ndarray | StreamedRows, rows: np.ndarray, device: str) -> Rows:
    """Rows as the solver takes them."""
    where = choose_double(device)
    if isinstance(X, np.ndarray):
        return Rows.of(torch.as_tensor(X, device=where))

    def blocks(size: int) -> Iterator[Tensor]:
        return (torch.as_tensor(block, device=where) for block in X.blocks(rows, size))

    return Rows((len(rows), X.shape[1]), blocks, where, whole=False)


def _scored(
    path: Sequence[Solution],
    X: np.ndarray | StreamedRows,
    targets: np.ndarray,
    tasks: Sequence[Task],
) -> Iterator[list[np.ndarray]]:
    """Probabilities of each task's scored rows, at every C."""
    labels = targets.shape[1] if targets.ndim == 2 else 0
    for place, task in enumerate(tasks):
        problems = slice(place * labels, (place + 1) * labels) if labels else place
        blocks = [X[task.scored]] if isinstance(X, np.ndarray) else X.blocks(task.scored)
        parts: list[list[np.ndarray]] = [[] for _ in path]
        vectors = []
        for solution in path:
            coef, intercept = solution.coef[problems], solution.intercept[problems]
            if labels:
                coef, intercept = coef[:, 0], intercept[:, 0]
            vectors.append((coef.cpu().numpy().T, intercept.cpu().numpy()))
        for block in blocks:
            for part, (weight, level) in zip(parts, vectors, strict=True):
                part.append(block @ weight.astype(block.dtype) + level)
        yield [
            probabilities(both_columns(np.concatenate(part)), bool(labels), targets[task.train])
            for part in parts
        ]
