"""What a linear model's objective looks like before it is minimised, and what is learnt on the way.

Rows as the solver takes them, their covariance, which stands for the Hessian, the rows' own space
where features outnumber them, and the steps that L-BFGS remembers.

References
----------
Böhning, "Multinomial logistic regression algorithm", AISM 1992 (the Hessian that the covariance
stands for).
Nocedal, "Updating quasi-Newton matrices with limited storage", Mathematics of Computation 1980.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

HISTORY = 12  # pairs of steps and gradients that L-BFGS remembers
SAMPLED = 4  # rows for each feature, of which the covariance is computed
MOST_DIRECTIONS = 4096  # of which the covariance is known; the others are left as they are
BLOCK_VALUES = 1 << 23  # features at once
COLUMNS = 2048  # in float64 at once
STRIPS = 4  # of a symmetric product, of which only one half is computed

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
    fine : Rows or None
        The same with more digits, if `blocks` has fewer than are known.
    whole : bool
        Whether memory holds all of them at once.
    """

    shape: tuple[int, int]
    blocks: Callable[[int], Iterator[Tensor]]
    device: str
    fine: "Rows | None" = None
    whole: bool = True

    @classmethod
    def of(cls, X: Tensor, fine: "Rows | None" = None) -> "Rows":
        """The rows of a tensor that is on its device."""
        return cls(
            (len(X), X.shape[1]), lambda size: iter(torch.split(X, size)), str(X.device), fine
        )

    def finer(self) -> "Rows | None":
        """With float64's digits, or None if these rows have them."""
        if self.fine is not None:
            return self.fine
        if next(self.blocks(1)).dtype == torch.float64:
            return None
        return Rows(
            self.shape, lambda size: (block.double() for block in self.blocks(size)), self.device
        )


