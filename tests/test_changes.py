"""What changed between two comparisons."""

from dataclasses import replace

import numpy as np
import pytest
from made_results import ROUTES, make_results

from featpipe.changes import RouteChange, changes_between
from featpipe.route_results import Predictions


def test_nothing_changed_says_so() -> None:
    results = make_results(100)
    changes = changes_between(results, results)
    assert not changes.added
    assert not changes.removed
    assert not changes.conditions
    assert not any(one.sure for one in changes.routes)
    assert all(one.difference == 0 for one in changes.routes)
    assert all("as accurate as before" in sentence for sentence in changes.sentences)


def test_routes_come_and_go_and_conditions_differ() -> None:
    old, new = make_results(100, routes=ROUTES[1:]), make_results(100, routes=ROUTES[:-1])
    new = replace(new, design={**new.design, "seed": 7})
    changes = changes_between(old, new)
    assert changes.added == [ROUTES[0][0]]
    assert changes.removed == [ROUTES[-1][0]]
    assert ("design.seed", 0, 7) in [(c.where, c.before, c.after) for c in changes.conditions]
    assert f"No longer there: {ROUTES[-1][0]}." in changes.sentences


def test_images_are_told_apart_by_their_ids() -> None:
    old = make_results(100)
    new = make_results(100)
    labels = [(new.items.labels[0] + 1) % 5, *new.items.labels[1:]]
    ids = [*new.items.ids[:-3], "x", "y", "z"]
    changes = changes_between(old, replace(new, items=replace(new.items, ids=ids, labels=labels)))
    assert changes.images == {"added": 3, "removed": 3, "relabelled": 1}
    assert {one.n for one in changes.routes} == {96}


def test_what_was_predicted_by_both_is_paired_and_else_it_is_not() -> None:
    old, new = make_results(300, seed=1), make_results(300, seed=2)
    paired = changes_between(old, new).routes
    assert {one.method for one in paired} == {"paired"}
    bare = replace(new, routes=[replace(route, predictions=None) for route in new.routes])
    apart = changes_between(old, bare).routes
    assert {one.method for one in apart} == {"independent"}
    for one in (*paired, *apart):
        assert one.interval_95 is not None
        assert one.interval_95[0] <= one.difference <= one.interval_95[1]
        assert one.sure == (not one.interval_95[0] <= 0 <= one.interval_95[1])


@pytest.mark.parametrize("n", [60, 400])
def test_the_paired_interval_holds_what_is_true(n: int) -> None:
    rng, base = np.random.default_rng(0), make_results(n, ("a", "b"), ROUTES[:1])
    labels = np.array(base.items.labels)
    held = 0
    for _ in range(200):
        both = []
        for chance in (0.80, 0.88):
            predicted = np.where(rng.random(n) < chance, labels, 1 - labels)
            said = Predictions(list(range(n)), predicted.tolist(), [0.9] * n, [0.9] * n)
            both.append(replace(base, routes=[replace(base.routes[0], predictions=said)]))
        (one,) = changes_between(*both).routes
        assert one.interval_95 is not None
        held += one.interval_95[0] <= 0.08 <= one.interval_95[1]
    assert held >= 180


def test_a_change_is_told_between_accuracies_that_it_is_the_difference_of() -> None:
    """Of repeated folds, accuracies are means of all, and what is paired is of the first."""
    cnn = ROUTES[4:5]
    old, new = make_results(300, routes=cnn, seed=1), make_results(300, routes=cnn)
    reported = new.routes[0].accuracy
    assert reported is not None
    same = replace(new, routes=[replace(new.routes[0], accuracy=old.routes[0].accuracy)])
    (one,) = changes_between(old, same).routes
    assert one.method == "paired"
    assert one.difference != 0
    assert one.after - one.before == pytest.approx(one.difference)
    assert one.after == pytest.approx(reported.value)


def made_change(groups: list[str] | None, routes: int = 1) -> RouteChange:
    """Six of 20 groups of ten images are won as a whole."""
    base = make_results(200, ("a", "b"), ROUTES[:1])
    labels, both = np.array(base.items.labels), []
    for lost in (np.arange(200) % 20 < 6, np.zeros(200, bool)):
        predicted = np.where(lost, 1 - labels, labels)
        said = Predictions(list(range(200)), predicted.tolist(), [0.9] * 200, [0.9] * 200)
        named = [
            replace(base.routes[0], name=f"route {number}", predictions=said)
            for number in range(routes)
        ]
        both.append(replace(base, items=replace(base.items, groups=groups), routes=named))
    return changes_between(*both).routes[0]


def test_changes_know_groups_and_how_many_routes_there_are() -> None:
    def width(one: RouteChange) -> float:
        assert one.interval_95 is not None
        assert one.interval_95[0] <= one.difference <= one.interval_95[1]
        return one.interval_95[1] - one.interval_95[0]

    plain = made_change(None)
    assert plain.difference == pytest.approx(0.3)
    assert width(made_change([str(n % 20) for n in range(200)])) > 2 * width(plain)
    assert width(made_change([""] * 200)) == width(plain)
    assert width(made_change(None, 10)) > 1.3 * width(plain)
    assert not made_change(["the only one"] * 200).sure
