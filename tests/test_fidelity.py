"""What a shortcut costs is measured, and one that is not true is not taken."""

import logging
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from featpipe import choice
from featpipe.backbones import Backbone
from featpipe.choice import choose
from featpipe.decode import Preprocessing
from featpipe.extract import extract_features
from featpipe.extractor import REFERENCE, prepare
from featpipe.fidelity import COSINE, Fidelity, compare_features
from featpipe.images import open_images
from featpipe.settings import ExtractSettings

ROWS = np.random.default_rng(0).normal(size=(3, 8)).astype(np.float32)


def test_the_same_features_are_wholly_true() -> None:
    assert compare_features({"a": ROWS}, {"a": ROWS.copy()}) == Fidelity(3, 1.0, 0.0)


def test_the_worst_image_and_layer_count() -> None:
    other = ROWS.copy()
    other[1] *= -1
    measured = compare_features({"a": ROWS, "b": ROWS}, {"a": ROWS, "b": other})
    assert measured.cosine == pytest.approx(-1)
    assert measured.error == pytest.approx(2)
    assert measured.cosine < COSINE


def test_the_error_is_a_share_of_the_rows_largest_value() -> None:
    other = ROWS.copy()
    other[2, 0] += 0.01 * np.abs(ROWS[2]).max()
    assert compare_features({"a": ROWS}, {"a": other}).error == pytest.approx(0.01, rel=1e-4)


def test_rows_of_zeros_are_like_each_other_and_like_nothing_else() -> None:
    zeros = np.zeros((1, 4), np.float32)
    assert compare_features({"a": zeros}, {"a": zeros}).cosine == 1
    assert compare_features({"a": zeros}, {"a": zeros + 1}).cosine < COSINE
    assert compare_features({"a": zeros + 1}, {"a": zeros}).cosine < COSINE


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_is_not_true(value: float) -> None:
    other = ROWS.copy()
    other[0, 0] = value
    measured = compare_features({"a": ROWS}, {"a": other})
    assert measured.cosine < COSINE
    assert np.isfinite([measured.cosine, measured.error]).all()  # JSON has nothing else


def test_what_holds_for_both_is_the_worse() -> None:
    one, two = Fidelity(4, 0.9999, 0.5), Fidelity(2, 0.99, 0.1)
    assert one.worse(two) == two.worse(one) == Fidelity(6, 0.99, 0.5)
    assert one.worse(None) == one


@pytest.mark.parametrize(
    ("few", "more", "images", "true"),
    [
        (0.99995, 0.0, 4, True),  # far within the limit: no more is asked
        (0.9985, 1.0, 4, False),
        (0.9993, 0.9996, 32, True),
        (0.9993, 0.9992, 32, False),  # within it, but too near
        (0.9993, 0.9980, 32, False),
    ],
)
def test_what_is_near_the_limit_is_tried_on_more_images(
    few: float, more: float, images: int, true: bool, monkeypatch: pytest.MonkeyPatch, shapes: Path
) -> None:
    made = prepare(delicate(), LOW)
    trial = choice.Trial(made, open_images(shapes))

    def compare(extractor: object, count: int) -> Fidelity:
        return Fidelity(count, few if count == choice.FEW else more, 0.0)

    monkeypatch.setattr(trial, "_compare", compare)
    measured, found = trial.measure(made)
    assert (measured.images, found) == (images, true)


class Delicate(nn.Module):
    """The difference of two large sums: bfloat16 has too few digits for it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 16, 3)
        self.last = nn.Linear(16, 2)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        maps = self.conv(images).mean((2, 3)) + 1000.0
        features: torch.Tensor = self.last((maps - 1000.0) * 10)
        return features


def delicate() -> Backbone:
    torch.manual_seed(0)
    plain = Preprocessing((32, 32), (32, 32))
    return Backbone("python", "m:f", "DEFAULT", Delicate(), plain)


LOW = ExtractSettings(precision="bfloat16", runtime="torch", batch_size=4)


def test_below_the_threshold_float32_is_taken_and_said(
    shapes: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    order = ("bfloat16", "float16", "float32")  # as if the hardware had it
    monkeypatch.setattr("featpipe.extractor.precisions", lambda device: order)
    with caplog.at_level(logging.WARNING, "featpipe"):
        cache = extract_features(
            shapes, delicate(), tmp_path / "f.h5", replace(LOW, precision="auto")
        )
    assert cache.spec.precision == cache.conditions["execution"]["precision"] == "float32"
    assert cache.conditions["fidelity"]["cosine"] >= 0.999
    assert "too far for the limit of 0.999. Trying torch, float32" in caplog.text


def test_what_was_asked_for_by_name_is_kept_and_said(
    shapes: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "featpipe"):
        cache = extract_features(
            shapes, delicate(), tmp_path / "f.h5", replace(LOW, decode="exact")
        )
    assert cache.spec.precision == "bfloat16"
    assert cache.conditions["fidelity"]["cosine"] < 0.999
    assert "Going on with torch, bfloat16, exact decoding, as asked for" in caplog.text


def test_the_reference_itself_is_not_measured(shapes: Path) -> None:
    asked = ExtractSettings(precision="float32", runtime="torch", decode="exact")
    made, measured = choose(prepare(delicate(), asked), open_images(shapes))
    assert (made.execution, measured) == (REFERENCE, None)


def test_without_a_picture_nothing_is_measured(tmp_path: Path) -> None:
    (tmp_path / "i").mkdir()
    (tmp_path / "i" / "empty.jpg").touch()
    with extract_features(tmp_path / "i", delicate(), tmp_path / "f.h5", LOW) as cache:
        assert "fidelity" not in cache.conditions


def test_rows_of_several_runs_have_the_worst_of_both(shapes: Path, tmp_path: Path) -> None:
    asked = replace(LOW, decode="fast")
    for name in ("circle", "square"):
        shutil.copytree(shapes / name, tmp_path / "i" / name)
    out = tmp_path / "f.h5"
    with extract_features(tmp_path / "i", delicate(), out, asked) as cache:
        first = cache.conditions
    shutil.copytree(shapes / "triangle", tmp_path / "i" / "triangle")
    with extract_features(tmp_path / "i", delicate(), out, asked) as cache:
        second = cache.conditions
    assert second["fidelity"]["images"] > first["fidelity"]["images"]
    assert second["fidelity"]["cosine"] <= first["fidelity"]["cosine"]
    (tmp_path / "i" / "circle").rename(tmp_path / "i" / "ring")  # nothing is computed
    with extract_features(tmp_path / "i", delicate(), out, asked) as cache:
        assert "ring" in cache.table.classes
        third = cache.conditions
    for name in ("execution", "fidelity", "throughput"):
        assert third[name] == second[name]
