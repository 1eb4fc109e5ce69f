"""What changed between two comparisons."""

from dataclasses import replace

import numpy as np
import pytest
from made_results import ROUTES, make_results

from featpipe.changes import changes_between
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
