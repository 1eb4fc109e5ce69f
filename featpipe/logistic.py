"""Multinomial logistic regression with an L2 penalty: many problems over the same rows at once.

The objective is scikit-learn's: ``C * sum(weight * loss) + |W|^2 / 2``, the intercept free, one
vector for two classes. It is minimised by L-BFGS in coordinates that the features' covariance has
whitened: its eigendecomposition is computed once and serves every C, every fold and every class.
Where there are fewer rows than features the problem is first written in the rows' own space.

References
----------
Hager, Zhang, "A new conjugate gradient method with guaranteed descent and an efficient line
search", SIAM Journal on Optimization 2005 (when a step is long enough, in the face of rounding).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from featpipe.errors import HeadError
from featpipe.whitening import Covariance, Memory, Rows, RowSpace, dot, extrapolated, losses

__all__ = ["Rows", "Solution", "Solver"]

BLOCK_VALUES = 1 << 23  # logits at once
ARMIJO = 1e-4
SHORTEST = 2.0**-20  # step
TRAIL = 3  # solutions from which the next is guessed
ROUNDING = 1e-6  # of an objective


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


class Solver:
    """Logistic regressions over the same rows, which are prepared once.

    A sweep over folds and the refit on all rows after it share what is computed of the rows: their
    own space, where features outnumber them, and the covariance, while the rows' shares of the
    weight stay the same.

    Parameters
    ----------
    rows : Rows
        Of float32 or float64, finite.
    fit_intercept : bool
    """

    def __init__(self, rows: Rows, fit_intercept: bool = True) -> None:
        self._fit_intercept = fit_intercept
        self._known: tuple[Tensor, Covariance] | None = None
        self._space = RowSpace(rows, fit_intercept) if RowSpace.pays(rows) else None
        self._rows = rows if self._space is None else self._space.rows

    def fit(
        self, codes: Tensor, classes: int, Cs: Sequence[float], weights: Tensor | None = None,
        tol: float = 1e-8, max_iter: int = 500,
    ) -> list[Solution]:  # fmt: skip
        """Minimise one objective for each C and each problem.

        Parameters
        ----------
        codes : int64 Tensor, shape (n,) or (problems, n)
            The class of each row, in all problems or in each: one problem for each label of a
            multi-label set, say, has its own zeros and ones.
        classes : int
            At least 2.
        Cs : sequence of float
            Solved from the smallest up, each from where those before it lead.
        weights : Tensor, shape (problems, n), or None
            Of each row in each problem; zeros leave rows out, such as those of a fold. A class
            without any weight in a problem gets no probability there. None: all rows weigh one.
        tol : float
            Share of the objective by which it may lie above its minimum.
        max_iter : int
            For each C.

        Returns
        -------
        list of Solution
            In the order of `Cs`.

        Raises
        ------
        HeadError
            If codes and weights are of different problems or rows.
        """
        codes = codes if codes.ndim == 2 else codes[None]
        weights = (torch.ones_like(codes) if weights is None else weights).double()
        if codes.shape[1] != weights.shape[1] or len(codes) not in (1, len(weights)):
            raise HeadError(
                f"Codes are of shape {tuple(codes.shape)} and weights of {tuple(weights.shape)}. "
                "Give both one row for each problem, or one row of codes for all of them."
            )
        problems = _Problems(
            self._rows, codes, weights, classes, self._covariance(weights), self._fit_intercept
        )
        found: dict[float, Solution] = {}
        trail: list[tuple[float, Tensor]] = []
        for C in sorted(set(Cs)):
            W, found[C] = problems.minimise(problems.begin(trail, C), C, tol, max_iter)
            trail = [*trail[1 - TRAIL :], (C, W)]
        if self._space is not None:
            coefs, middles = self._space.back(torch.stack([one.coef for one in found.values()]))
            for one, coef, middle in zip(list(found.values()), coefs, middles, strict=True):
                found[one.C] = replace(one, coef=coef, intercept=one.intercept - middle)
        return [found[C] for C in Cs]

    def _covariance(self, weights: Tensor) -> Covariance:
        """Of the rows as they weigh on average in these problems."""
        share = weights.mean(0)
        share = share / share.sum()
        if self._space is not None and torch.allclose(share, share.mean(), rtol=1e-6, atol=0):
            return self._space.covariance
        if self._known is None or not torch.allclose(share, self._known[0], rtol=1e-6, atol=0):
            self._known = share, Covariance.of(self._rows, share, self._fit_intercept)
        return self._known[1]


class _Problems:
    """Objectives that differ in their rows' weights, and perhaps in their codes.

    What is looked for has the shape (problems, outputs, features + 1): beside the features it holds
    the intercept at their mean.
    """

    def __init__(
        self, rows: Rows, codes: Tensor, weights: Tensor, classes: int, covariance: Covariance,
        fit_intercept: bool,
    ) -> None:  # fmt: skip
        self.given = self.rows = rows
        self.codes, self.weights, self.covariance = codes.expand_as(weights), weights, covariance
        self.outputs, self.fit_intercept = (1 if classes == 2 else classes), fit_intercept
        totals = torch.zeros(len(weights), classes, dtype=torch.float64, device=codes.device)
        self.totals = totals.scatter_add_(1, self.codes, weights)
        self.absent = self.totals == 0
        self.mean = covariance.mean if fit_intercept else torch.zeros_like(covariance.mean)

    def begin(self, trail: list[tuple[float, Tensor]], C: float) -> Tensor:
        """Where to begin, after the last few C: where they ended, or where their path leads."""
        if len(trail) < 2:
            return trail[-1][1] if trail else self._nothing()
        last, ahead = trail[-1][1], extrapolated(trail, C)
        which = torch.arange(len(last), device=last.device).repeat(2)
        stay, go = self.evaluate(torch.cat([last, ahead]), C, which)[0].chunk(2)
        return torch.where((go < stay)[:, None, None], ahead, last)

    def _nothing(self) -> Tensor:
        """All classes as likely as they are frequent: the last column is the intercept."""
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

        memory = Memory(metric)
        gap = torch.full_like(value, torch.inf)
        active = torch.ones_like(which, dtype=torch.bool)
        stuck = torch.zeros_like(active)
        for _ in range(max_iter):
            direction = -memory.times(gradient)
            slope = dot(gradient, direction)
            gap = torch.where(active, -slope / 2 / value.abs().clamp(min=1e-300), gap)
            active = active & (gap > tol) & ~stuck
            if not active.any():
                finer = self.rows.finer() if stuck.any() else None
                if finer is None:
                    break
                # float32 has no more digits to give: go on in float64.
                self.rows = finer
                value, gradient, _ = self.evaluate(W, C, which)
                memory, active, stuck = Memory(metric), stuck, torch.zeros_like(stuck)
                continue
            iterations += active
            new, value, new_gradient = self._search(
                W, C, value, gradient, direction, slope, active, stuck
            )
            memory.add(new - W, new_gradient - gradient, active & ~stuck)
            W, gradient = new, new_gradient
        self.rows = self.given
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

    def _search(
        self, W: Tensor, C: float, value: Tensor, gradient: Tensor, direction: Tensor,
        slope: Tensor, active: Tensor, stuck: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        """Go along the direction, each problem as far as its objective falls enough, or stick."""
        step = active.double()
        new, new_value, new_gradient = W.clone(), value.clone(), gradient.clone()
        open_ = active
        while open_.any():
            which = open_.nonzero()[:, 0]
            tried = W[which] + step[which, None, None] * direction[which]
            found, steepness, _ = self.evaluate(tried, C, which)
            fall = step[which] * slope[which]
            enough = found <= value[which] + ARMIJO * fall
            # Where the fall drowns in rounding, the gradient still tells how far it is.
            ahead = dot(steepness, direction[which]) <= (2 * ARMIJO - 1) * slope[which]
            enough |= ahead & (found <= value[which] + ROUNDING * value[which].abs())
            kept = which[enough]
            new[kept], new_value[kept] = tried[enough], found[enough]
            new_gradient[kept] = steepness[enough]
            # The parabola through what is known; a tenth to a half of the step.
            rise = (found - value[which] - fall).clamp(min=1e-300)
            shorter = -fall * step[which] / (2 * rise)
            shorter = torch.minimum(torch.maximum(shorter, step[which] / 10), step[which] / 2)
            step[which] = torch.where(enough, step[which], shorter)
            stuck[which] = ~enough & (step[which] <= SHORTEST)
            open_ = open_.index_fill(0, kept, False) & ~stuck
        return new, new_value, new_gradient

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
        for block in self.rows.blocks(size):
            stop = start + len(block)
            logits = block @ flat.T.to(block.dtype)
            logits = logits.view(-1, count, outputs) + shift.to(block.dtype)
            weights = self.weights[which, start:stop].T.to(block.dtype)
            codes = self.codes[which, start:stop].T
            some, residual, each = losses(logits, codes, self.absent[which])
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
        return value, gradient, spread / self.totals[which].sum(1, keepdim=True)