@dataclass(frozen=True, eq=False)
class Covariance:
    """The features' covariance, or that of a sample of rows, as its eigendecomposition.

    Attributes
    ----------
    mean : float64 Tensor, shape (features,)
    values : float64 Tensor, shape (directions,)
    vectors : Tensor, shape (features, directions), or None
        None: the features are the directions.
    """

    mean: Tensor
    values: Tensor
    vectors: Tensor | None

    @classmethod
    def of(cls, rows: Rows, share: Tensor, centred: bool) -> "Covariance":
        """Of rows that have these shares of the weight."""
        n, d = rows.shape
        sampled = SAMPLED * d if d <= MOST_DIRECTIONS else MOST_DIRECTIONS
        every = max(1, n // sampled)
        mean = torch.zeros(d, dtype=torch.float64, device=share.device)
        picked, shares, start = [], [], 0
        for block in rows.blocks(max(1, BLOCK_VALUES // d)):
            stop = start + len(block)
            mean += (share[start:stop].to(block.dtype) @ block).double()
            chosen = slice(-start % every, None, every)
            picked.append(block[chosen].clone())  # a view would keep the block
            shares.append(share[start:stop][chosen])
            start = stop
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
        return cls(mean, values.clamp(min=0).double(), vectors)

    def metric(self, C: float, spread: Tensor, totals: Tensor, fit_intercept: bool) -> Metric:
        """About the inverse Hessian at that C, where p (1 - p) is `spread` on average."""
        # Where a class is rare or surely known there is still some curvature.
        curvature = C * totals[:, None] * spread.clamp(min=1e-3)
        kept = 1 / (1 + curvature[:, :, None] * self.values)
        level = 1 / curvature if fit_intercept else torch.ones_like(curvature)
        vectors = self.vectors
        if vectors is None:
            shrink = torch.cat([kept, level[:, :, None]], dim=2)
            return lambda gradient: gradient * shrink
        complete = vectors.shape[1] == vectors.shape[0]

        def times(gradient: Tensor) -> Tensor:
            coef = gradient[:, :, :-1]
            inside = (coef.to(vectors.dtype) @ vectors).double()
            inside *= kept if complete else kept - 1
            whole = (inside.to(vectors.dtype) @ vectors.T).double()
            whole = whole if complete else coef + whole
            return torch.cat([whole, (gradient[:, :, -1] * level)[:, :, None]], dim=2)

        return times


class RowSpace:
    """Rows in as few coordinates as there are rows: turned, and nothing lost.

    No solution leaves the space that the rows span. The coordinates are those in which the
    covariance, all rows alike, is diagonal.

    Attributes
    ----------
    rows : Rows
        In these coordinates; of the features' own dtype, and `fine` in float64.
    covariance : Covariance
        Of `rows`, where all weigh the same.
    """

    def __init__(self, rows: Rows, centred: bool) -> None:
        n = rows.shape[0]
        parts = list(rows.blocks(n))
        self._X = parts[0] if len(parts) == 1 else torch.cat(parts)
        device = self._X.device
        self._mean = torch.zeros(rows.shape[1], dtype=torch.float64, device=device)
        if centred:
            self._mean = self._X.mean(0, dtype=torch.float64)
        gram = torch.zeros(n, n, dtype=torch.float64, device=device)
        strip = -(-n // STRIPS)
        for block in self._columns():
            for start in range(0, n, strip):  # eigh reads nothing above the diagonal
                gram[start:, start : start + strip].addmm_(
                    block[start:], block[start : start + strip].T
                )
        values, left = torch.linalg.eigh(gram)
        kept = values > n * torch.finfo(torch.float64).eps * values[-1]
        kept[-1] = True  # even of rows that are all alike
        lengths = values[kept].clamp(min=1e-300).sqrt()
        self._way_back = (left[:, kept] / lengths).T.contiguous()
        turned = left[:, kept] * lengths
        self.rows = Rows.of(turned)
        if self._X.dtype != torch.float64:
            self.rows = Rows.of(turned.to(self._X.dtype), self.rows)
        middle = torch.zeros_like(lengths)
        self.covariance = Covariance(middle, lengths.square() / n, None)

    @staticmethod
    def pays(rows: Rows) -> bool:
        """Whether there are fewer coordinates, and few enough."""
        return rows.whole and rows.shape[0] < rows.shape[1] and rows.shape[0] <= MOST_DIRECTIONS

    def _columns(self) -> Iterator[Tensor]:
        """Some columns after others, centred, in float64."""
        for X, mean in zip(
            torch.split(self._X, COLUMNS, dim=1), torch.split(self._mean, COLUMNS), strict=True
        ):
            yield X - mean  # of which one is of float64

    def back(self, coef: Tensor) -> tuple[Tensor, Tensor]:
        """Vectors of these coordinates as vectors of the features.

        Parameters
        ----------
        coef : float64 Tensor, shape (..., coordinates)

        Returns
        -------
        coef : float64 Tensor, shape (..., features)
        middle : float64 Tensor, shape (...,)
            Its product with the features' mean, which these coordinates are without.
        """
        flat = coef.flatten(0, -2) @ self._way_back
        whole = torch.cat([flat @ block for block in self._columns()], dim=1)
        return whole.view(*coef.shape[:-1], -1), (whole @ self._mean).view(coef.shape[:-1])


class Memory:
    """L-BFGS's idea of the inverse Hessian of each problem."""

    def __init__(self, metric: Metric) -> None:
        self._metric = metric
        self._pairs: list[tuple[Tensor, Tensor, Tensor]] = []
        self._scale: Tensor | None = None

    def add(self, step: Tensor, change: Tensor, moved: Tensor) -> None:
        """Remember a step and how the gradient changed, of the problems that moved."""
        along = dot(step, change)
        good = moved & (along > 1e-12 * dot(step, step).sqrt() * dot(change, change).sqrt())
        rho = torch.where(good, 1 / along, 0.0)  # a pair that counts for nothing
        self._pairs.append((step, torch.where(good[:, None, None], change, 0.0), rho))
        del self._pairs[:-HISTORY]
        scale = along / dot(change, self._metric(change))
        before = torch.ones_like(scale) if self._scale is None else self._scale
        self._scale = torch.where(good, scale, before)

    def times(self, gradient: Tensor) -> Tensor:
        """The inverse Hessian times each problem's gradient, by the two-loop recursion."""
        q, alphas = gradient, []
        for step, change, rho in reversed(self._pairs):
            alpha = rho * dot(step, q)
            q = q - alpha[:, None, None] * change
            alphas.append(alpha)
        r = self._metric(q)
        if self._scale is not None:
            r = r * self._scale[:, None, None]
        for (step, change, rho), alpha in zip(self._pairs, reversed(alphas), strict=True):
            beta = rho * dot(change, r)
            r = r + (alpha - beta)[:, None, None] * step
        return r


def losses(logits: Tensor, codes: Tensor, absent: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of each row and problem: the loss, p - y, and p (1 - p).

    Parameters
    ----------
    logits : Tensor, shape (n, problems, classes or 1)
    codes : int64 Tensor, shape (n, problems)
    absent : bool Tensor, shape (problems, classes)
        Classes that get no probability, of more than two.
    """
    # Margins of the other classes: a small loss is no difference of large numbers.
    index = codes[:, :, None]
    if logits.shape[2] == 1:
        sign = 1 - 2 * index.to(logits.dtype)
        margin = logits * sign
        p = margin.sigmoid()
        return torch.nn.functional.softplus(margin)[:, :, 0], p * sign, p * (1 - p)
    gone = torch.zeros_like(index, dtype=torch.bool)
    if absent.any():
        logits = logits.masked_fill(absent, -torch.inf)
        gone = absent.gather(1, codes.T).T[:, :, None]
    own = logits.gather(2, index).masked_fill_(gone, 0.0)
    logits = logits.scatter(2, index, -torch.inf)
    margin = logits.logsumexp(2, keepdim=True) - own
    loss = torch.nn.functional.softplus(margin)
    residual = (logits - (own + loss)).exp_().scatter_(2, index, -margin.sigmoid())
    # Rows of an absent class count for nothing; a logit beyond all numbers, for too much.
    loss = loss.nan_to_num(nan=torch.inf, posinf=torch.inf).masked_fill_(gone, 0.0)
    p = residual.abs()
    return loss[:, :, 0], residual, p * (1 - p)


def extrapolated(trail: list[tuple[float, Tensor]], C: float) -> Tensor:
    """Where a path through solutions at some C leads: the polynomial in log C through them."""
    ahead = torch.zeros_like(trail[-1][1])
    for here, W in trail:
        others = [other for other, _ in trail if other != here]
        ahead += W * math.prod(math.log(C / other) / math.log(here / other) for other in others)
    return ahead


def dot(one: Tensor, other: Tensor) -> Tensor:
    """The product of each problem's two, of shape (problems, outputs, coordinates)."""
    return (one * other).sum((1, 2))
