"""The comparison: every route on the same rows, by the same clock."""

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from featpipe import checkpoint
from featpipe.compare import Comparison, compare_routes
from featpipe.images import open_images
from featpipe.result import Result
from featpipe.settings import (
    ExtractSettings,
    ImageSettings,
    ScratchSettings,
    TrainSettings,
)

DATA = Path(__file__).parents[1] / "data"
NET = "squeezenet1_1@random"
EXTRACT = ExtractSettings(input_size=64)
TRAIN = TrainSettings(device="cpu")
SCRATCH = ScratchSettings(epochs=2, input_size=32)
HEADS = ("linear", "sklearn-logistic")


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the comparison fills."""
    return tmp_path_factory.mktemp("compare")


@pytest.fixture(scope="module")
def comparison(out: Path) -> Comparison:
    """All routes over the sample images with their given split."""
    return compare_routes(
        DATA / "shapes.csv",
        [NET],
        HEADS,
        out,
        extract=EXTRACT,
        train=TRAIN,
        scratch_settings=SCRATCH,
        image_settings=ImageSettings(root=str(DATA / "shapes")),
    )


@pytest.fixture(scope="module")
def damaged(tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    """The sample images with one file cut in half."""
    folder = tmp_path_factory.mktemp("damaged")
    shutil.copytree(DATA / "shapes", folder / "shapes")
    cut = folder / "shapes" / "circle" / "circle_01.jpg"
    cut.write_bytes(cut.read_bytes()[:300])
    return compare_routes(
        folder / "shapes",
        ["pixels"],
        out=folder / "out",
        train=TRAIN,
        scratch_settings=SCRATCH,
    )


def test_every_route_is_there_once(comparison: Comparison) -> None:
    assert sorted(route.name for route in comparison.routes) == sorted(
        [
            "CNN from scratch",
            "pixels + linear",
            "pixels + sklearn-logistic",
            "squeezenet1_1 (random weights) + linear",
            "squeezenet1_1 (random weights) + sklearn-logistic",
        ]
    )


def test_every_route_is_scored_on_the_same_rows(comparison: Comparison) -> None:
    for route in comparison.routes:
        scores = route.result.scores
        assert {name: part.n for name, part in scores.items()} == {
            "train": 18,
            "val": 6,
            "test": 12,
        }
        assert route.result.conditions["split"]["origin"] == "as given"
        for part, rows in comparison.split.parts().items():
            images = [row["images"] for row in scores[part].per_class]
            assert images == [len(rows) // 3] * 3


def test_no_row_is_in_two_parts(comparison: Comparison) -> None:
    rows = np.concatenate(list(comparison.split.parts().values()))
    assert sorted(rows) == list(range(36))


def test_the_best_route_comes_first(comparison: Comparison) -> None:
    accuracies = [route.result.scores["test"].accuracy for route in comparison.routes]
    assert accuracies == sorted(accuracies, reverse=True)


def test_cold_includes_warm(comparison: Comparison) -> None:
    for route in comparison.routes:
        assert route.seconds_cold >= route.seconds_warm > 0


def test_the_files_say_what_was_returned(comparison: Comparison, out: Path) -> None:
    document = json.loads((out / "compare.json").read_text(encoding="utf-8"))
    assert document == json.loads(json.dumps(comparison.to_dict()))
    with (out / "compare.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["route"] for row in rows] == [route.name for route in comparison.routes]
    for row, route in zip(rows, comparison.routes, strict=True):
        assert float(row["test_accuracy"]) == route.result.scores["test"].accuracy
        low, high = float(row["interval_95_low"]), float(row["interval_95_high"])
        assert low <= float(row["test_accuracy"]) <= high
        assert int(row["parameters"]) == route.result.parameters


def test_cached_features_are_used_again(comparison: Comparison, out: Path) -> None:
    before = {path.name: path.read_bytes() for path in out.glob("*.h5")}
    done: dict[str, int] = {}

    def progress(name: str):
        return lambda n, total: done.__setitem__(name, n)

    again = compare_routes(
        DATA / "shapes.csv",
        [NET],
        HEADS,
        out,
        scratch=False,
        extract=EXTRACT,
        train=TRAIN,
        image_settings=ImageSettings(root=str(DATA / "shapes")),
        on_progress=progress,
    )
    assert done == {}  # no image went through a backbone
    assert {path.name: path.read_bytes() for path in out.glob("*.h5")} == before
    first = {route.name: route.result.to_dict()["scores"] for route in comparison.routes}
    for route in again.routes:
        assert route.result.to_dict()["scores"] == first[route.name]
        # What extraction took is still counted, from the record of when it ran.
        extraction = route.result.conditions["extraction_seconds"]
        assert extraction > 0
        assert route.seconds_cold == pytest.approx(extraction + route.seconds_warm)


def test_without_scratch_there_is_no_cnn(tmp_path: Path) -> None:
    found = compare_routes(DATA / "shapes", ["pixels"], out=tmp_path, scratch=False, train=TRAIN)
    assert [route.name for route in found.routes] == ["pixels + linear"]


def test_a_broken_image_is_left_out_of_every_route(damaged: Comparison) -> None:
    bad = open_images(damaged.images).table.ids.tolist().index("circle/circle_01.jpg")
    used = np.concatenate(list(damaged.split.parts().values()))
    assert sorted({*range(36)} - set(used.tolist())) == [bad]
    assert len(damaged.routes) == 2
    for route in damaged.routes:
        assert sum(scores.n for scores in route.result.scores.values()) == 35


def test_without_test_rows_the_validation_accuracy_ranks(damaged: Comparison) -> None:
    accuracies = [route.result.scores["val"].accuracy for route in damaged.routes]
    assert accuracies == sorted(accuracies, reverse=True)
    assert all(route.row()["test_accuracy"] is None for route in damaged.routes)
    assert all(route.row()["interval_95"] for route in damaged.routes)


def test_each_of_several_layers_is_a_route(tmp_path: Path) -> None:
    extract = ExtractSettings(layer=("features.2", "features.12"), pool="avg", input_size=64)
    found = compare_routes(
        DATA / "shapes", [NET], out=tmp_path, scratch=False, extract=extract, train=TRAIN
    )
    assert {route.name for route in found.routes} == {
        "squeezenet1_1 (random weights) features.2 + linear",
        "squeezenet1_1 (random weights) features.12.cat + linear",
        "pixels + linear",
    }


def test_an_interrupted_cnn_is_gone_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "SECONDS", 0.0)

    def stop(name: str) -> Callable[[int, int], None]:
        def report(done: int, _: int) -> None:
            if name == "CNN from scratch" and done == 2:
                raise KeyboardInterrupt

        return report

    def run(out: str, on_progress: Callable[[str], Any] | None = None) -> Result:
        settings = ScratchSettings(epochs=3, input_size=16)
        found = compare_routes(
            DATA / "shapes", ["pixels"], out=tmp_path / out, train=TRAIN,
            scratch_settings=settings, on_progress=on_progress,
        )  # fmt: skip
        assert not (tmp_path / out / "unfinished").exists()
        return next(one.result for one in found.routes if one.name == "CNN from scratch")

    whole = run("whole")
    with pytest.raises(KeyboardInterrupt):
        run("stopped", stop)
    assert list((tmp_path / "stopped" / "unfinished").iterdir())
    again = run("stopped")
    assert again.conditions["resumed"]
    assert not whole.conditions["resumed"]
    assert again.curves == whole.curves
    assert np.array_equal(again.proba["val"], whole.proba["val"])
