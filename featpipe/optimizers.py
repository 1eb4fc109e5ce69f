"""SGD, Adam and AdamW over stacked parameters, each member with its own settings.

torch.optim has one learning rate for a tensor; here it is a vector along the tensor's first axis.
The rules and the meaning of the parameters are torch.optim's.

References
----------
Kingma & Ba, "Adam", ICLR 2015. Loshchilov & Hutter, "Decoupled weight decay regularization", ICLR
2019. Loshchilov & Hutter, "SGDR", ICLR 2017 (cosine). Smith & Topin, "Super-convergence", 2018
(one-cycle).
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

OPTIMIZERS = ("adam", "adamw", "sgd")
SCHEDULES = ("constant", "cosine", "one-cycle")
BETA1, BETA2, EPS = 0.9, 0.999, 1e-8
WARM_UP, FROM, TO = 0.3, 1 / 25, 1 / 250_000  # one-cycle: share of the steps, and of the rate
CACHED = 1 << 18  # values of a parameter that are updated together: what a core's cache holds


class StackedOptimizer:
    """Updates parameters in place.

    Parameters
    ----------
    kind : {"adam", "adamw", "sgd"}
    parameters : list of Tensor, shape (members, ..., ...)
    lr, weight_decay, momentum : float Tensor, shape (members,)
        `momentum` is SGD's.

    Attributes
    ----------
    steps : int
        That were taken.
    """

    def __init__(
        self,
        kind: str,
        parameters: Sequence[Tensor],
        lr: Tensor,
        weight_decay: Tensor,
        momentum: Tensor,
    ) -> None:
        self._kind = kind
        self._lr, self._weight_decay, self._momentum = lr, weight_decay, momentum
        self._first = [torch.zeros_like(parameter) for parameter in parameters]
        self._second = [torch.zeros_like(parameter) for parameter in parameters if kind != "sgd"]
        self.steps = 0

    def take(self, places: Tensor) -> None:
        """Go on with some of the members only."""
        self._lr, self._weight_decay = self._lr[places], self._weight_decay[places]
        self._momentum = self._momentum[places]
        self._first = [part[places] for part in self._first]
        self._second = [part[places] for part in self._second]

    def state(self) -> list[Tensor]:
        """What it remembers of earlier steps, but for their number."""
        return [*self._first, *self._second]

    @torch.no_grad()
    def step(
        self, parameters: Sequence[Tensor], gradients: Sequence[Tensor], factor: float = 1.0
    ) -> None:
        """One step; `factor` is the schedule's part of every learning rate.

        `gradients` are changed, too.
        """
        self.steps += 1
        for number, (parameter, gradient) in enumerate(zip(parameters, gradients, strict=True)):
            members = max(1, CACHED // max(1, parameter[0].numel()))
            for start in range(0, len(parameter), members):
                part = slice(start, start + members)
                self._update(number, part, parameter[part], gradient[part], factor)

    def _update(
        self, number: int, part: slice, parameter: Tensor, gradient: Tensor, factor: float
    ) -> None:
        shape = (-1, *[1] * (parameter.ndim - 1))
        lr = factor * self._lr[part].view(shape)
        decay = self._weight_decay[part].view(shape)
        first = self._first[number][part]
        if self._kind == "adamw":
            parameter *= 1 - lr * decay
        else:
            gradient += decay * parameter
        if self._kind == "sgd":
            first.mul_(self._momentum[part].view(shape)).add_(gradient)
            parameter -= lr * first
            return
        second = self._second[number][part]
        first.lerp_(gradient, 1 - BETA1)
        second.mul_(BETA2).addcmul_(gradient, gradient, value=1 - BETA2)
        root = torch.sqrt(second, out=gradient)
        root.mul_(1 / math.sqrt(1 - BETA2**self.steps)).add_(EPS)
        parameter -= torch.div(first, root, out=root).mul_(lr / (1 - BETA1**self.steps))


def schedule_factor(schedule: str, step: int, steps: int) -> float:
    """By what the learning rate is multiplied in one of `steps` steps, counted from 0."""
    if schedule == "constant":
        return 1.0
    done = step / max(1, steps)
    if schedule == "cosine":
        return _cosine(1.0, 0.0, done)
    if done < WARM_UP:
        return _cosine(FROM, 1.0, done / WARM_UP)
    return _cosine(1.0, TO, (done - WARM_UP) / (1 - WARM_UP))


def _cosine(begin: float, end: float, done: float) -> float:
    return end + (begin - end) * (1 + math.cos(math.pi * done)) / 2
