"""Multinomial logistic regression with an L2 penalty: many problems over the same rows at once.

The objective is scikit-learn's: ``C * sum(weight * loss) + |W|^2 / 2``, the intercept free, one
vector for two classes. It is minimised by L-BFGS in coordinates that the features' covariance has
whitened: its eigendecomposition is computed once and serves every C, every fold and every class.
Where there are fewer rows than features the problem is first written in the rows' own space.

References
----------
Nocedal, "Updating quasi-Newton matrices with limited storage", Mathematics of Computation 1980.
Böhning, "Multinomial logistic regression algorithm", AISM 1992 (the Hessian that the covariance
stands for).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

HISTORY = 12  # pairs of steps and gradients that L-BFGS remembers
SAMPLED = 4  # rows for each feature, of which the covariance is computed
MOST_DIRECTIONS = 4096  # of which the covariance is known; the others are left as they are
BLOCK_VALUES = 1 << 23  # logits at once
ARMIJO = 1e-4
SHORTEST = 2.0**-20  # step

Metric = Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Rows:
    """Features, in blocks of rows: a tensor, or whatever yields one block after the other.

    Attributes
    ----------
    shape : pair of int
    blocks : callable
        ``blocks(size)`` yields tensors of at most `size` rows, in order, on the device.
    device : str
    """

    shape: tuple[int, int]
    blocks: Callable[[int], Iterator[Tensor]]
    device: str

    @classmethod
    def of(cls, X: Tensor) -> "Rows":
        """The rows of a tensor that is on its device."""
        return cls((len(X), X.shape[1]), lambda size: iter(torch.split(X, size)), str(X.device))


@dataclass(frozen=True, eq=False)
class Solution:
    """The minima of several problems at one C.

    Attributes
    ----------
    C : float
    coef : float64 Tensor, shape (problems, classes or 1, features)
    intercept : float64 Tensor, shape (problems, classes or 1)
    objective : float64 Tensor, shape (problems,)
    gap : float64 Tensor, shape (problems,)
        By how much of itself each objective may lie above its minimum, as estimated.
    iterations : int64 Tensor, shape (problems,)
    converged : bool Tensor, shape (problems,)
        Whether the gap is as small as was asked for.
    """

    C: float
    coef: Tensor
    intercept: Tensor
    objective: Tensor
    gap: Tensor
    iterations: Tensor
    converged: Tensor


def fit_path(
    rows: Rows,
    codes: Tensor,
    classes: int,
    Cs: Sequence[float],
    weights: Tensor | None = None,
    fit_intercept: bool = True,
    tol: float = 1e-8,
    max_iter: int = 500,
) -> list[Solution]:
    """Minimise one objective for each C and each row of weights.

    Parameters
    ----------
    rows : Rows
        Of float32 or float64, finite.
    codes : int64 Tensor, shape (n,)
    classes : int
        At least 2.
    Cs : sequence of float
        Solved from the smallest up, each from where the one before ended.
    weights : Tensor, shape (problems, n)
        Of each row in each problem; zeros leave rows out, such as those of a fold. A class
        without any weight in a problem gets no probability there.
    fit_intercept : bool
    tol : float
        Share of the objective by which it may lie above its minimum.
    max_iter : int
        For each C.

    Returns
    -------
    list of Solution
        In the order of `Cs`.
    """
    if weights is None:
        weights = torch.ones(1, len(codes), device=codes.device)
    back = None
    if rows.shape[0] < rows.shape[1] and rows.shape[0] <= MOST_DIRECTIONS:
        rows, back = _in_row_space(rows, fit_intercept)
    problems = _Problems(rows, codes, classes, weights.double(), fit_intercept)
    found: dict[float, Solution] = {}
    W = problems.nothing()
    for C in sorted(set(Cs)):
        W, solution = problems.minimise(W, C, tol, max_iter)
        found[C] = solution if back is None else back(solution)
    return [found[C] for C in Cs]


class _Problems:
    """Objectives that differ in their rows' weights."""

    def __init__(
        self, rows: Rows, codes: Tensor, classes: int, weights: Tensor, fit_intercept: bool
    ) -> None:
        self.rows, self.codes, self.weights = rows, codes, weights
        self.outputs, self.fit_intercept = (1 if classes == 2 else classes), fit_intercept
        self.dtype: torch.dtype | None = None  # the rows' own
        device = codes.device
        totals = torch.zeros(len(weights), classes, dtype=torch.float64, device=device)
        self.totals = totals.index_add_(1, codes, weights)
        self.absent = self.totals == 0
        self.mean = torch.zeros(rows.shape[1], dtype=torch.float64, device=device)
        self.covariance = _Covariance(rows, weights.mean(0), fit_intercept)
        if fit_intercept:
            self.mean = self.covariance.mean

    def nothing(self) -> Tensor:
        """Where every path begins: all classes as likely as they are frequent.

        Returns
        -------
        float64 Tensor, shape (problems, outputs, features + 1)
            The last column is the intercept at the rows' mean.
        """
        shape = (len(self.weights), self.outputs, self.rows.shape[1] + 1)
        W = torch.zeros(shape, dtype=torch.float64, device=self.codes.device)
        if self.fit_intercept:
            logs = self.totals.clamp(min=1e-300).log()
            if self.outputs == 1:
                W[:, 0, -1] = logs[:, 1] - logs[:, 0]
            else:
                logs = logs.masked_fill(self.absent, 0.0)
                present = (~self.absent).sum(1, keepdim=True)
                W[:, :, -1] = (logs - logs.sum(1, keepdim=True) / present) * ~self.absent
        return W

    def minimise(self, W: Tensor, C: float, tol: float, max_iter: int) -> tuple[Tensor, Solution]:
        """From `W` on, for one C."""
        which = torch.arange(len(W), device=W.device)
        iterations = torch.zeros_like(which)
        value, gradient, spread = self.evaluate(W, C, which)
        inverse = self.covariance.metric(C, spread, self.totals.sum(1), self.fit_intercept)

        def metric(change: Tensor) -> Tensor:
            return self._balanced(inverse(change))

        memory = _Memory(metric)
        gap = torch.full_like(value, torch.inf)
        active = torch.ones_like(which, dtype=torch.bool)
        stuck = torch.zeros_like(active)
        for _ in range(max_iter):
            direction = -memory.times(gradient)
            slope = (gradient * direction).sum((1, 2))
            gap = torch.where(active, -slope / 2 / value.abs().clamp(min=1e-300), gap)
            active = active & (gap > tol) & ~stuck
            if not active.any():
                if not stuck.any() or not self._look_closer():
                    break
                # float32 has no more digits to give: go on in float64.
                value, gradient, _ = self.evaluate(W, C, which)
                memory, active, stuck = _Memory(metric), stuck, torch.zeros_like(stuck)
                continue
            iterations += active
            new, new_value, new_gradient, moved = self._search(
                W, C, value, direction, slope, active
            )
            stuck = stuck | (active & ~moved)
            memory.add(new - W, new_gradient - gradient, moved)
            W, value, gradient = new, new_value, torch.where(
                moved[:, None, None], new_gradient, gradient
            )  # fmt: skip
        self.dtype = None
        coef = W[:, :, :-1].clone()
        intercept = W[:, :, -1] - coef @ self.mean
        return W, Solution(C, coef, intercept, value, gap, iterations, gap <= tol)

    def _balanced(self, change: Tensor) -> Tensor:
        """Without what all classes have in common, which changes no probability."""
        if self.outputs == 1:
            return change
        present = (~self.absent)[:, :, None]
        level = (change * present).sum(1, keepdim=True) / present.sum(1, keepdim=True)
        return (change - level) * present

    def _look_closer(self) -> bool:
        if self.dtype == torch.float64 or next(self.rows.blocks(1)).dtype == torch.float64:
            return False
        self.dtype = torch.float64
        return True

    def _search(
        self, W: Tensor, C: float, value: Tensor, direction: Tensor, slope: Tensor, active: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Go along the direction, each problem as far as its objective falls enough."""
        step = active.double()
        new, new_value, new_gradient = W.clone(), value.clone(), torch.zeros_like(W)
        open_ = active.clone()
        while open_.any():
            which = open_.nonzero()[:, 0]
            tried = W[which] + step[which, None, None] * direction[which]
            found, gradient, _ = self.evaluate(tried, C, which)
            enough = found <= value[which] + ARMIJO * step[which] * slope[which]
            kept = which[enough]
            new[kept], new_value[kept] = tried[enough], found[enough]
            new_gradient[kept] = gradient[enough]
            open_[kept] = False
            # The parabola through what is known; a tenth to a half of the step.
            rise = (found - value[which] - step[which] * slope[which]).clamp(min=1e-300)
            shorter = -slope[which] * step[which] ** 2 / (2 * rise)
            shorter = torch.minimum(torch.maximum(shorter, step[which] / 10), step[which] / 2)
            step[which] = torch.where(enough, step[which], shorter)
            open_ &= step > SHORTEST
        moved = active & (new_value < value)
        return new, new_value, new_gradient, moved

    def evaluate(self, W: Tensor, C: float, which: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Objective, gradient, and mean p (1 - p) of each output, for some of the problems."""
        n, count = self.rows.shape[0], len(which)
        device, outputs = W.device, self.outputs
        coef, shift = W[:, :, :-1], W[:, :, -1] - W[:, :, :-1] @ self.mean
        loss = torch.zeros(count, dtype=torch.float64, device=device)
        sums = torch.zeros(count, outputs, dtype=torch.float64, device=device)
        spread = torch.zeros(count, outputs, dtype=torch.float64, device=device)
        slopes = torch.zeros(count * outputs, coef.shape[2], dtype=torch.float64, device=device)
        flat = coef.reshape(count * outputs, -1)
        size = max(1, min(n, BLOCK_VALUES // (count * outputs)))
        start = 0
        for given in self.rows.blocks(size):
            block = given if self.dtype is None else given.to(self.dtype)
            stop = start + len(block)
            logits = block @ flat.T.to(block.dtype)
            logits = logits.view(-1, count, outputs) + shift.to(block.dtype)
            weights = self.weights[which, start:stop].T.to(block.dtype)
            some, residual, each = self._losses(logits, self.codes[start:stop], which)
            loss += (some * weights).sum(0, dtype=torch.float64)
            spread += (each * weights[:, :, None]).sum(0, dtype=torch.float64)
            residual *= weights[:, :, None]
            sums += residual.sum(0, dtype=torch.float64)
            slopes += (residual.view(len(block), -1).T @ block).double()
            start = stop
        slopes = slopes.view(count, outputs, -1) - sums[:, :, None] * self.mean
        value = C * loss + coef.square().sum((1, 2)) / 2
        gradient = torch.cat([C * slopes + coef, C * sums[:, :, None]], dim=2)
        if not self.fit_intercept:
            gradient[:, :, -1] = 0
        total = self.totals[which].sum(1, keepdim=True)
        return value, gradient, spread / total

    def _losses(
        self, logits: Tensor, codes: Tensor, which: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Of each row and problem: the loss, p - y, and p (1 - p)."""
        if self.outputs == 1:
            y = codes[:, None, None].to(logits.dtype)
            loss = (torch.nn.functional.softplus(logits) - y * logits)[:, :, 0]
            p = logits.sigmoid()
            return loss, p - y, p * (1 - p)
        if self.absent.any():
            logits = logits.masked_fill(self.absent[which], -torch.inf)
        top = logits.logsumexp(2, keepdim=True)
        index = codes[:, None, None].expand(-1, logits.shape[1], 1)
        # Rows of an absent class count for nothing; a logit beyond all numbers, for too much.
        loss = (top - logits.gather(2, index))[:, :, 0].nan_to_num(nan=torch.inf, posinf=torch.inf)
        loss = torch.where(self.absent[which][:, codes].T, 0.0, loss)
        p = (logits - top).exp_()
        spread = p * (1 - p)
        return loss, p.scatter_add_(2, index, p.new_full((1,), -1).expand(index.shape)), spread


class _Covariance:
    """The features' covariance, or that of a sample of rows, as its eigendecomposition.

    Attributes
    ----------
    mean : float64 Tensor, shape (features,)
    """

    def __init__(self, rows: Rows, weights: Tensor, centred: bool) -> None:
        n, d = rows.shape
        share = weights / weights.sum()
        sampled = SAMPLED * d if d <= MOST_DIRECTIONS else MOST_DIRECTIONS
        every = max(1, n // sampled)
        mean = torch.zeros(d, dtype=torch.float64, device=weights.device)
        picked, shares, start = [], [], 0
        for block in rows.blocks(max(1, BLOCK_VALUES // d)):
            stop = start + len(block)
            mean += (share[start:stop].to(block.dtype) @ block).double()
            chosen = slice(-start % every, None, every)
            picked.append(block[chosen])
            shares.append(share[start:stop][chosen])
            start = stop
        self.mean = mean
        sample, share = torch.cat(picked), torch.cat(shares)
        share = share / share.sum().clamp(min=1e-300)
        scaled = sample - mean.to(sample.dtype) if centred else sample.clone()
        scaled *= share.sqrt().to(sample.dtype)[:, None]
        if len(scaled) >= d:
            values, vectors = torch.linalg.eigh(scaled.T @ scaled)
        else:
            values, left = torch.linalg.eigh(scaled @ scaled.T)
            values, left = values.flip(0), left.flip(1)
            kept = values > 1e-6 * values[0].clamp(min=1e-30)
            values = values[kept]
            vectors = scaled.T @ (left[:, kept] / values.sqrt())
        self._values, self._vectors = values.clamp(min=0).double(), vectors

    def metric(self, C: float, spread: Tensor, totals: Tensor, fit_intercept: bool) -> Metric:
        """About the inverse Hessian at that C, where p (1 - p) is `spread` on average."""
        # Where a class is rare or surely known there is still some curvature.
        curvature = C * totals[:, None] * spread.clamp(min=1e-3)
        shrink = 1 / (1 + curvature[:, :, None] * self._values) - 1
        complete = self._vectors.shape[1] == self._vectors.shape[0]

        def times(gradient: Tensor) -> Tensor:
            coef = gradient[:, :, :-1]
            inside = (coef.to(self._vectors.dtype) @ self._vectors).double()
            if complete:
                inside = inside * (shrink + 1)
                result = inside.to(self._vectors.dtype) @ self._vectors.T
                whole = result.double()
            else:
                change = (inside * shrink).to(self._vectors.dtype) @ self._vectors.T
                whole = coef + change.double()
            intercept = gradient[:, :, -1] / curvature if fit_intercept else gradient[:, :, -1]
            return torch.cat([whole, intercept[:, :, None]], dim=2)

        return times


class _Memory:
    """L-BFGS's idea of the inverse Hessian of each problem."""

    def __init__(self, metric: Metric) -> None:
        self._metric = metric
        self._pairs: list[tuple[Tensor, Tensor, Tensor]] = []
        self._scale: Tensor | None = None

    def add(self, step: Tensor, change: Tensor, moved: Tensor) -> None:
        """Remember a step and how the gradient changed, of the problems that moved."""
        along = _dot(step, change)
        good = moved & (along > 1e-12 * _dot(step, step).sqrt() * _dot(change, change).sqrt())
        rho = torch.where(good, 1 / along, 0.0)  # a pair that counts for nothing
        self._pairs.append((step, torch.where(good[:, None, None], change, 0.0), rho))
        del self._pairs[:-HISTORY]
        scale = along / _dot(change, self._metric(change))
        before = torch.ones_like(scale) if self._scale is None else self._scale
        self._scale = torch.where(good, scale, before)

    def times(self, gradient: Tensor) -> Tensor:
        """The inverse Hessian times each problem's gradient, by the two-loop recursion."""
        q, alphas = gradient, []
        for step, change, rho in reversed(self._pairs):
            alpha = rho * _dot(step, q)
            q = q - alpha[:, None, None] * change
            alphas.append(alpha)
        r = self._metric(q)
        if self._scale is not None:
            r = r * self._scale[:, None, None]
        for (step, change, rho), alpha in zip(self._pairs, reversed(alphas), strict=True):
            beta = rho * _dot(change, r)
            r = r + (alpha - beta)[:, None, None] * step
        return r


def _dot(one: Tensor, other: Tensor) -> Tensor:
    return (one * other).sum((1, 2))


def _in_row_space(rows: Rows, centred: bool) -> tuple[Rows, Callable[[Solution], Solution] | None]:
    """The same problems in as few coordinates as there are rows, and the way back.

    The rows are turned, and nothing is lost: no solution leaves the space they span.
    """
    X = torch.cat(list(rows.blocks(rows.shape[0]))).double()
    mean = X.mean(0) if centred else torch.zeros_like(X[0])
    X = X - mean
    values, left = torch.linalg.eigh(X @ X.T)
    kept = values > len(X) * torch.finfo(torch.float64).eps * values[-1].clamp(min=1e-300)
    if not kept.any():  # all rows are equal
        return rows, None
    lengths = values[kept].sqrt()
    left = left[:, kept]

    def back(found: Solution) -> Solution:
        coef = (found.coef / lengths) @ left.T @ X
        return Solution(
            found.C, coef, found.intercept - coef @ mean, found.objective, found.gap,
            found.iterations, found.converged,
        )  # fmt: skip

    return Rows.of(left * lengths), back
