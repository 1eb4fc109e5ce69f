"""The nearest training rows by cosine, each with a vote that falls off with distance."""

import time
from collections.abc import Iterator, Sequence
from numbers import Integral, Real
from typing import Self

import numpy as np
import torch
from sklearn.base import clone
from sklearn.utils._param_validation import Interval
from torch import Tensor
from torch.nn.functional import normalize

from featpipe.device import choose_double
from featpipe.head import Head as BaseHead
from featpipe.head import Validation
from featpipe.streamed import StreamedRows
from featpipe.targets import probabilities
from featpipe.tasks import Outcome, Task

BLOCK_VALUES = 1 << 24  # similarities at once: 64 MB
# Of each class beside those that are cast: a class without a neighbour is unlikely, not impossible.
# The nearest row's own vote is 1. By log-loss over folds of training photographs (two sets, two
# backbones, k of 5, 20 and 50) 0.02 to 0.1 are about as good, 0.2 is worse.
PRIOR_VOTE = 0.05


class Head(BaseHead):
    """k nearest neighbours by cosine; a vote is exp(cosine / temperature).

    Parameters
    ----------
    k : int
        Neighbours; all training rows, if those are fewer. An image of several views is one, as
        near as its nearest view.
    temperature : float
    standardize : bool
        Standardise the features by the training rows.
    device : str
        ``auto``, ``cpu``, ``cuda``, ...

    References
    ----------
    Wu et al., "Unsupervised feature learning via non-parametric instance discrimination", CVPR
    2018; the defaults are those of DINO's evaluation (Caron et al., ICCV 2021).
    """

    _parameter_constraints = {  # noqa: RUF012
        "k": [Interval(Integral, 1, None, closed="left")],
        "temperature": [Interval(Real, 0, None, closed="neither")],
        "standardize": ["boolean"],
    }

    def __init__(
        self,
        k: int = 20,
        temperature: float = 0.07,
        standardize: bool = False,
        device: str = "auto",
    ) -> None:
        self.k = k
        self.temperature = temperature
        self.standardize = standardize
        self.device = device

    def _fit(self, X: np.ndarray, codes: np.ndarray, validation: Validation | None) -> None:
        self._rows = normalize(torch.tensor(X)).numpy()
        self._codes = codes[:: self._views].astype(np.int64)

    def _decision(self, X: np.ndarray) -> np.ndarray:
        (votes,) = self.votes(X, [self.k])
        return _logits(votes)

    def votes(self, X: np.ndarray, ks: Sequence[int]) -> list[np.ndarray]:
        """Votes for each class, for several `k` at the cost of the largest.

        Parameters
        ----------
        X : float array, shape (n, d)
            Standardised, if the head does.
        ks : sequence of int

        Returns
        -------
        list of float64 array, shape (n, classes)
        """
        device = choose_double(self.device)
        rows = torch.as_tensor(self._rows, device=device)
        codes = torch.as_tensor(self._codes, device=device)
        most = min(max(ks), len(codes))
        found: list[list[Tensor]] = [[] for _ in ks]
        for block in torch.split(torch.tensor(X), max(1, BLOCK_VALUES // len(rows))):
            queries = normalize(block.to(device, rows.dtype))
            # Of an image's views the nearest counts: they are not neighbours of their own.
            near = (queries @ rows.T).view(len(block), len(codes), -1).amax(dim=2)
            nearest = near.topk(most, dim=1)
            # The nearest row's vote is 1: no temperature makes all votes vanish.
            distance = nearest.values.double() - nearest.values[:, :1].double()
            votes = (distance / self.temperature).exp()
            for k, parts in zip(ks, found, strict=True):
                counted = votes.new_zeros(len(block), len(self.classes_))
                counted.scatter_add_(1, codes[nearest.indices[:, :k]], votes[:, :k])
                parts.append(counted.cpu())
        return [torch.cat(parts).numpy() for parts in found]

    @classmethod
    def cross_fit(
        cls,
        heads: Sequence[Self],
        X: np.ndarray | StreamedRows,
        targets: np.ndarray,
        n_classes: int,
        tasks: Sequence[Task],
    ) -> Iterator[Outcome]:
        """Every k of a task in one pass; see `Head.cross_fit`."""
        assert isinstance(X, np.ndarray)
        unlike: dict[str, list[int]] = {}
        for number, head in enumerate(heads):
            unlike.setdefault(repr(head.temperature), []).append(number)
        for numbers in unlike.values():
            for place, task in enumerate(tasks):
                begun = time.perf_counter()
                one = clone(heads[numbers[0]]).set_params(standardize=False)
                one.fit_views(X[task.every], targets[task.train], None, task.views)
                every = one.votes(X[task.scored], [heads[number].k for number in numbers])
                share = (time.perf_counter() - begun) / len(numbers)
                for number, votes in zip(numbers, every, strict=True):
                    proba = np.zeros((len(task.scored), n_classes))
                    proba[:, one.classes_] = probabilities(_logits(votes))
                    yield Outcome(number, place, proba, share)

    def arrays(self) -> dict[str, np.ndarray]:
        """The training rows, of length 1, and the numbers of their images' classes."""
        return {"rows": self._rows, "codes": self._codes}

    def set_arrays(self, arrays: dict[str, np.ndarray]) -> None:
        """The inverse of `arrays`."""
        self._rows, self._codes = arrays["rows"], arrays["codes"]


def _logits(votes: np.ndarray) -> np.ndarray:
    logits: np.ndarray = np.log(votes + PRIOR_VOTE)
    return logits
