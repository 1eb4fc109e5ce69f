"""The training loop: optimizers, schedules, batches, the epoch that is kept."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from featpipe.descent import Descent, Epochs, descend, logits_of, seeded
from featpipe.errors import HeadError
from featpipe.streamed import ResidentRows

NONE = torch.empty(0, dtype=torch.int64)


def rows(count: int = 60, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Rows of three classes."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 3
    return 2 * torch.eye(3, 5)[labels] + torch.randn(count, 5, generator=generator), labels


def linear() -> nn.Module:
    """The same linear layer each time."""
    return seeded(0, lambda: nn.Linear(5, 3))


def normed() -> nn.Module:
    """With buffers that training changes."""
    return seeded(0, lambda: nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Linear(4, 3)))


def train(
    network: nn.Module,
    settings: Descent,
    data: tuple[Tensor, Tensor] | None = None,
    val: Tensor = NONE,
    **more: object,
) -> Epochs:
    """Train on all rows that are not validation."""
    X, targets = data or rows()
    views = int(more.get("views", 1))
    images = torch.arange(len(X) // views)
    chosen = images[~torch.isin(images, val)]
    return descend(network, ResidentRows(X), targets, chosen, val, settings, **more)


def loss_of(network: nn.Module, X: Tensor, labels: Tensor) -> float:
    """Mean cross-entropy in eval mode."""
    found = logits_of(network, ResidentRows(X), torch.arange(len(X)))
    return float(cross_entropy(found, labels))


class Recorder(nn.Linear):
    """Notes the first value of each row that it is trained on."""

    def __init__(self) -> None:
        super().__init__(5, 3)
        self.seen: list[int] = []
        self.asked: list[int] = []

    def forward(self, inputs: Tensor) -> Tensor:
        (self.seen if self.training else self.asked).extend(inputs[:, 0].int().tolist())
        return super().forward(inputs)


def numbered(count: int) -> tuple[Tensor, Tensor]:
    """Rows whose first value is their number."""
    X, labels = rows(count)
    X[:, 0] = torch.arange(count)
    return X, labels


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_every_optimizer_lowers_the_loss(optimizer: str) -> None:
    network, data = linear(), rows()
    before = loss_of(network, *data)
    curves = train(network, Descent(10, 16, 0.02, optimizer), data)
    assert loss_of(network, *data) < 0.8 * before
    assert curves[-1]["train_loss"] < curves[0]["train_loss"]
    assert [row["epoch"] for row in curves] == list(range(1, 11))


@pytest.mark.parametrize(
    ("optimizer", "momentum"), [("sgd", 0.0), ("sgd", 0.9), ("adam", 0.9), ("adamw", 0.9)]
)
@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_steps_are_those_of_torchs_optimizer_and_scheduler(
    optimizer: str, momentum: float, schedule: str
) -> None:
    X, labels = rows()
    network, twin = linear(), linear()
    settings = Descent(4, 60, 0.05, optimizer, schedule, momentum, weight_decay=0.1)
    train(network, settings, (X, labels))
    own = settings.build_optimizer(list(twin.parameters()))
    steps = torch.optim.lr_scheduler.CosineAnnealingLR(own, 4)
    for _ in range(4):
        own.zero_grad()
        cross_entropy(twin(X), labels).backward()
        own.step()
        if schedule == "cosine":
            steps.step()
    for mine, theirs in zip(network.parameters(), twin.parameters(), strict=True):
        assert torch.allclose(mine, theirs, atol=1e-6)


@pytest.mark.parametrize("schedule", ["constant", "cosine", "one-cycle"])
def test_a_schedule_runs_over_all_steps_of_all_epochs(schedule: str) -> None:
    rates: list[float] = []

    class Noting(torch.optim.SGD):
        def step(self, closure: None = None) -> None:
            rates.append(self.param_groups[0]["lr"])

    class Settings(Descent):
        def build_optimizer(self, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
            return Noting(parameters, self.lr)

    train(linear(), Settings(5, 6, 0.1, schedule=schedule))
    assert len(rates) == 50
    plain = torch.optim.SGD([nn.Parameter(torch.zeros(1))], 0.1)
    if schedule == "one-cycle":
        theirs = torch.optim.lr_scheduler.OneCycleLR(
            plain, 0.1, total_steps=51, cycle_momentum=False, pct_start=0.3
        )
        near = 0.006  # torch counts its steps from the ends of the phases
    else:
        factor = 1.0 if schedule == "constant" else 0.0
        theirs = torch.optim.lr_scheduler.CosineAnnealingLR(plain, 50, eta_min=0.1 * factor)
        near = 1e-9
    for rate in rates:
        assert rate == pytest.approx(theirs.get_last_lr()[0], abs=near)
        plain.step()
        theirs.step()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"optimizer": "lion"}, r"'lion'; use adam, adamw or sgd"),
        ({"schedule": "linear"}, r"'linear'; use constant, cosine, one-cycle"),
        ({"precision": "float8"}, r"'float8'; use float32, bfloat16"),
    ],
)
def test_unknown_names_are_refused_with_the_known_ones(wrong: dict, message: str) -> None:
    with pytest.raises(HeadError, match=message):
        train(linear(), Descent(1, 16, 0.1, **wrong))


def test_divergence_names_the_learning_rate() -> None:
    with pytest.raises(HeadError, match=r"training loss.*learning rate \(now 1e\+38\)"):
        train(linear(), Descent(20, 16, 1e38, "sgd"))


def test_a_validation_loss_that_is_no_number_ends_the_training() -> None:
    X, labels = rows()
    X[50:] = float("nan")
    with pytest.raises(HeadError, match="validation loss is no longer finite in epoch 1") as caught:
        train(linear(), Descent(2, 16, 0.1), (X, labels), torch.arange(50, 60))
    # Neither a tail nor a network from pixels has features that one could standardize.
    assert str(caught.value).endswith("(now 0.1) or give it finite, smaller inputs.")


@pytest.mark.parametrize("count", [1, 2, 7, 8, 9, 16, 17])
def test_every_row_is_seen_once_an_epoch(count: int) -> None:
    network = Recorder()
    curves = train(network, Descent(3, 8, 0.01), numbered(count))
    for epoch in range(3):
        seen = network.seen[epoch * count : (epoch + 1) * count]
        assert sorted(seen) == list(range(count))
    assert len(curves) == 3


def test_each_epoch_has_an_order_of_its_own() -> None:
    network = Recorder()
    train(network, Descent(2, 8, 0.01), numbered(17))
    assert network.seen[:17] != network.seen[17:]


def test_an_epoch_draws_one_view_of_each_image_and_validation_takes_the_plain_one() -> None:
    X, labels = numbered(60)
    network, val = Recorder(), torch.tensor([3, 7])
    curves = train(network, Descent(30, 8, 0.01), (X, labels[:20]), val, views=3)
    assert len(network.seen) == 30 * 18
    for start in range(0, len(network.seen), 18):
        images = [row // 3 for row in network.seen[start : start + 18]]
        assert sorted(images) == [i for i in range(20) if i not in (3, 7)]
    assert set(network.seen) == {row for row in range(60) if row // 3 not in (3, 7)}
    assert set(network.asked) == {9, 21}
    assert "val_loss" in curves[0]


def test_targets_belong_to_images_whatever_the_view() -> None:
    X, labels = rows(30)
    X = X.repeat_interleave(4, dim=0)
    network = linear()
    train(network, Descent(40, 10, 0.1), (X, labels), views=4)
    found = logits_of(network, ResidentRows(X), torch.arange(30) * 4).argmax(1)
    assert (found == labels).float().mean() > 0.8


def test_batch_norm_survives_a_last_batch_of_one_row() -> None:
    network = normed()
    assert len(train(network, Descent(2, 8, 0.01), rows(17))) == 2
    assert torch.isfinite(logits_of(network, ResidentRows(rows(1)[0]), torch.arange(1))).all()


def test_the_best_epoch_is_kept_with_its_buffers() -> None:
    X, labels = rows(90)
    labels[60:] = labels[60:].flip(0)  # gets worse as training goes on
    val, network = torch.arange(60, 90), normed()
    losses = [row["val_loss"] for row in train(network, Descent(15, 16, 0.05), (X, labels), val)]
    assert losses.index(min(losses)) < 14
    assert loss_of(network, X[60:], labels[60:]) == pytest.approx(min(losses), rel=1e-5)
    assert not network.training


def test_patience_ends_the_training_so_many_epochs_after_the_best() -> None:
    X, labels = rows(90)
    labels[60:] = labels[60:].flip(0)
    val = torch.arange(60, 90)
    whole = train(normed(), Descent(40, 16, 0.05), (X, labels), val)
    stopped = train(normed(), Descent(40, 16, 0.05, patience=4), (X, labels), val)
    losses = [row["val_loss"] for row in stopped]
    assert stopped == whole[: len(stopped)]
    assert len(stopped) == losses.index(min(losses)) + 1 + 4 < 40


def test_without_validation_rows_patience_means_nothing() -> None:
    assert len(train(linear(), Descent(6, 16, 1e-9, patience=1))) == 6


def test_a_gradient_is_clipped_to_its_largest_norm() -> None:
    X, labels = rows()
    network, twin = linear(), linear()
    train(network, Descent(1, 60, 1.0, "sgd", momentum=0.0, clip=1e-3), (X, labels))
    moved = [a - b for a, b in zip(network.parameters(), twin.parameters(), strict=True)]
    norm = torch.cat([part.detach().flatten() for part in moved]).norm()
    assert float(norm) == pytest.approx(1e-3, rel=1e-3)


def test_smoothed_labels_are_torchs() -> None:
    X, labels = rows()
    curves = train(linear(), Descent(1, 60, 1e-9, label_smoothing=0.2), (X, labels))
    theirs = cross_entropy(linear()(X), labels, label_smoothing=0.2)
    assert curves[0]["train_loss"] == pytest.approx(theirs.item(), rel=1e-5)


def test_a_classes_weight_is_that_of_its_rows() -> None:
    X, labels = rows()
    weight = torch.tensor([0.5, 1.0, 3.0])
    curves = train(linear(), Descent(1, 60, 1e-9), (X, labels), class_weight=weight)
    theirs = cross_entropy(linear()(X), labels, weight, reduction="sum") / 60
    assert curves[0]["train_loss"] == pytest.approx(theirs.item(), rel=1e-5)


def test_several_labels_an_image_are_torchs_binary_losses() -> None:
    X, labels = rows()
    targets = torch.eye(3)[labels]
    targets[::5] = 1.0
    weight = torch.tensor([2.0, 1.0, 0.5])
    plain = train(linear(), Descent(1, 60, 1e-9), (X, targets))
    theirs = binary_cross_entropy_with_logits(linear()(X), targets)
    assert plain[0]["train_loss"] == pytest.approx(theirs.item(), rel=1e-5)
    right = ((linear()(X) > 0) == (targets > 0.5)).float().mean()
    assert plain[0]["train_accuracy"] == pytest.approx(float(right), rel=1e-5)
    weighted = train(linear(), Descent(1, 60, 1e-9), (X, targets), class_weight=weight)
    theirs = binary_cross_entropy_with_logits(linear()(X), targets, pos_weight=weight)
    assert weighted[0]["train_loss"] == pytest.approx(theirs.item(), rel=1e-5)


def test_validation_is_neither_smoothed_nor_weighted() -> None:
    X, labels = rows()
    val, network = torch.arange(40, 60), linear()
    settings = Descent(1, 40, 1e-3, label_smoothing=0.3)
    weight = torch.tensor([5.0, 1.0, 1.0])
    curves = train(network, settings, (X, labels), val, class_weight=weight)
    assert curves[0]["val_loss"] == pytest.approx(loss_of(network, X[40:], labels[40:]), rel=1e-5)


def test_what_has_no_gradient_stays_as_it_is() -> None:
    network = normed()
    network[0].requires_grad_(False)
    before = network[0].weight.clone()
    train(network, Descent(3, 16, 0.1, "adamw", weight_decay=0.5))
    assert torch.equal(network[0].weight, before)


def test_bfloat16_trains_float32_weights() -> None:
    network, data = normed(), rows()
    curves = train(network, Descent(15, 16, 0.02, precision="bfloat16"), data, torch.arange(9))
    assert {p.dtype for p in network.parameters()} == {torch.float32}
    assert curves[-1]["train_loss"] < 0.7 * curves[0]["train_loss"]
    plain = train(normed(), Descent(15, 16, 0.02), data, torch.arange(9))
    assert plain != curves


def test_augment_is_given_each_batch_of_training_only() -> None:
    shapes: list[int] = []

    def augment(batch: Tensor) -> Tensor:
        shapes.append(len(batch))
        return batch + torch.randn_like(batch)

    first = train(linear(), Descent(2, 16, 0.01), val=torch.arange(10), augment=augment)
    assert shapes == [16, 16, 16, 2] * 2
    second = train(linear(), Descent(2, 16, 0.01), val=torch.arange(10), augment=augment)
    assert first == second
    assert first != train(linear(), Descent(2, 16, 0.01), val=torch.arange(10))


def test_the_same_seed_gives_the_same_network_with_dropout_too() -> None:
    def trained(seed: int) -> Tensor:
        network = seeded(0, lambda: nn.Sequential(nn.Dropout(0.5), nn.Linear(5, 3)))
        train(network, Descent(3, 16, 0.01, seed=seed))
        return network[1].weight.detach()

    assert torch.equal(trained(0), trained(0))
    assert not torch.equal(trained(0), trained(1))


def test_training_leaves_the_global_random_numbers_alone() -> None:
    before = torch.get_rng_state()
    network = seeded(5, lambda: nn.Sequential(nn.Dropout(0.5), nn.Linear(5, 3)))
    train(network, Descent(2, 16, 0.01))
    assert torch.equal(torch.get_rng_state(), before)


def test_each_epoch_is_reported_as_it_ends() -> None:
    reported: Epochs = []
    val = torch.arange(9)
    curves = train(linear(), Descent(3, 16, 0.01), val=val, on_epoch=reported.append)
    assert reported == curves
    assert set(curves[0]) == {
        "epoch",
        "train_loss",
        "train_accuracy",
        "val_loss",
        "val_accuracy",
    }


def test_logits_of_many_rows_are_those_of_each() -> None:
    network, X = normed().eval(), rows(200)[0]
    found = logits_of(network, ResidentRows(X), torch.arange(200).flip(0))
    with torch.no_grad():
        assert torch.allclose(found, network(X).flip(0), atol=1e-6)
    half = logits_of(network, ResidentRows(X), torch.arange(200), "bfloat16")
    assert half.dtype == torch.float32
    assert torch.allclose(half, network(X), atol=0.1)
