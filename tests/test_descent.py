"""The training loop: optimizers, batches, the epoch that is kept."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from featpipe.descent import Descent, _batches, descend, forward, seeded
from featpipe.errors import HeadError


def rows(count: int = 60, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Rows of three classes."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 3
    return 2 * torch.eye(3, 5)[labels] + torch.randn(count, 5, generator=generator), labels


def linear() -> nn.Module:
    """The same linear layer each time."""
    return seeded(0, lambda: nn.Linear(5, 3))


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_every_optimizer_lowers_the_loss(optimizer: str) -> None:
    inputs, labels = rows()
    network = linear()
    before = float(cross_entropy(forward(network, inputs, 16), labels))
    curves = descend(network, inputs, labels, Descent(10, 16, 0.02, optimizer))
    after = float(cross_entropy(forward(network, inputs, 16), labels))
    assert after < 0.8 * before
    assert curves[-1]["train_loss"] < curves[0]["train_loss"]
    assert [row["epoch"] for row in curves] == list(range(1, 11))


def test_an_unknown_optimizer_is_refused_with_the_known_ones() -> None:
    with pytest.raises(HeadError, match=r"'lion'; use adam, adamw or sgd"):
        descend(linear(), *rows(), Descent(1, 16, 0.1, "lion"))


def test_divergence_names_the_learning_rate() -> None:
    with pytest.raises(HeadError, match=r"learning rate \(now 1e\+38\)"):
        descend(linear(), *rows(), Descent(20, 16, 1e38, "sgd"))


@pytest.mark.parametrize("count", [1, 2, 7, 8, 9, 16, 17])
def test_batches_cover_every_row_once(count: int) -> None:
    order = torch.randperm(count, generator=torch.Generator().manual_seed(3))
    batches = _batches(order, 8)
    assert torch.equal(torch.cat(batches), order)
    assert max(map(len, batches)) <= 9
    assert count == 1 or min(map(len, batches)) > 1


def test_every_row_is_seen_once_an_epoch_in_an_order_of_its_own() -> None:
    class Recorder(nn.Linear):
        seen: list[float]

        def forward(self, inputs: Tensor) -> Tensor:
            if self.training:
                self.seen += inputs[:, 0].tolist()
            return super().forward(inputs)

    inputs, labels = rows(17)
    inputs[:, 0] = torch.arange(17)
    network = Recorder(5, 3)
    network.seen = []
    descend(network, inputs, labels, Descent(2, 8, 0.01))
    first, second = network.seen[:17], network.seen[17:]
    assert sorted(first) == sorted(second) == list(range(17))
    assert first != second


def test_batch_norm_survives_a_last_batch_of_one_row() -> None:
    network = seeded(0, lambda: nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Linear(4, 3)))
    curves = descend(network, *rows(17), Descent(2, 8, 0.01))
    assert len(curves) == 2
    assert torch.isfinite(forward(network, rows(1)[0], 8)).all()


def test_the_best_epoch_is_kept_with_its_buffers() -> None:
    network = seeded(0, lambda: nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Linear(4, 3)))
    inputs, labels = rows()
    validation = rows(30, seed=1)[0], rows(30)[1].flip(0)  # gets worse as training goes on
    curves = descend(network, inputs, labels, Descent(15, 16, 0.05), validation)
    losses = [row["val_loss"] for row in curves]
    assert losses.index(min(losses)) < 14
    kept = float(cross_entropy(forward(network, validation[0], 16), validation[1]))
    assert kept == pytest.approx(min(losses), rel=1e-5)
    assert not network.training


def test_the_same_seed_gives_the_same_network_with_dropout_too() -> None:
    def train(seed: int) -> Tensor:
        network = seeded(0, lambda: nn.Sequential(nn.Dropout(0.5), nn.Linear(5, 3)))
        descend(network, *rows(), Descent(3, 16, 0.01, seed=seed))
        return network[1].weight.detach()

    assert torch.equal(train(0), train(0))
    assert not torch.equal(train(0), train(1))


def test_training_leaves_the_global_random_numbers_alone() -> None:
    before = torch.get_rng_state()
    network = seeded(5, lambda: nn.Sequential(nn.Dropout(0.5), nn.Linear(5, 3)))
    descend(network, *rows(), Descent(2, 16, 0.01))
    assert torch.equal(torch.get_rng_state(), before)


def test_each_epoch_is_reported_as_it_ends() -> None:
    reported: list[dict[str, float]] = []
    curves = descend(linear(), *rows(), Descent(3, 16, 0.01), rows(9, 1), reported.append)
    assert reported == curves
    assert set(curves[0]) == {
        "epoch",
        "train_loss",
        "train_accuracy",
        "val_loss",
        "val_accuracy",
    }


def test_a_forward_pass_in_blocks_equals_one_in_a_single_block() -> None:
    network, inputs = linear(), rows(600)[0]
    assert torch.allclose(forward(network, inputs, 1), forward(network, inputs, 1000), atol=1e-6)
