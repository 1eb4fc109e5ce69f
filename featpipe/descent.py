"""Training a network by mini-batches: the one loop behind heads and the CNN from scratch."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from featpipe.errors import HeadError

Epochs = list[dict[str, float]]


@dataclass(frozen=True)
class Descent:
    """How a network is trained.

    Attributes
    ----------
    epochs : int
        At most this many passes.
    batch_size : int
    lr : float
        Learning rate, constant.
    optimizer : {"adam", "adamw", "sgd"}
    momentum : float
        Of SGD.
    weight_decay : float
    patience : int
        Stop after this many epochs without a lower validation loss; 0 never stops early.
    seed : int
        Of the order of the rows.
    """

    epochs: int
    batch_size: int
    lr: float
    optimizer: str = "adam"
    momentum: float = 0.9
    weight_decay: float = 0.0
    patience: int = 0
    seed: int = 0

    def build_optimizer(self, network: nn.Module) -> torch.optim.Optimizer:
        """The optimizer for the parameters of `network`."""
        parameters = list(network.parameters())
        if self.optimizer == "sgd":
            return torch.optim.SGD(
                parameters, self.lr, momentum=self.momentum, weight_decay=self.weight_decay
            )
        if self.optimizer == "adam":
            return torch.optim.Adam(parameters, self.lr, weight_decay=self.weight_decay)
        if self.optimizer == "adamw":
            return torch.optim.AdamW(parameters, self.lr, weight_decay=self.weight_decay)
        raise HeadError(f"There is no optimizer {self.optimizer!r}; use adam, adamw or sgd.")


def descend(
    network: nn.Module,
    inputs: Tensor,
    labels: Tensor,
    settings: Descent,
    validation: tuple[Tensor, Tensor] | None = None,
    on_epoch: Callable[[dict[str, float]], None] | None = None,
) -> Epochs:
    """Train `network` in place; with validation rows, end at the epoch of their lowest loss.

    Parameters
    ----------
    network : nn.Module
        On its device; gives logits of shape (batch, classes).
    inputs : Tensor, shape (n, ...)
        Where they lie is the caller's choice: on the device at once, or on the host, from
        where each batch is fetched.
    labels : int64 Tensor, shape (n,), on the device of the network
    validation : pair of Tensors
        Inputs and labels that select the epoch.
    on_epoch : callable
        Is given each epoch's row of the curves.

    Returns
    -------
    list of dict
        One an epoch: ``epoch`` (from 1), ``train_loss``, ``train_accuracy`` (both running
        means over the epoch, in train mode), ``val_loss``, ``val_accuracy``.

    Raises
    ------
    HeadError
        If the training loss stops being finite.
    """
    # Dropout draws from the global generators; they are lent to it and given back.
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(settings.seed)
        return _descend(network, inputs, labels, settings, validation, on_epoch)


def _descend(
    network: nn.Module,
    inputs: Tensor,
    labels: Tensor,
    settings: Descent,
    validation: tuple[Tensor, Tensor] | None,
    on_epoch: Callable[[dict[str, float]], None] | None,
) -> Epochs:
    device = labels.device
    generator = torch.Generator().manual_seed(settings.seed)
    optimizer = settings.build_optimizer(network)
    curves: Epochs = []
    best: tuple[float, int, dict[str, Any]] | None = None
    for epoch in range(1, settings.epochs + 1):
        network.train()
        loss_sum = torch.zeros((), device=device)
        right = torch.zeros((), device=device)
        order = torch.randperm(len(inputs), generator=generator)
        for batch in _batches(order, settings.batch_size):
            target = labels.index_select(0, batch.to(device))
            # index_select gathers rows in a third of the time of inputs[batch].
            rows = inputs.index_select(0, batch.to(inputs.device))
            logits = network(rows.to(device, non_blocking=True))
            loss = cross_entropy(logits, target)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            loss_sum += loss.detach() * len(batch)
            right += (logits.detach().argmax(1) == target).sum()
        row = {
            "epoch": epoch,
            "train_loss": float(loss_sum) / len(inputs),
            "train_accuracy": float(right) / len(inputs),
        }
        if not torch.isfinite(loss_sum):
            raise HeadError(
                f"The training loss is no longer finite in epoch {epoch}: lower the learning rate "
                f"(now {settings.lr:g}) or standardize the features."
            )
        if validation is not None:
            logits = forward(network, validation[0], settings.batch_size)
            row["val_loss"] = float(cross_entropy(logits, validation[1]))
            row["val_accuracy"] = float((logits.argmax(1) == validation[1]).float().mean())
            if best is None or row["val_loss"] < best[0]:
                best = (row["val_loss"], epoch, copy.deepcopy(network.state_dict()))
        curves.append(row)
        if on_epoch:
            on_epoch(row)
        if best and settings.patience and epoch - best[1] >= settings.patience:
            break
    if best:
        network.load_state_dict(best[2])
    network.eval()
    return curves


def _batches(order: Tensor, size: int) -> list[Tensor]:
    """Consecutive batches; a last one of a single row joins the one before (batch norm)."""
    batches = list(torch.split(order, size))
    if len(batches) > 1 and len(batches[-1]) == 1:
        batches[-2:] = [torch.cat(batches[-2:])]
    return batches


@torch.inference_mode()
def forward(network: nn.Module, inputs: Tensor, batch_size: int) -> Tensor:
    """Logits of all rows, in eval mode, shape (n, classes), on the network's device."""
    network.eval()
    device = next(network.parameters()).device
    outputs = [network(block.to(device)) for block in torch.split(inputs, max(batch_size, 256))]
    return torch.cat(outputs)


def seeded(seed: int, build: Callable[[], nn.Module]) -> nn.Module:
    """Build a network with initial weights of its own seed, the global one untouched."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build()
