"""Many perceptrons of one shape, trained by mini-batches as one stacked computation.

What differs between them (learning rate, weight decay, dropout, seed, rows) is a vector or an index
along the stack. Perceptrons of the same seed and rows share every batch, so that the features are
read once for all of them. What is drawn depends on a perceptron's own seed and rows alone: it ends
as it would have ended by itself, up to rounding.

References
----------
Zhang et al., "mixup: Beyond empirical risk minimization", ICLR 2018. Szegedy et al., "Rethinking
the Inception architecture", CVPR 2016 (label smoothing).
"""

import copy
import hashlib
import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, log_softmax

from featpipe import checkpoint
from featpipe.descent import WORTH_KEEPING
from featpipe.errors import HeadError
from featpipe.optimizers import StackedOptimizer, schedule_factor
from featpipe.perceptrons import Inputs, Layers, Mixing, Perceptrons, logits_of
from featpipe.problems import Draws, Problem, Shape, Trained, shared
from featpipe.streamed import Features, batch_sizes

BLOCK_VALUES = 1 << 23  # features or logits that are made at once
STACK_BYTES = 1 << 30
QUICK_BYTES = 1 << 24  # of one tensor: the system hands out larger ones page by page, each anew
COPIES = 6  # weights, gradient, Adam's two moments, the best so far, and what is in between


