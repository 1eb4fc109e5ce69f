"""Stacked training: every perceptron ends as it would have ended alone, and as torch would."""

import itertools
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from featpipe.checkpoint import checkpointing
from featpipe.optimizers import SCHEDULES, StackedOptimizer, schedule_factor
from featpipe.perceptrons import logits_of
from featpipe.problems import Problem, Shape, Trained
from featpipe.stacked import train_stacked as train_rows
from featpipe.streamed import ResidentRows

FEATURES, CLASSES = 12, 3


def train_stacked(
    X: torch.Tensor, y: torch.Tensor, shape: Shape, problems: list[Problem], **options: Any
) -> list[Trained]:
    """Train on rows in memory."""
    return train_rows(ResidentRows(X), y, shape, problems, **options)


def noisy(rows: int = 203, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of three overlapping classes."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, CLASSES, rows)
    X = random.normal(size=(rows, FEATURES)) + 1.5 * np.eye(CLASSES, FEATURES)[labels]
    return torch.tensor(X, dtype=torch.float32), torch.tensor(labels)


def several(rows: int = 203) -> list[Problem]:
    """Problems that differ in everything a stack allows, folds of unlike sizes among it."""
    random = np.random.default_rng(1)
    problems = []
    for number, (fold, lr) in enumerate(itertools.product(range(3), [3e-3, 3e-2])):
        order = random.permutation(rows)
        val = np.sort(order[: 50 + fold])
        problems.append(
            Problem(
                np.sort(order[50 + fold :]), val if number != 3 else val[:0], lr,
                weight_decay=1e-2 * number, dropout=0.1 * number, label_smoothing=0.05 * number,
                mixup=0.2 * (number % 3), clip=math.inf if number % 2 else 0.5,
                class_weight=None if number % 2 else np.array([0.5, 1, 1.5]), seed=number // 2,
            )
        )  # fmt: skip
    # Two that share everything but the learning rate.
    return [*problems, replace(problems[0], lr=1e-2)]


SHAPES = [
    Shape((FEATURES, CLASSES), 8, 32, patience=3),
    Shape((FEATURES, 9, 5, CLASSES), 8, 32, "adamw", "cosine", batch_norm=True),
    Shape((FEATURES, 7, CLASSES), 6, 64, "sgd", "one-cycle", patience=2),
    Shape((FEATURES, CLASSES), 8, None),
]


@pytest.mark.parametrize("shape", SHAPES, ids=["linear", "batch-norm", "sgd", "all-rows"])
def test_each_perceptron_ends_as_it_would_alone(shape: Shape) -> None:
    X, y = noisy()
    problems = several()
    together = train_stacked(X, y, shape, problems)
    for problem, one in zip(problems, together, strict=True):
        (alone,) = train_stacked(X, y, shape, [problem])
        assert one.kept == alone.kept
        assert len(one.curves) == len(alone.curves)
        for row, other in zip(one.curves, alone.curves, strict=True):
            assert row == pytest.approx(other, rel=1e-4, abs=1e-5)
        for (weight, bias), (other_weight, other_bias) in zip(
            one.layers, alone.layers, strict=True
        ):
            torch.testing.assert_close(weight, other_weight, rtol=1e-3, atol=1e-4)
            torch.testing.assert_close(bias, other_bias, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("shape", SHAPES, ids=["linear", "batch-norm", "sgd", "all-rows"])
def test_each_perceptron_draws_the_views_it_would_draw_alone(shape: Shape) -> None:
    views = 4
    X, y = noisy(203 * views)
    y = y[::views].repeat_interleave(views)
    problems = [
        replace(problem, train=problem.train * views, val=problem.val * views, views=count)
        for problem, count in zip(several(), itertools.cycle([views, 1, views]), strict=False)
    ]
    together = train_stacked(X, y, shape, problems)
    for problem, one in zip(problems, together, strict=True):
        (alone,) = train_stacked(X, y, shape, [problem])
        assert one.kept == alone.kept
        for row, other in zip(one.curves, alone.curves, strict=True):
            assert row == pytest.approx(other, rel=1e-4, abs=1e-5)
        for (weight, _), (other_weight, _) in zip(one.layers, alone.layers, strict=True):
            torch.testing.assert_close(weight, other_weight, rtol=1e-3, atol=1e-4)
    # And the views make a difference.
    (plain,) = train_stacked(X, y, shape, [replace(problems[0], views=1)])
    assert not torch.allclose(plain.layers[0][0], together[0].layers[0][0], atol=1e-3)


@pytest.mark.parametrize("batch_size", [None, 60])
def test_a_batch_taken_in_parts_has_the_gradient_of_the_whole(batch_size: int | None) -> None:
    X, y = noisy()
    shape = Shape((FEATURES, 7, CLASSES), 8, batch_size, patience=3)
    problems = [replace(problem, mixup=0.0) for problem in several()]
    parts = ResidentRows(X)
    parts.at_once = 17
    for one, other in zip(
        train_rows(parts, y, shape, problems), train_stacked(X, y, shape, problems), strict=True
    ):
        assert one.kept == other.kept
        for pair, other_pair in zip(one.layers, other.layers, strict=True):
            torch.testing.assert_close(pair, other_pair, rtol=1e-4, atol=1e-5)


def test_little_memory_changes_nothing() -> None:
    X, y = noisy()
    problems = several()
    whole = train_stacked(X, y, SHAPES[0], problems)
    parts = train_stacked(X, y, SHAPES[0], problems, most_bytes=1)
    for one, other in zip(whole, parts, strict=True):
        torch.testing.assert_close(one.layers[0][0], other.layers[0][0], rtol=1e-3, atol=1e-4)


def torch_twin(trained: Trained) -> nn.Sequential:
    """The same network in torch.nn, with these weights."""
    modules: list[nn.Module] = []
    for weight, bias in trained.layers:
        linear = nn.Linear(weight.shape[2], weight.shape[1])
        linear.load_state_dict({"weight": weight[0], "bias": bias[0, 0]})
        modules += [linear, nn.ReLU()]
    return nn.Sequential(*modules[:-1])


@pytest.mark.parametrize("kind", ["adam", "adamw", "sgd"])
def test_training_is_what_torch_optim_does(kind: str) -> None:
    X, y = noisy(64)
    rows = np.arange(64)
    shape = Shape((FEATURES, 6, CLASSES), 5, 64, kind)
    problem = Problem(rows, rows[:0], 0.05, weight_decay=0.1, momentum=0.8)
    # With no step taken the initial weights come back.
    (begin,) = train_stacked(X, y, replace(shape, epochs=1), [replace(problem, lr=1e-30)])
    (end,) = train_stacked(X, y, shape, [problem])
    twin = torch_twin(begin)
    if kind == "sgd":
        optimizer = torch.optim.SGD(twin.parameters(), 0.05, momentum=0.8, weight_decay=0.1)
    else:
        which = torch.optim.Adam if kind == "adam" else torch.optim.AdamW
        optimizer = which(twin.parameters(), 0.05, weight_decay=0.1)
    if kind == "adamw":  # its decay has shrunk nothing yet: lr was almost 0
        assert begin.kept == 1
    for _ in range(5):
        optimizer.zero_grad()
        cross_entropy(twin(X), y).backward()
        optimizer.step()
    torch.testing.assert_close(torch_twin(end)(X), twin(X), rtol=1e-4, atol=1e-4)


def test_batch_norm_is_part_of_the_layers_it_leaves() -> None:
    X, y = noisy(256)
    shape = Shape((FEATURES, 8, CLASSES), 40, 256, "sgd", batch_norm=True)
    rows = np.arange(256)
    (trained,) = train_stacked(X, y, shape, [Problem(rows, rows, 0.2)])
    # All rows in one batch, many times: running statistics are those of the rows.
    weight, bias = trained.layers[0]
    assert len(trained.layers) == 2
    assert trained.curves[-1]["val_loss"] == pytest.approx(
        trained.curves[-1]["train_loss"], rel=0.05
    )
    logits = logits_of(trained.layers, X)[0]
    assert cross_entropy(logits, y).item() == pytest.approx(
        min(row["val_loss"] for row in trained.curves), rel=1e-4
    )
    assert weight.shape == (1, 8, FEATURES)
    assert bias.shape == (1, 1, 8)


def test_batch_norm_in_training_is_torchs() -> None:
    X, y = noisy(96)
    rows = np.arange(96)
    shape = Shape((FEATURES, 8, CLASSES), 1, 96, "sgd", batch_norm=True)
    plain = replace(shape, batch_norm=False)
    (begin,) = train_stacked(X, y, plain, [Problem(rows, rows[:0], 1e-30)])
    twin = torch_twin(begin)
    twin.insert(1, nn.BatchNorm1d(8))
    twin.train()
    (trained,) = train_stacked(X, y, shape, [Problem(rows, rows[:0], 1e-30)])
    expected = cross_entropy(twin(X), y).item()
    assert trained.curves[0]["train_loss"] == pytest.approx(expected, rel=1e-5)
    twin.eval()
    torch.testing.assert_close(logits_of(trained.layers, X)[0], twin(X), rtol=1e-4, atol=1e-5)


def test_a_loss_that_is_no_number_stops_one_and_no_other() -> None:
    X, y = noisy()
    rows = np.arange(len(X))
    fine = Problem(rows[:150], rows[150:], 0.01)
    shape = Shape((FEATURES, 5, CLASSES), 6, 32, "sgd")
    good, bad = train_stacked(X, y, shape, [fine, replace(fine, lr=1e30)])
    assert bad.diverged
    assert not good.diverged
    (alone,) = train_stacked(X, y, shape, [fine])
    torch.testing.assert_close(good.layers[0][0], alone.layers[0][0], rtol=1e-3, atol=1e-4)


def test_clipping_bounds_the_step() -> None:
    X, y = noisy()
    rows = np.arange(len(X))
    shape = Shape((FEATURES, CLASSES), 1, 1000, "sgd")
    moved = []
    for clip in (1e-3, math.inf):
        both = [Problem(rows, rows[:0], lr, clip=clip) for lr in (1.0, 1e-30)]
        end, begin = train_stacked(X * 100, y, shape, both)
        parts = zip(end.layers[0], begin.layers[0], strict=True)
        moved.append(math.sqrt(sum(float((one - other).square().sum()) for one, other in parts)))
    assert moved[0] == pytest.approx(1e-3, rel=1e-3)
    assert moved[1] > 1


def test_label_smoothing_is_torchs() -> None:
    X, y = noisy()
    rows = np.arange(len(X))
    shape = Shape((FEATURES, CLASSES), 1, 1000)
    smooth = Problem(rows, rows, 1e-30, label_smoothing=0.3)
    (trained,) = train_stacked(X, y, shape, [smooth])
    logits = logits_of(trained.layers, X)[0]
    assert trained.curves[0]["train_loss"] == pytest.approx(
        cross_entropy(logits, y, label_smoothing=0.3).item(), rel=1e-5
    )
    assert trained.curves[0]["val_loss"] == pytest.approx(cross_entropy(logits, y).item(), rel=1e-5)


def test_mixup_keeps_sure_probabilities_away() -> None:
    X, y = noisy()
    rows = np.arange(len(X))
    shape = Shape((FEATURES, 32, CLASSES), 60, 32)
    plain, mixed = train_stacked(
        X, y, shape, [Problem(rows, rows[:0], 0.01, mixup=alpha) for alpha in (0.0, 1.0)]
    )
    sure = [logits_of(one.layers, X)[0].softmax(1).amax(1).mean() for one in (plain, mixed)]
    assert sure[1] < sure[0] - 0.05


def test_labels_are_trained_each_by_itself() -> None:
    X, y = noisy(300)
    targets = torch.stack([y == 0, y != 1, X[:, 5] > 0], dim=1).float()
    rows = np.arange(300)
    shape = Shape((FEATURES, 3), 60, 32, multilabel=True)
    problem = Problem(rows[:200], rows[200:], 0.02)
    (trained,) = train_stacked(X, targets, shape, [problem])
    said = logits_of(trained.layers, X[200:])[0] > 0
    assert ((said == (targets[200:] > 0.5)).float().mean(0) > 0.7).all()
    best = trained.curves[trained.kept - 1]["val_accuracy"]
    assert best == pytest.approx((said == (targets[200:] > 0.5)).float().mean().item(), abs=1e-6)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_schedules_stay_within_the_learning_rate(schedule: str) -> None:
    factors = [schedule_factor(schedule, step, 100) for step in range(100)]
    assert all(0 < factor <= 1 for factor in factors)
    assert max(factors) == pytest.approx(1)
    assert (factors[-1] < 0.01) == (schedule != "constant")
    assert (factors[0] < 0.1) == (schedule == "one-cycle")


def test_schedules_are_torchs() -> None:
    parameter = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], 1.0)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 50)
    for step in range(50):
        assert schedule_factor("cosine", step, 50) == pytest.approx(cosine.get_last_lr()[0])
        optimizer.step()
        cosine.step()


