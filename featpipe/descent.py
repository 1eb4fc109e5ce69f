"""Training a network by mini-batches: the one loop behind tails and CNNs from scratch."""

import copy
import hashlib
import math
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from featpipe import checkpoint
from featpipe.errors import HeadError
from featpipe.optimizers import SCHEDULES, schedule_factor
from featpipe.streamed import batch_sizes

Epochs = list[dict[str, float]]
Augment = Callable[[Tensor], Tensor]

PRECISIONS = ("float32", "bfloat16")
AT_ONCE = 64  # rows predicted at once
WORTH_KEEPING = 2.0  # seconds of training that a finished state is saved from
STATE = "3"  # version of what a checkpoint holds


class RowSource(Protocol):
    """What mini-batches are taken from; `featpipe.streamed.Features` is one.

    Its ``repr`` should tell what makes its rows of the images, if that can vary: a training goes
    on with the checkpoint of one that had an equal one.
    """

    device: torch.device

    def take(self, rows: Tensor) -> Tensor:
        """Some rows, on the device."""

    def shuffled(self, rows: Tensor, generator: torch.Generator) -> Tensor:
        """The same row numbers in the order of an epoch."""


@dataclass(frozen=True)
class Descent:
    """How a network is trained.

    Attributes
    ----------
    epochs : int
        At most this many passes.
    batch_size : int
    lr : float
        Learning rate.
    optimizer : {"adam", "adamw", "sgd"}
    schedule : {"constant", "cosine", "one-cycle"}
        Of the learning rate, over all epochs.
    momentum : float
        Of SGD.
    weight_decay : float
    label_smoothing : float
        Share of the target that all classes have in common.
    clip : float or None
        Largest norm of the gradient.
    patience : int
        Stop after this many epochs without a lower validation loss; 0 never stops early.
    precision : {"float32", "bfloat16"}
        What forward and backward pass compute in; weights stay float32.
    seed : int
        Of the order of the rows, and of dropout.
    """

    epochs: int
    batch_size: int
    lr: float
    optimizer: str = "adam"
    schedule: str = "constant"
    momentum: float = 0.9
    weight_decay: float = 0.0
    label_smoothing: float = 0.0
    clip: float | None = None
    patience: int = 0
    precision: str = "float32"
    seed: int = 0

    def __post_init__(self) -> None:
        for name, known in (("schedule", SCHEDULES), ("precision", PRECISIONS)):
            if getattr(self, name) not in known:
                raise HeadError(
                    f"There is no {name} {getattr(self, name)!r}; use {', '.join(known)}."
                )

    def build_optimizer(self, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        """The optimizer for some parameters."""
        # One pass over the weights: a step of millions of them takes a third of the time.
        fused = all(parameter.device.type in ("cpu", "cuda") for parameter in parameters)
        decay = self.weight_decay
        if self.optimizer == "sgd":
            return torch.optim.SGD(
                parameters, self.lr, momentum=self.momentum, weight_decay=decay, fused=fused
            )
        if self.optimizer == "adam":
            return torch.optim.Adam(parameters, self.lr, weight_decay=decay, fused=fused)
        if self.optimizer == "adamw":
            return torch.optim.AdamW(parameters, self.lr, weight_decay=decay, fused=fused)
        raise HeadError(f"There is no optimizer {self.optimizer!r}; use adam, adamw or sgd.")


def descend(
    network: nn.Module,
    X: RowSource,
    targets: Tensor,
    train: Tensor,
    val: Tensor,
    settings: Descent,
    views: int = 1,
    class_weight: Tensor | None = None,
    augment: Augment | None = None,
    on_epoch: Callable[[dict[str, float]], None] | None = None,
) -> Epochs:
    """Train `network` in place; with validation rows, end at the epoch of their lowest loss.

    Within `featpipe.checkpoint.checkpointing` it goes on where the same training was interrupted,
    and ends as if it had not been.

    Parameters
    ----------
    network : nn.Module
        On the device of `X`; gives logits of shape (batch, classes). What has no gradient is not
        trained, and is not part of a checkpoint.
    X : RowSource
        Image `i` has the rows from ``i * views`` on, the plain one first.
    targets : Tensor on the device, shape (images,) or (images, labels)
        int64, or float32 of 0 and 1 for multi-label.
    train, val : int64 Tensor, on the host
        Images to train on, and those that select the epoch, which may be none.
    settings : Descent
    views : int
        Of each image; an epoch draws one of them for each.
    class_weight : Tensor on the device, shape (classes,), or None
        Of a row of each class; for multi-label, of the positives of each label.
    augment : callable
        Is given each batch, and draws from torch's global generator. Its ``repr`` should tell
        what it does: a training goes on with the checkpoint of one that had an equal one.
    on_epoch : callable
        Is given each epoch's row of the curves; where a training goes on, the earlier ones, too.

    Returns
    -------
    list of dict
        One an epoch: ``epoch`` (from 1), ``train_loss``, ``train_accuracy`` (both running
        means over the epoch, in train mode), ``val_loss``, ``val_accuracy``.

    Raises
    ------
    HeadError
        If the training or validation loss stops being finite.
    """
    run = _Run(network, X, targets, train, val, settings, views, class_weight, augment)
    # Dropout draws from the global generators; they are lent to it and given back.
    with torch.random.fork_rng(devices=[X.device] if X.device.type == "cuda" else []):
        torch.manual_seed(settings.seed)
        return run.run(on_epoch)


class _Run:
    """One training; what of it changes is in `state`."""

    def __init__(
        self,
        network: nn.Module,
        X: RowSource,
        targets: Tensor,
        train: Tensor,
        val: Tensor,
        settings: Descent,
        views: int,
        class_weight: Tensor | None,
        augment: Augment | None,
    ) -> None:
        self.network, self.X, self.targets, self.settings = network, X, targets, settings
        self.train, self.val, self.views = train, val, views
        self.class_weight, self.augment = class_weight, augment
        self.optimizer = settings.build_optimizer(
            [parameter for parameter in network.parameters() if parameter.requires_grad]
        )
        self.sizes = batch_sizes(len(train), settings.batch_size)
        self.generator = torch.Generator().manual_seed(settings.seed)
        self.begun = self.generator.get_state()  # when the epoch began
        self.step = 0  # in the epoch
        self.sums = torch.zeros(2, device=X.device)  # of loss and hits in the epoch
        self.curves: Epochs = []
        self.best: tuple[float, int, dict[str, Tensor]] | None = None
        self.checkpoints = checkpoint.present()
        self.key = self._key() if self.checkpoints else ""
        self.started = checkpoint.clock()

    def run(self, on_epoch: Callable[[dict[str, float]], None] | None) -> Epochs:
        """Train to the end."""
        finished = False
        if self.checkpoints and (state := self.checkpoints.load(self.key)):
            finished = self._resume(state)
        if on_epoch:
            for row in self.curves:
                on_epoch(row)
        while not finished and not self._over():
            self._epoch()
            if on_epoch:
                on_epoch(self.curves[-1])
            if self.checkpoints and self.checkpoints.due:
                self._save()
        if self.best:
            self._put(self.best[2])
        seconds = checkpoint.clock() - self.started
        if self.checkpoints and not finished and seconds > WORTH_KEEPING:
            state = {"finished": True, "network": self._changing(), "curves": self.curves}
            self.checkpoints.save(self.key, state | {"seconds": seconds})
        self.network.eval()
        return self.curves

    def _over(self) -> bool:
        done, patience = len(self.curves), self.settings.patience
        waited = bool(self.best and patience) and done - self.best[1] >= patience  # type: ignore[index]
        return done >= self.settings.epochs or waited

    def _epoch(self) -> None:
        self.generator.set_state(self.begun)
        rows = self.train * self.views
        if self.views > 1:
            rows = rows + torch.randint(self.views, (len(rows),), generator=self.generator)
        batches = torch.split(self.X.shuffled(rows, self.generator), self.sizes)
        self.network.train()
        for batch in batches[self.step :]:
            self._step(batch, len(self.curves) * len(batches) + self.step)
            self.step += 1
            if self.checkpoints and self.step < len(batches) and self.checkpoints.due:
                self._save()
        epoch, (loss, hits) = len(self.curves) + 1, self.sums.tolist()
        self._check("training", loss)
        count = len(self.train)
        row = {"epoch": epoch, "train_loss": loss / count, "train_accuracy": hits / count}
        if len(self.val):
            logits = logits_of(
                self.network, self.X, self.val * self.views, self.settings.precision
            ).to(self.X.device)
            target = self.targets[self.val.to(self.X.device)]
            # Unweighted and not smoothed, so that runs of other settings can be compared.
            row["val_loss"] = float(_losses(logits, target).mean())
            row["val_accuracy"] = float(_hits(logits, target).mean())
            self._check("validation", row["val_loss"])
            if self.best is None or row["val_loss"] < self.best[0]:
                self.best = row["val_loss"], epoch, copy.deepcopy(self._changing())
        self.curves.append(row)
        self.step, self.sums = 0, torch.zeros_like(self.sums)
        self.begun = self.generator.get_state()

    def _check(self, which: str, loss: float) -> None:
        if not math.isfinite(loss):
            raise HeadError(
                f"The {which} loss is no longer finite in epoch {len(self.curves) + 1}: lower the "
                f"learning rate (now {self.settings.lr:g}) or give it finite, smaller inputs."
            )

    def _step(self, batch: Tensor, step: int) -> None:
        settings = self.settings
        target = self.targets[(batch // self.views).to(self.X.device)]
        rows = self.X.take(batch)
        if self.augment:
            rows = self.augment(rows)
        factor = schedule_factor(settings.schedule, step, len(self.sizes) * settings.epochs)
        for group in self.optimizer.param_groups:
            group["lr"] = settings.lr * factor
        with _computing_in(settings.precision, self.X.device):
            logits = self.network(rows)
        logits = logits.float()
        losses = _losses(logits, target, settings.label_smoothing, self.class_weight)
        self.optimizer.zero_grad(set_to_none=True)
        losses.mean().backward()  # type: ignore[no-untyped-call]
        if settings.clip is not None:
            nn.utils.clip_grad_norm_(self.network.parameters(), settings.clip)
        self.optimizer.step()
        hits = _hits(logits.detach(), target)
        self.sums += torch.stack([losses.detach().sum(), hits.sum()])

    # ---- what a checkpoint holds --------------------------------------------------------------

    def _changing(self) -> dict[str, Tensor]:
        """Whatever training changes in the network, by name."""
        trained = {n: p.detach() for n, p in self.network.named_parameters() if p.requires_grad}
        return trained | dict(self.network.named_buffers())

    def _put(self, state: dict[str, Tensor]) -> None:
        with torch.no_grad():
            for name, value in self._changing().items():
                value.copy_(state[name])

    def _save(self) -> None:
        assert self.checkpoints is not None
        random = [torch.get_rng_state()]
        if self.X.device.type == "cuda":
            random.append(torch.cuda.get_rng_state(self.X.device))
        state = {
            "network": self._changing(), "optimizer": self.optimizer.state_dict(),
            "best": self.best, "curves": self.curves, "step": self.step, "sums": self.sums,
            "begun": self.begun, "random": random, "seconds": checkpoint.clock() - self.started,
        }  # fmt: skip
        self.checkpoints.save(self.key, state)

    def _resume(self, state: dict[str, Any]) -> bool:
        """Go on from a state; whether it was that of the end."""
        self._put(state["network"])
        if "finished" in state:
            self.curves = state["curves"]
            return True
        self.optimizer.load_state_dict(state["optimizer"])
        self.best, self.curves = state["best"], state["curves"]
        self.step, self.sums = state["step"], state["sums"].to(self.X.device)
        self.begun = state["begun"]
        torch.set_rng_state(state["random"][0])
        if self.X.device.type == "cuda":
            torch.cuda.set_rng_state(state["random"][1], self.X.device)
        return False

    def _key(self) -> str:
        """Equal for trainings that would do the same, given the same features."""
        digest = hashlib.blake2b(repr((asdict(self.settings), self.views)).encode())
        # Where a function lies in memory says nothing, and is another place in each process.
        described = re.sub(" at 0x[0-9a-fA-F]+", "", f"{self.network}{self.augment}{self.X}")
        trained = [name for name, one in self.network.named_parameters() if one.requires_grad]
        digest.update(f"{STATE} {described} {self.X.device} {trained}".encode())
        tensors = [self.train, self.val, self.targets, self.class_weight]
        for tensor in [*tensors, *self.network.state_dict().values()]:
            if tensor is not None:
                plain = tensor.detach().cpu().contiguous().flatten()
                digest.update(f"{plain.dtype} {tuple(tensor.shape)}".encode())
                if len(plain):  # torch knows no bytes of nothing
                    digest.update(plain.view(torch.uint8).numpy().data)
        return digest.hexdigest()


def _losses(
    logits: Tensor,
    target: Tensor,
    smoothing: float = 0.0,
    class_weight: Tensor | None = None,
) -> Tensor:
    """Of each row."""
    if target.ndim == 2:
        wanted = target * (1 - smoothing) + smoothing / 2
        losses = binary_cross_entropy_with_logits(logits, wanted, reduction="none")
        if class_weight is not None:
            losses = losses * (1 + target * (class_weight - 1))
        return losses.mean(1)
    losses = cross_entropy(logits, target, reduction="none", label_smoothing=smoothing)
    return losses if class_weight is None else losses * class_weight[target]


def _hits(logits: Tensor, target: Tensor) -> Tensor:
    if target.ndim == 2:
        return ((logits > 0) == (target > 0.5)).float().mean(1)
    return (logits.argmax(1) == target).float()


def _computing_in(precision: str, device: torch.device) -> torch.autocast:
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16")


@torch.no_grad()  # not inference mode, whose tensors no later batch could be written into
def logits_of(network: nn.Module, X: RowSource, rows: Tensor, precision: str = "float32") -> Tensor:
    """Logits of some rows in eval mode, float32, shape (rows, classes), on the host."""
    network.eval()
    found = []
    for some in torch.split(rows, AT_ONCE):
        with _computing_in(precision, X.device):
            found.append(network(X.take(some)).float().cpu())
    return torch.cat(found)


def seeded(seed: int, build: Callable[[], nn.Module]) -> nn.Module:
    """Build a network with initial weights of its own seed, the global one untouched."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build()
