"""What may be said of a difference: what there is, is found; what there is not, hardly ever."""

import numpy as np
import pytest

from featpipe.ranking import accuracy_interval, differences, worth
from featpipe.route_results import Difference

IMAGES, FOLDS = 300, 5


def runs(accuracies: list[float], seed: int, of_training: float = 0.02) -> tuple[np.ndarray, ...]:
    """Hits and fold accuracies of routes that find the same images hard."""
    random = np.random.default_rng(seed)
    easy = random.uniform(-0.3, 0.3, IMAGES)
    common = random.random(IMAGES)
    right = np.zeros((len(accuracies), IMAGES))
    folds = np.zeros((len(accuracies), FOLDS))
    for number, rows in enumerate(np.array_split(random.permutation(IMAGES), FOLDS)):
        for route, accuracy in enumerate(accuracies):
            likely = accuracy + easy[rows] + random.normal(0, of_training)
            own = random.random(len(rows))
            drawn = np.where(random.random(len(rows)) < 0.7, common[rows], own)
            right[route, rows] = drawn < likely
            folds[route, number] = right[route, rows].mean()
    return right, folds


def told(right: np.ndarray, folds: np.ndarray) -> list[Difference]:
    """Differences to the best."""
    best = int(folds.mean(axis=1).argmax())
    return [one for one in differences(right, folds, 0.25, best) if one is not None]


@pytest.mark.parametrize("routes", [2, 6])
def test_copies_of_one_route_are_hardly_ever_told_apart(routes: int) -> None:
    """Of the best of several, too, which is the best of them by chance."""
    sure = sum(
        any(one.sure for one in told(*runs([0.7] * routes, seed, 0.03))) for seed in range(40)
    )
    assert sure <= 4


def test_what_is_clearly_worse_is_told() -> None:
    [one] = told(*runs([0.8, 0.55], 0))
    assert one.sure
    assert one.value == pytest.approx(-0.25, abs=0.1)
    assert one.interval_95 is not None
    assert one.interval_95[0] < one.value < one.interval_95[1] < 0
    assert one.p is not None
    assert one.p < 0.05


def test_equal_hits_are_no_difference() -> None:
    right, folds = runs([0.7], 0)
    [one] = told(np.repeat(right, 2, axis=0), np.repeat(folds, 2, axis=0))
    assert one.value == 0
    assert not one.sure
    assert one.p == 1


def test_a_handful_of_images_is_never_enough() -> None:
    right = np.array([[1.0, 1, 1, 1], [1, 0, 1, 0]])
    found = differences(right, right.mean(axis=1, keepdims=True), 0.25, 0)
    assert found[0] is None
    assert found[1] is not None
    assert not found[1].sure


def test_more_routes_make_intervals_wider() -> None:
    right, folds = runs([0.75, 0.7, 0.7, 0.7, 0.7, 0.7], 3)
    few = differences(right[:2], folds[:2, :1], 0.25, 0)[1]
    many = differences(right, folds[:, :1], 0.25, 0)[1]
    assert few is not None
    assert many is not None
    assert many.interval_95[0] < few.interval_95[0]  # type: ignore[index]


def test_images_of_one_group_count_as_one() -> None:
    right, folds = runs([0.75, 0.68], 5)
    again = np.tile(right, 4)
    alone = differences(again, folds[:, :1], 0.25, 0)[1]
    groups = np.tile(np.arange(IMAGES), 4).astype(str)
    grouped = differences(again, folds[:, :1], 0.25, 0, groups)[1]
    assert alone is not None
    assert grouped is not None
    assert grouped.interval_95[0] < alone.interval_95[0]  # type: ignore[index]


def test_an_accuracy_is_never_surer_than_its_images_allow() -> None:
    assert accuracy_interval([1.0, 1.0, 1.0], 0.5, 30).low < 0.9  # type: ignore[operator]
    found = accuracy_interval([0.2, 0.9, 0.4], 0.5, 10_000)
    assert found.low == 0
    assert found.high == 1


def test_routes_right_on_the_same_images_are_not_known_to_be_equal() -> None:
    found = differences(np.ones((2, 12)), np.ones((2, 1)), 0.25, 0)[1]
    assert found is not None
    low, high = found.interval_95 or (0, 0)
    assert low < -0.1
    assert high > 0.1


def test_an_interval_without_zero_and_a_small_p_come_together() -> None:
    for seed in range(60):
        random = np.random.default_rng(seed)
        right = (random.random((2, 40)) < [[0.9], [0.7]]).astype(float)
        found = differences(right, right.mean(axis=1, keepdims=True), 0.25, 0)[1]
        assert found is not None
        assert found.p is not None
        assert found.sure == (found.p < 0.05)


def test_an_accuracy_is_no_surer_than_its_groups_allow() -> None:
    """Of 20 patients with 50 images each, whose accuracies differ."""
    held = {"groups": 0, "images": 0}
    names = np.repeat(np.arange(20), 50).astype(str)
    for seed in range(100):
        random = np.random.default_rng(seed)
        right = (random.random((20, 50)) < random.beta(4, 1, 20)[:, None]).ravel().astype(float)
        for name, groups in (("groups", names), ("images", None)):
            found = accuracy_interval([right.mean()], 0.25, worth(right, groups))
            held[name] += found.low <= 0.8 <= found.high  # type: ignore[operator]
    assert held["groups"] >= 90
    assert held["images"] <= 65  # what there is to be wary of
    # All right, and yet no more than so many patients; each alone, as many as there are images.
    assert worth(np.ones(1000), names) <= 22
    assert worth(np.ones(1000), np.arange(1000)) == 1000