def block_rows(layers: Layers) -> int:
    """How many rows are predicted at once by such perceptrons."""
    widest = max(weight.shape[2] for weight, _ in layers)
    made = sum(weight.shape[0] * weight.shape[1] for weight, _ in layers)
    return int(max(1, BLOCK_VALUES // max(widest, made)))


def train_stacked(
    X: Features,
    targets: Tensor,
    shape: Shape,
    problems: Sequence[Problem],
    most_bytes: int = STACK_BYTES,
) -> list[Trained]:
    """Train perceptrons of one shape, as many at once as `most_bytes` hold.

    Parameters
    ----------
    X : Features, shape (n, features)
    targets : Tensor on the device of `X`
        int64 of shape (n,); for multi-label, float32 of shape (n, outputs) of 0 and 1.
    shape : Shape
    problems : sequence of Problem
        Row numbers are rows of `X`.
    most_bytes : int
        For weights, gradients and what the optimizer remembers.

    Returns
    -------
    list of Trained
        In the order of `problems`.

    Raises
    ------
    HeadError
        If batch norm or mixup need a batch that memory does not hold.
    """
    for problem in problems:
        rows = max(batch_sizes(len(problem.train), shape.batch_size), default=0)
        if (shape.batch_norm or problem.mixup) and rows > X.most_rows:
            raise HeadError(
                f"batch_norm and mixup need the {rows} rows of a batch at once, and memory for "
                f"features holds {X.most_rows}: lower batch_size, raise --memory, or turn them off."
            )
    at_once = most_bytes // (COPIES * 4 * shape.n_parameters)
    if X.device.type == "cpu":
        at_once = min(at_once, QUICK_BYTES // (4 * shape.n_parameters))
    at_once = max(1, at_once)
    found: list[Trained] = [Trained() for _ in problems]
    keys = [shared(problem) for problem in problems]
    # A stack takes its steps together, so all in it have as many in an epoch.
    together: dict[object, list[int]] = {}
    for number, problem in enumerate(problems):
        steps = len(batch_sizes(len(problem.train), shape.batch_size))
        together.setdefault(steps if X.shares_reading else keys[number], []).append(number)
    for numbers in together.values():
        numbers.sort(key=keys.__getitem__)  # those that share batches stand together
        for start in range(0, len(numbers), at_once):
            some = numbers[start : start + at_once]
            stack = _Stack(X, targets, shape, [problems[number] for number in some])
            for number, trained in zip(some, stack.train(), strict=True):
                found[number] = trained
    return found


class _Stack:
    """One training run of problems that stand in the order of what they share."""

    def __init__(
        self, X: Features, targets: Tensor, shape: Shape, problems: Sequence[Problem]
    ) -> None:
        self.X, self.targets, self.shape = X, targets, shape
        self.problems = problems
        self.found = [Trained() for _ in problems]
        self.network = Perceptrons(
            shape.widths, [problem.seed for problem in problems], shape.batch_norm, X.device
        )
        self.best = copy.deepcopy(self.network)
        self.epoch, self.lowest = 0, np.full(len(problems), np.inf)
        self.draws: dict[tuple[int, int, bytes, bytes], Draws] = {}
        for problem in problems:
            if shared(problem) not in self.draws:
                self.draws[shared(problem)] = Draws(problem, shape.batch_size, X)
        self._arrange(np.arange(len(problems)))
        self.optimizer = StackedOptimizer(
            shape.optimizer, self.network.parameters(),
            *(self._vector(name) for name in ("lr", "weight_decay", "momentum")),
        )  # fmt: skip

    def _arrange(self, active: np.ndarray) -> None:
        """Say which problem stands where, and what differs along the stack, as tensors."""
        self.active = active
        some = [self.problems[number] for number in active]
        keys = [shared(problem) for problem in some]
        starts = [i for i, key in enumerate(keys) if not i or key != keys[i - 1]]
        self.runs = list(pairwise([*starts, len(keys)])) if keys else []
        self.groups = [self.draws[keys[first]] for first in starts]
        lengths = torch.tensor([last - first for first, last in self.runs], dtype=torch.int64)
        self.lengths = lengths.to(self.X.device)
        self.smoothing = self._vector("label_smoothing")[:, None]
        self.clip = self._vector("clip") if any(p.clip < math.inf for p in some) else None
        dropping = any(problem.dropout for problem in some) and len(self.shape.widths) > 2
        self.dropout = self._vector("dropout")[:, None, None] if dropping else None
        self.mixup = [problem.mixup for problem in some]
        self.validated = np.array([len(problem.val) > 0 for problem in some], bool)
        self.counts = torch.tensor([len(problem.train) for problem in some])
        self.class_weight: Tensor | None = None
        if any(problem.class_weight is not None for problem in some):
            ones = np.ones(self.shape.widths[-1])
            given = [ones if p.class_weight is None else p.class_weight for p in some]
            self.class_weight = self._tensor(np.stack(given))

    def _vector(self, name: str) -> Tensor:
        return self._tensor([getattr(self.problems[number], name) for number in self.active])

    def _tensor(self, values: object) -> Tensor:
        return torch.tensor(values, dtype=torch.float32, device=self.X.device)

    def _spread(self, of_groups: Tensor) -> Tensor:
        """What each group has, for each of its problems."""
        return of_groups.repeat_interleave(self.lengths, dim=0)

    def train(self) -> list[Trained]:
        """Run all epochs, each problem as long as it needs them."""
        self.started, keeper = checkpoint.clock(), checkpoint.present()
        key = self._key() if keeper else ""
        if keeper and (state := keeper.load(key)):
            self._resume(state)
        while self.epoch < self.shape.epochs and len(self.active):
            self.epoch += 1
            sums = torch.zeros(2, len(self.active), device=self.X.device)  # loss and hits
            every = [group.epoch() for group in self.groups]
            for batches in zip(*every, strict=True):
                steps = len(every[0]) * self.shape.epochs
                done = self.optimizer.steps
                sums += self._step(batches, schedule_factor(self.shape.schedule, done, steps))
            self._end_epoch(self.epoch, sums.cpu())
            if keeper and keeper.due:
                keeper.save(key, self._state())
        if keeper and checkpoint.clock() - self.started > WORTH_KEEPING:
            keeper.save(key, self._state())
        self._remember(~self.validated)
        layers = [(weight.cpu(), bias.cpu()) for weight, bias in self.best.layers()]
        for number, trained in enumerate(self.found):
            trained.layers = [(weight[[number]], bias[[number]]) for weight, bias in layers]
        return self.found

    # ---- what a checkpoint holds --------------------------------------------------------------

    def _state(self) -> dict[str, Any]:
        return {
            "seconds": checkpoint.clock() - self.started,
            "epoch": self.epoch, "steps": self.optimizer.steps,
            "active": torch.from_numpy(self.active), "lowest": torch.from_numpy(self.lowest),
            "tensors": self._tensors(), "draws": [draws.state() for draws in self.draws.values()],
            "found": [(one.curves, one.kept, one.diverged) for one in self.found],
        }  # fmt: skip

    def _tensors(self) -> list[Tensor]:
        return [*self.network.state(), *self.best.state(), *self.optimizer.state()]

    def _resume(self, state: dict[str, Any]) -> None:
        self._go_on_with(state["active"].numpy())
        for own, kept in zip(self._tensors(), state["tensors"], strict=True):
            own.copy_(kept)
        self.epoch, self.optimizer.steps = state["epoch"], state["steps"]
        self.lowest = state["lowest"].numpy()
        for draws, where in zip(self.draws.values(), state["draws"], strict=True):
            draws.resume(where)
        for one, (curves, kept_epoch, diverged) in zip(self.found, state["found"], strict=True):
            one.curves, one.kept, one.diverged = curves, kept_epoch, diverged

    def _key(self) -> str:
        """Equal for stacks that would do the same, given the same features."""
        digest = hashlib.blake2b(repr((self.shape, self.X.shape, str(self.X.device))).encode())
        digest.update(self.targets.cpu().numpy().tobytes())
        for problem in self.problems:
            for name, value in vars(problem).items():
                digest.update(name.encode())
                array = isinstance(value, np.ndarray)
                digest.update(value.tobytes() if array else repr(value).encode())
        return digest.hexdigest()

    # ---- an epoch -----------------------------------------------------------------------------

    def _step(self, batches: Sequence[Tensor], factor: float) -> Tensor:
        """One step of every perceptron; the batch's loss and hits, times its rows."""
        counts = [len(batch) for batch in batches]
        size = max(counts) if self.shape.batch_norm or any(self.mixup) else self.X.at_once
        count = self._spread(self._tensor(counts))
        sums = torch.zeros(2, len(self.active), device=self.X.device)
        gradients: list[Tensor] = []
        for start in range(0, max(counts), size):
            some = [batch[start : start + size] for batch in batches]
            sums += self._add_gradients(some, count, gradients)
        if self.clip is not None:
            squares = [part.square().flatten(1).sum(1) for part in gradients]
            norm = torch.stack(squares).sum(0).sqrt()
            shrink = (self.clip / norm.clamp(min=1e-12)).clamp(max=1)
            for part in gradients:
                part *= shrink[:, None, None]
        self.optimizer.step(self.network.parameters(), gradients, factor)
        return sums

    def _add_gradients(
        self, batches: Sequence[Tensor], count: Tensor, gradients: list[Tensor]
    ) -> Tensor:
        """Add the gradients of the rows' part of the mean loss; their loss and hits."""
        counts = torch.tensor([len(batch) for batch in batches])
        most, real = int(counts.max()), None
        if int(counts.min()) < most:
            real = self._spread((torch.arange(most) < counts[:, None]).float().to(self.X.device))
        target = self._filled([self.targets.index_select(0, batch) for batch in batches], most)
        inputs = Inputs(
            [self.X.take(batch, slot) for slot, batch in enumerate(batches)], self.runs, most, real,
            self._noise(counts.tolist(), most), self.dropout, self._mixing(counts.tolist(), most),
        )  # fmt: skip
        rest = self.network.parameters()[1:]
        values = self.network.first(inputs)
        for leaf in (values, *rest):
            leaf.requires_grad_(True)
        with torch.enable_grad():
            logits = self.network.rest(values, inputs)
            loss = self._loss(logits, target, inputs.mixing)
            loss = (loss if real is None else loss * real).sum(1)
            of_values, *of_rest = torch.autograd.grad((loss / count).sum(), [values, *rest])
        for leaf in rest:
            leaf.requires_grad_(False)
        of_first = self.network.first_gradient(inputs, of_values, more=bool(gradients))
        if not gradients:
            gradients += [of_first, *of_rest]
        else:
            for total, part in zip(gradients[1:], of_rest, strict=True):
                total += part
        hits = self._hits(logits.detach(), target)
        return torch.stack([loss.detach(), (hits if real is None else hits * real).sum(1)])

    def _filled(self, parts: Sequence[Tensor], most: int) -> Tensor:
        """What the groups have for their batches, shape (stack, most, ...), zeros at the end."""
        if len(parts) == 1:
            return parts[0][None].expand(len(self.active), *parts[0].shape)
        whole = parts[0].new_zeros(len(parts), most, *parts[0].shape[1:])
        for place, part in enumerate(parts):
            whole[place, : len(part)] = part
        return self._spread(whole)

    def _noise(self, counts: Sequence[int], most: int) -> Iterator[Tensor]:
        for width in self.shape.widths[1:-1]:
            drawn = [g.noise(count, width) for g, count in zip(self.groups, counts, strict=True)]
            yield self._filled(drawn, most)

    def _mixing(self, counts: Sequence[int], most: int) -> Mixing | None:
        if not any(self.mixup):
            return None
        partners = [group.partners(n) for group, n in zip(self.groups, counts, strict=True)]
        shares: list[float] = []
        for group, (first, last) in zip(self.groups, self.runs, strict=True):
            alphas = self.mixup[first:last]
            drawn = {alpha: group.share(alpha) for alpha in dict.fromkeys(alphas)}
            shares += [drawn[alpha] for alpha in alphas]
        return Mixing(self._filled(partners, most), self._tensor(shares)[:, None])

    def _loss(self, logits: Tensor, target: Tensor, mixing: Mixing | None) -> Tensor:
        """Of each row, shape (stack, rows)."""
        if self.shape.multilabel:
            if mixing is not None:
                target = mixing.of_values(target)
            smooth = self.smoothing[:, :, None]
            wanted = target * (1 - smooth) + smooth / 2
            losses = binary_cross_entropy_with_logits(logits, wanted, reduction="none")
            if self.class_weight is not None:
                losses = losses * (1 + target * (self.class_weight[:, None] - 1))
            return losses.mean(2)
        logs = log_softmax(logits, 2)
        loss = self._of_class(logs, target)
        if mixing is None:
            return loss
        other = self._of_class(logs, target.gather(1, mixing.partners))
        return mixing.share * loss + (1 - mixing.share) * other

    def _of_class(self, logs: Tensor, target: Tensor) -> Tensor:
        loss = -logs.gather(2, target[:, :, None])[:, :, 0]
        loss = (1 - self.smoothing) * loss - self.smoothing * logs.mean(2)
        if self.class_weight is not None:
            loss = loss * self.class_weight.gather(1, target)
        return loss

    def _hits(self, logits: Tensor, target: Tensor) -> Tensor:
        if self.shape.multilabel:
            return ((logits > 0) == (target > 0.5)).float().mean(2)
        return (logits.argmax(2) == target).float()

    # ---- after an epoch ----------------------------------------------------------------------

    def _end_epoch(self, epoch: int, sums: Tensor) -> None:
        """Write the curves, remember the best weights, let those go that have finished."""
        columns = {"train_loss": sums[0] / self.counts, "train_accuracy": sums[1] / self.counts}
        if self.validated.any():
            columns |= self._validate()
        loss = columns["train_loss"].double().numpy()
        chosen = columns.get("val_loss", columns["train_loss"]).double().numpy()
        over = ~np.isfinite(loss) | (self.validated & ~np.isfinite(chosen))
        better = self.validated & ~over & (chosen < self.lowest[self.active])
        for place, number in enumerate(self.active):
            trained = self.found[number]
            if over[place]:
                trained.diverged = epoch
                continue
            shown = {name: float(values[place]) for name, values in columns.items()}
            if not self.validated[place]:
                shown = {name: value for name, value in shown.items() if "val" not in name}
            trained.curves.append({"epoch": epoch, **shown})
            if better[place]:
                self.lowest[number] = chosen[place]
            if better[place] or not self.validated[place]:
                trained.kept = epoch
            waited = epoch - trained.kept
            over[place] = bool(self.shape.patience) and waited >= self.shape.patience
        self._remember(better)
        if over.any():
            self._go_on_with(np.flatnonzero(~over))

    def _go_on_with(self, some: np.ndarray) -> None:
        """Let go of all but some places."""
        places = self._places(some)
        self.network.take(places)
        self.optimizer.take(places)
        self._arrange(self.active[some])

    def _remember(self, which: np.ndarray) -> None:
        """The present weights of some places are the best so far."""
        if which.any():
            places, numbers = np.flatnonzero(which), self.active[which]
            self.best.put(self._places(numbers), self.network, self._places(places))

    def _places(self, numbers: np.ndarray) -> Tensor:
        return torch.from_numpy(numbers).to(self.X.device)

    @torch.no_grad()
    def _validate(self) -> dict[str, Tensor]:
        """Loss and accuracy on the rows that select the epoch; NaN where there are none."""
        found = torch.full((2, len(self.active)), torch.nan, dtype=torch.float64)
        layers = self.network.layers()
        for (first, last), group in zip(self.runs, self.groups, strict=True):
            if not len(group.val):
                continue
            own = [(weight[first:last], bias[first:last]) for weight, bias in layers]
            sums = torch.zeros(2, last - first, dtype=torch.float64)
            for rows in torch.split(group.val, block_rows(own)):
                logits = logits_of(own, self.X.take(rows))
                target = self.targets.index_select(0, rows)
                target = target[None].expand(last - first, *target.shape)
                if self.shape.multilabel:
                    losses = binary_cross_entropy_with_logits(logits, target, reduction="none")
                    losses = losses.mean(2)
                else:
                    losses = -log_softmax(logits, 2).gather(2, target[:, :, None])[:, :, 0]
                # On the host: not every device has float64.
                sums += torch.stack([losses, self._hits(logits, target)]).cpu().double().sum(2)
            found[:, first:last] = sums / len(group.val)
        return {"val_loss": found[0], "val_accuracy": found[1]}