def test_an_optimizer_goes_on_with_some_of_its_members() -> None:
    torch.manual_seed(0)
    start, gradients = torch.randn(4, 3, 2), torch.randn(6, 4, 3, 2)
    vectors = torch.tensor([0.1, 0.2, 0.3, 0.4]), torch.zeros(4), torch.full((4,), 0.9)
    for kind in ("adam", "sgd"):
        whole, part = [start.clone()], [start.clone()]
        first = StackedOptimizer(kind, whole, *vectors)
        second = StackedOptimizer(kind, part, *vectors)
        for gradient in gradients[:3]:
            first.step(whole, [gradient.clone()])
            second.step(part, [gradient.clone()])
        places = torch.tensor([0, 2])
        second.take(places)
        part = [part[0][places]]
        for gradient in gradients[3:]:
            first.step(whole, [gradient.clone()])
            second.step(part, [gradient[places]])
        torch.testing.assert_close(whole[0][places], part[0])


class Stopping(ResidentRows):
    """Rows that cannot be taken a certain number of times."""

    left = 10**9

    def take(self, rows: torch.Tensor, slot: int = 0) -> torch.Tensor:
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt
        return super().take(rows, slot)


@pytest.mark.parametrize("shape", SHAPES, ids=["linear", "batch-norm", "sgd", "all-rows"])
def test_a_stack_goes_on_where_it_was_interrupted_to_the_bit(shape: Shape, tmp_path: Path) -> None:
    X, y = noisy()
    problems = several()
    whole = train_stacked(X, y, shape, problems)
    stops = 0
    for allowed in (3, 40, 100, 10**9):
        rows = Stopping(X)
        rows.left = allowed
        with checkpointing(tmp_path, "same", seconds=0) as kept:
            try:
                again = train_rows(rows, y, shape, problems)
            except KeyboardInterrupt:
                stops += 1
    assert stops
    assert kept.resumed
    for one, other in zip(again, whole, strict=True):
        assert (one.kept, one.diverged, one.curves) == (other.kept, other.diverged, other.curves)
        for pair, other_pair in zip(one.layers, other.layers, strict=True):
            assert torch.equal(pair[0], other_pair[0])
            assert torch.equal(pair[1], other_pair[1])


def test_another_stack_does_not_go_on_from_it(tmp_path: Path) -> None:
    X, y = noisy()
    problems = several()
    with checkpointing(tmp_path, "same", seconds=0) as kept:
        train_stacked(X, y, SHAPES[0], problems)
        for changed in (
            [replace(problems[0], lr=0.5), *problems[1:]],
            [replace(problems[0], train=problems[0].train[:-1]), *problems[1:]],
        ):
            train_stacked(X, y, SHAPES[0], changed)
        train_stacked(X, (y + 1) % CLASSES, SHAPES[0], problems)
        train_stacked(X, y, replace(SHAPES[0], epochs=9), problems)
        assert not kept.resumed
        train_stacked(X, y, SHAPES[0], problems)
        assert kept.resumed
