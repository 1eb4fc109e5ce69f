"""Sentences that a layman reads."""

from dataclasses import replace

from featpipe.route_results import Accuracy, Difference, RouteResult, Seconds
from featpipe.verdict import verdict

BEST = RouteResult(
    "VGG16 + logistic", "head", accuracy=Accuracy(0.9, (0.87, 0.93), 400, "folds"),
    seconds=Seconds(20, 2, 18, 2),
)  # fmt: skip
CNN = RouteResult(
    "CNN from scratch", "scratch", accuracy=Accuracy(0.728, (0.7, 0.76), 400, "folds"),
    seconds=Seconds(600, 590, 10, 590),
    difference=Difference(-0.172, (-0.203, -0.141), 0.001, True),
)  # fmt: skip
CLOSE = replace(
    BEST, name="VGG16 + knn", seconds=Seconds(2, 1, 1, 1),
    difference=Difference(-0.01, (-0.03, 0.01), 0.4, False),
)  # fmt: skip


def test_a_sure_difference_is_told_with_its_interval_and_its_cost() -> None:
    found = verdict([BEST, CNN], "folds")
    assert found.best == "VGG16 + logistic"
    assert found.sentences == [
        "VGG16 + logistic beats CNN from scratch by 17.2 points (95 % interval 14.1 to 20.3) and "
        "trains 30 times faster."
    ]


def test_what_the_data_cannot_tell_is_said_so() -> None:
    unsure = replace(CNN, difference=Difference(-0.012, (-0.034, 0.01), 0.3, False))
    [first] = verdict([BEST, unsure], "folds").sentences
    assert first == (
        "The data cannot tell whether VGG16 + logistic or CNN from scratch is better: they differ "
        "by 1.2 points (95 % interval -1.0 to 3.4). VGG16 + logistic trains 30 times faster."
    )


def test_the_cheapest_of_equals_is_named() -> None:
    sentences = verdict([BEST, CLOSE, CNN], "folds").sentences
    assert "beats CNN from scratch" in sentences[0]
    assert sentences[1] == (
        "The data cannot tell VGG16 + logistic from VGG16 + knn; of these VGG16 + knn is the "
        "cheapest, 10 times faster."
    )


def test_a_winner_that_costs_more_is_told_so() -> None:
    cheap = replace(CNN, seconds=Seconds(1, 1, 0, 1))
    [first] = verdict([BEST, cheap], "folds").sentences
    assert first.endswith("but CNN from scratch trains 20 times faster.")


def test_what_may_mislead_is_said() -> None:
    blind = replace(BEST, random_weights=True, candidates=5)
    text = " ".join(verdict([blind, CNN], "val").sentences)
    assert "also selected epochs" in text
    assert "chose among 5 candidates, CNN from scratch among 1" in text
    assert "was learnt from any image" in text


def test_the_test_images_have_the_last_word() -> None:
    test = {"n": 50, "accuracy": 0.88, "accuracy_interval_95": [0.76, 0.94]}
    text = verdict([replace(BEST, test=test), CNN], "folds").sentences[-1]
    assert text == (
        "On 50 test images, which selected nothing, VGG16 + logistic has 88.0 % right (95 % "
        "interval 76.0 to 94.0)."
    )


def test_failures_are_told_and_may_be_all_there_is() -> None:
    failed = RouteResult("x", "head", "failed", "no weights\nsecond line")
    assert verdict([failed], "folds").best is None
    assert verdict([BEST, failed], "folds").sentences == [
        "VGG16 + logistic has an accuracy of 90.0 % (95 % interval 87.0 to 93.0); there is nothing "
        "to compare.",
        "x could not be run: no weights.",
    ]
