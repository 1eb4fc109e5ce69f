"""The comparison: every route on the same rows, by the same clock, kept and gone on with."""

import csv
import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from featpipe import trials
from featpipe.calibration import wilson
from featpipe.compare import Comparison, compare_routes
from featpipe.compare_plan import plan_comparison
from featpipe.errors import RouteError, SplitError
from featpipe.images import open_images
from featpipe.results import Results
from featpipe.route_results import RouteResult, SizePoint
from featpipe.routes import parse_route
from featpipe.settings import (
    CompareSettings,
    ExtractSettings,
    ImageSettings,
    ScratchSettings,
)

DATA = Path(__file__).parents[1] / "data"
NET = "squeezenet1_1@random"
EXTRACT = ExtractSettings(input_size=64)
SETTINGS = CompareSettings(folds=3, budgets=(1, 2), device="cpu")
SCRATCH = ScratchSettings(epochs=2, input_size=32)
HEADS = ("linear", "sklearn-logistic")
BOTH: tuple[Callable[..., object], ...] = (compare_routes, plan_comparison)
LINES = ("scratch=two-layer epochs=2 input_size=32 seed=1", "pixels=centroid", "pixels=knn")
TIMES = {"seconds", "created", "images_per_second", "cost", "peak_bytes", "verdict", "peak",
         "decode_seconds", "predict_seconds", "extraction_seconds", "fit_seconds_of_all",
         "resumed"}  # fmt: skip


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the comparison fills."""
    return tmp_path_factory.mktemp("compare")


def simple(out: Path, **changed: Any) -> Comparison:
    """All routes of the simple call over the sample images with their given split."""
    given = {
        "extract": EXTRACT,
        "settings": SETTINGS,
        "scratch_settings": SCRATCH,
        "image_settings": ImageSettings(root=str(DATA / "shapes")),
    }
    return compare_routes(DATA / "shapes.csv", [NET], HEADS, out, **{**given, **changed})


@pytest.fixture(scope="module")
def comparison(out: Path) -> Comparison:
    """The simple call."""
    return simple(out)


def of(found: Comparison, name: str) -> RouteResult:
    """A route by its name."""
    return next(route for route in found.results.routes if route.name == name)


def without_times(value: Any) -> Any:
    """Results without what a clock says."""
    if isinstance(value, dict):
        return {name: without_times(one) for name, one in value.items() if name not in TIMES}
    return [without_times(one) for one in value] if isinstance(value, list) else value


def test_every_route_is_there_once(comparison: Comparison) -> None:
    assert sorted(route.name for route in comparison.results.routes) == sorted(
        [
            "CNN from scratch",
            "pixels + linear",
            "pixels + sklearn-logistic",
            "squeezenet1_1 (random weights) + linear",
            "squeezenet1_1 (random weights) + sklearn-logistic",
        ]
    )
    assert all(route.finished for route in comparison.results.routes)


def test_every_route_is_scored_on_the_same_rows(comparison: Comparison) -> None:
    train, test = comparison.split.train, comparison.split.test
    assert len(train) + len(comparison.split.val) == 24
    assert len(test) == 12
    for route in comparison.results.routes:
        assert route.predictions is not None
        assert route.predictions.rows == train.tolist()
        assert route.accuracy is not None
        assert (route.accuracy.part, route.accuracy.n) == ("folds", len(train))
        assert len(route.folds.accuracy) == 3
        assert route.test is not None
        assert route.test["n"] == 12
    assert comparison.results.design["rows"] == {"train": 24, "test": 12}


def test_no_scored_row_selects_or_is_fitted_on(comparison: Comparison) -> None:
    test = set(comparison.split.test.tolist())
    for one in comparison.rounds.every:
        parts = [set(rows.tolist()) for rows in (one.fit, one.select, one.scored)]
        assert len(set.union(*parts)) == sum(map(len, parts))
        assert one.name == "test" or not test & set.union(*parts)
    scored = np.concatenate([one.scored for one in comparison.rounds.ranking])
    assert sorted(scored) == comparison.split.train.tolist()


def test_no_two_folds_draw_the_same(comparison: Comparison) -> None:
    # One seed in all folds makes its luck look like the route's own: of two copies of a perceptron
    # that differ in their seed, 12 of 40 comparisons called one better.
    drawn = [one.seed for one in comparison.rounds.ranking]
    assert len(set(drawn)) == len(drawn) == 3


def test_the_best_route_comes_first_and_the_others_are_told_from_it(
    comparison: Comparison,
) -> None:
    best, *others = comparison.results.routes
    assert comparison.results.verdict.best == best.name
    assert best.difference is None
    for route in others:
        assert route.difference is not None
        assert route.difference.value <= 0
        low, high = route.difference.interval_95 or (0, 0)
        assert low <= route.difference.value <= high
        assert route.difference.sure == (high < 0)


def test_accuracy_is_the_mean_of_the_folds_and_within_its_interval(comparison: Comparison) -> None:
    for route in comparison.results.routes:
        assert route.accuracy is not None
        assert route.accuracy.value == pytest.approx(np.mean(route.folds.accuracy))
        low, high = route.accuracy.interval_95 or (1, 0)
        assert 0 <= low <= route.accuracy.value <= high <= 1


def test_costs_are_told_for_every_route(comparison: Comparison) -> None:
    for route in comparison.results.routes:
        assert route.seconds is not None
        assert route.seconds.cold == pytest.approx(route.seconds.extract + route.seconds.fit)
        assert route.seconds.cold > route.seconds.warm > 0
        assert route.parameters
        assert route.images_per_second
        assert route.peak_bytes
        assert "memory" in route.conditions["peak"]
        assert route.cost
        seconds = [point.seconds for point in route.cost]
        assert seconds == sorted(seconds)


def test_heads_have_label_budgets_and_networks_say_why_not(comparison: Comparison) -> None:
    for route in comparison.results.routes:
        if route.kind == "scratch":
            assert route.budget == []
            assert "--network-budgets" in route.conditions["budget"]
        else:
            assert [point.size for point in route.budget] == [1, 2, None]


def test_networks_have_label_budgets_where_they_are_asked_for(tmp_path: Path) -> None:
    settings = CompareSettings(folds=2, budgets=(2,), network_budgets=True, device="cpu")
    routes = parse_route("scratch=two-layer epochs=1 input_size=32")
    found = compare_routes(DATA / "shapes", out=tmp_path, settings=settings, routes=routes)
    assert [point.size for point in found.results.routes[0].budget] == [2, None]


def test_the_files_say_what_was_returned(comparison: Comparison, out: Path) -> None:
    assert Results.load(out) == comparison.results
    with (out / "results.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["route"] for row in rows] == [route.name for route in comparison.results.routes]


def test_what_is_finished_is_not_run_again(
    comparison: Comparison, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("something ran again")

    for name in ("fit_and_score", "train_from_scratch", "SharedRows"):
        monkeypatch.setattr(trials, name, never)
    before = {path.name: path.read_bytes() for path in out.glob("*.h5")}
    done: dict[str, int] = {}
    again = simple(out, on_progress=lambda name: lambda n, total: done.__setitem__(name, n))
    assert done == {}  # no image went through a backbone
    assert {path.name: path.read_bytes() for path in out.glob("*.h5")} == before
    mine, theirs = again.to_dict(), comparison.to_dict()
    assert {**mine, "created": ""} == {**theirs, "created": ""}


def test_a_route_more_runs_alone(
    comparison: Comparison, out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(out, tmp_path / "more")
    run: list[str] = []
    real = trials.SharedRows

    def counted(*given: Any) -> Any:
        run.append(type(given[-1]).__module__)
        return real(*given)

    monkeypatch.setattr(trials, "SharedRows", counted)
    found = simple(tmp_path / "more", routes=parse_route("pixels=centroid"))
    assert run == ["featpipe.heads.centroid"]
    kept = {route.name: without_times(vars(route)) for route in comparison.results.routes}
    for route in found.results.routes:
        if route.name in kept:
            assert route.folds == kept[route.name]["folds"]


class Stopped(BaseException):
    """As if the process had been killed."""


def test_killed_at_any_place_it_ends_with_the_same_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    routes = [route for line in LINES for route in parse_route(line)]

    def run(out: Path) -> dict[str, Any]:
        found = compare_routes(DATA / "shapes", out=out, settings=SETTINGS, routes=routes)
        return without_times(found.to_dict())

    whole = run(tmp_path / "whole")
    from featpipe import durable

    real, left = durable.os.replace, 0

    def replace_or_stop(*given: Any) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            raise Stopped
        real(*given)

    kills = 0
    with monkeypatch.context() as patch:
        patch.setattr(durable.os, "replace", replace_or_stop)
        for after in (1, 2, 3, 5, 8, 4, 3, 6, 7, 2, 5):
            left = after
            try:
                run(tmp_path / "killed")
            except Stopped:
                kills += 1
    assert kills >= 6
    assert run(tmp_path / "killed") == whole
    assert not (tmp_path / "killed" / "unfinished").exists()


def test_a_damaged_trial_is_run_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def run() -> dict[str, Any]:
        found = compare_routes(
            DATA / "shapes", out=tmp_path, settings=SETTINGS, routes=parse_route("pixels=centroid")
        )
        return without_times(found.to_dict())

    before = run()
    file = next((tmp_path / "routes").rglob("*.trial"))
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    with caplog.at_level(logging.WARNING):
        assert run() == before
    assert "its checksum is another" in caplog.text


def test_a_failed_route_is_told_and_stops_no_other(tmp_path: Path) -> None:
    lines = [
        "backbone=squeezenet1_1@/no/such.pth",
        "pixels=centroid",
        "pixels=linear options.lr=1e9",
    ]
    routes = [route for line in lines for route in parse_route(line)]
    found = compare_routes(DATA / "shapes", out=tmp_path, settings=SETTINGS, routes=routes)
    failed = of(found, "squeezenet1_1 + linear")
    assert failed.status == "failed"
    assert "no/such.pth" in failed.reason
    assert of(found, "pixels + centroid").finished
    assert found.results.routes[-1].status == "failed"
    assert "squeezenet1_1 + linear could not be run" in " ".join(found.results.verdict.sentences)
    assert Results.load(tmp_path) == found.results


def test_the_only_route_fails_as_it_is(tmp_path: Path) -> None:
    from featpipe.errors import WeightsError

    with pytest.raises(WeightsError, match="no/such"):
        compare_routes(
            DATA / "shapes", out=tmp_path, settings=SETTINGS,
            routes=parse_route("backbone=squeezenet1_1@/no/such.pth"),
        )  # fmt: skip


def test_candidates_are_chosen_by_selecting_rows_within_the_budget(tmp_path: Path) -> None:
    routes = parse_route("pixels=sklearn-logistic sweep.C=0.001,1")
    settings = CompareSettings(folds=2, budgets=(), device="cpu")
    found = compare_routes(DATA / "shapes", out=tmp_path, settings=settings, routes=routes)
    route = found.results.routes[0]
    assert route.candidates == 2
    assert len(route.conditions["chosen"]) == 2
    assert [one["options"] for one in route.conditions["tried"]] == [{"C": 0.001}, {"C": 1}]
    with pytest.raises(RouteError, match="has 2 candidates, more than the 1"):
        compare_routes(
            DATA / "shapes", out=tmp_path, settings=CompareSettings(select_budget=1), routes=routes
        )
    with pytest.raises(RouteError, match="no rows to choose among them"):
        compare_routes(
            DATA / "shapes", out=tmp_path, settings=CompareSettings(val=0.0), routes=routes
        )


def test_a_network_is_fine_tuned_on_shared_features(tmp_path: Path) -> None:
    line = f"backbone={NET} input_size=64 cut=features.11 options.epochs=1"
    settings = CompareSettings(folds=2, budgets=(), device="cpu")
    routes = [*parse_route(line), *parse_route(line + " seed=3")]
    found = compare_routes(DATA / "shapes", out=tmp_path, settings=settings, routes=routes)
    assert {route.kind for route in found.results.routes} == {"finetune"}
    assert len(list(tmp_path.glob("features-*.h5"))) == 1
    names = {route.name for route in found.results.routes}
    assert "squeezenet1_1 (random weights) fine-tuned from features.11 (seed 3)" in names


def test_without_folds_one_split_is_scored(tmp_path: Path) -> None:
    settings = CompareSettings(folds=0, budgets=(), device="cpu")
    found = simple(tmp_path, settings=settings, scratch=False)
    for route in found.results.routes:
        assert route.accuracy is not None
        assert (route.accuracy.part, route.accuracy.n) == ("test", 12)
        assert route.folds.accuracy == []
        assert route.test is not None
        assert route.test["accuracy"] == route.accuracy.value


def test_without_test_rows_the_validation_ranks_and_that_is_said(tmp_path: Path) -> None:
    settings = CompareSettings(folds=0, budgets=(1,), device="cpu")
    found = compare_routes(
        DATA / "shapes", ["pixels"], out=tmp_path, scratch=False, settings=settings
    )
    route = found.results.routes[0]
    assert route.accuracy is not None
    assert route.accuracy.part == "val"
    assert "also selected epochs" in " ".join(found.results.verdict.sentences)


def test_a_broken_image_is_left_out_of_every_route(tmp_path: Path) -> None:
    shutil.copytree(DATA / "shapes", tmp_path / "shapes")
    cut = tmp_path / "shapes" / "circle" / "circle_01.jpg"
    cut.write_bytes(cut.read_bytes()[:300])
    for number, routes in enumerate((LINES[:1], LINES[1:2])):
        found = compare_routes(
            tmp_path / "shapes",
            out=tmp_path / f"out{number}",
            settings=SETTINGS,
            routes=[one for line in routes for one in parse_route(line)],
        )
        bad = open_images(tmp_path / "shapes").table.ids.tolist().index("circle/circle_01.jpg")
        used = np.concatenate(list(found.split.parts().values()))
        assert sorted({*range(36)} - set(used.tolist())) == [bad]
        assert found.results.images.unusable == 1
        assert found.results.items.parts[bad] == ""


def test_each_of_several_layers_is_a_route_of_one_extraction(tmp_path: Path) -> None:
    extract = ExtractSettings(layer=("features.2", "features.12"), pool="avg", input_size=64)
    settings = CompareSettings(folds=2, budgets=(), device="cpu")
    found = compare_routes(
        DATA / "shapes", [NET], out=tmp_path, scratch=False, extract=extract, settings=settings
    )
    assert {route.name for route in found.results.routes} == {
        "squeezenet1_1 (random weights) features.2 + linear",
        "squeezenet1_1 (random weights) features.12 + linear",
        "pixels + linear",
    }
    assert len(list(tmp_path.glob("features-squeezenet*.h5"))) == 1


def test_a_layer_more_leaves_the_others_features(tmp_path: Path) -> None:
    settings = CompareSettings(folds=2, budgets=(), device="cpu")
    lines = [f"backbone={NET} input_size=64 pool=avg layer=features.{n}" for n in (2, 12)]
    for count in (1, 2):
        routes = [one for line in lines[:count] for one in parse_route(line)]
        compare_routes(DATA / "shapes", out=tmp_path, settings=settings, routes=routes)
    assert len(list(tmp_path.glob("features-squeezenet*.h5"))) == 2
    index = json.loads((tmp_path / "features.json").read_text())
    assert [entry["layers"] for [*some] in index.values() for entry in some] == [
        ["features.2"], ["features.12"],
    ]  # fmt: skip


def test_groups_stay_together(tmp_path: Path) -> None:
    settings = CompareSettings(folds=2, budgets=(), group=r"(\d)\.", device="cpu", val=0.0)
    found = compare_routes(
        DATA / "shapes", out=tmp_path, settings=settings, routes=parse_route("pixels=centroid")
    )
    groups = np.array(found.results.items.groups)
    for one in found.rounds.ranking:
        assert not set(groups[one.fit]) & set(groups[one.scored])


def test_nothing_to_compare_and_images_without_labels_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RouteError, match="nothing to compare"):
        compare_routes(DATA / "shapes", out=tmp_path)
    (tmp_path / "flat").mkdir()
    shutil.copy(next((DATA / "shapes").rglob("*.jpg")), tmp_path / "flat")
    with pytest.raises(SplitError, match="label"):
        compare_routes(tmp_path / "flat", ["pixels"], out=tmp_path / "out")


def test_copies_stay_on_one_side_and_are_listed(tmp_path: Path) -> None:
    shutil.copytree(DATA / "shapes", tmp_path / "shapes")
    for name in ("circle", "square"):
        file = min((tmp_path / "shapes" / name).iterdir())
        shutil.copy(file, file.with_name(f"again_{file.name}"))
    source = open_images(tmp_path / "shapes")
    ids = source.table.ids.tolist()
    again = [row for row, name in enumerate(ids) if "again_" in name]
    assert len(again) == 2
    pairs = [(ids.index(ids[row].replace("again_", "")), row) for row in again]

    def run(policy: str) -> Comparison:
        settings = CompareSettings(folds=3, budgets=(), leaks=policy, device="cpu")
        routes = parse_route("pixels=centroid")
        return compare_routes(source, out=tmp_path / policy, settings=settings, routes=routes)

    grouped = run("group")
    assert grouped.results.leaks is not None
    assert grouped.results.leaks.policy == "group"
    assert sorted(map(sorted, grouped.results.leaks.exact)) == sorted(map(sorted, pairs))
    for one in grouped.rounds.every:
        for rows in (one.fit, one.select, one.scored):
            for first, other in pairs:
                assert (first in rows) == (other in rows)
    dropped = run("drop")
    assert len(dropped.split.train) == 36
    assert len(run("keep").split.train) == 38


def test_copies_are_looked_for_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from featpipe import guard

    def run(*lines: str) -> Comparison:
        routes = [route for line in lines for route in parse_route(line)]
        return compare_routes(DATA / "shapes", out=tmp_path, settings=SETTINGS, routes=routes)

    first = run("pixels=centroid")
    monkeypatch.setattr(guard, "find_duplicates", lambda *_: pytest.fail("looked again"))
    second = run("pixels=centroid", f"backbone={NET} input_size=64")
    assert second.results.leaks == first.results.leaks
    assert second.split.train.tolist() == first.split.train.tolist()


def test_images_of_one_group_make_the_accuracy_less_sure(tmp_path: Path) -> None:
    widths = []
    for group in ("none", r"(\d)\."):
        settings = CompareSettings(folds=0, test=0.3, budgets=(), group=group, device="cpu")
        found = compare_routes(
            DATA / "shapes", out=tmp_path, settings=settings, routes=parse_route("pixels=centroid")
        )
        route = found.results.routes[0]
        assert route.accuracy is not None
        assert route.test is not None
        low, high = route.accuracy.interval_95 or (0, 0)
        assert [low, high] == pytest.approx(route.test["accuracy_interval_95"])
        plain = wilson(round(route.accuracy.value * route.accuracy.n), route.accuracy.n)
        widths.append((high - low) / (plain[1] - plain[0]))
    assert widths[0] == pytest.approx(1)
    assert widths[1] > 1.2


def split_file(path: Path, parts: str, folds: bool = False) -> str:
    """A split of the sample images: the parts of each class's images, in turn; three folds."""
    ids, seen = open_images(DATA / "shapes").table.ids, dict[str, int]()
    lines = ["id,part,fold1" if folds else "id,part"]
    for name in ids:
        number = seen[str(name).split("/")[0]] = seen.get(str(name).split("/")[0], -1) + 1
        part = {"r": "train", "v": "val", "t": "test"}[parts[number % len(parts)]]
        fold = "" if not folds else f",{number % 3 + 1}" if part == "train" else ","
        lines.append(f"{name},{part}{fold}")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(path)


def test_a_single_class_to_train_on_is_refused(tmp_path: Path) -> None:
    text = Path(split_file(tmp_path / "all.csv", "rrrt")).read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if "circle" in line or ",part" in line]
    (tmp_path / "split.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    settings = CompareSettings(split=str(tmp_path / "split.csv"), folds=0, device="cpu")
    with pytest.raises(SplitError, match="only one class among the training images: circle"):
        compare_routes(
            DATA / "shapes", out=tmp_path, settings=settings, routes=parse_route("pixels=centroid")
        )


def test_candidates_are_refused_where_the_split_has_no_rows_to_choose_among(
    tmp_path: Path,
) -> None:
    routes = parse_route("pixels=knn sweep.k=1,3")
    given: dict[str, Any] = {"budgets": (), "val": 0.0, "device": "cpu"}

    def run(parts: str, folds: int) -> Comparison:
        path = split_file(tmp_path / "split.csv", parts)
        settings = CompareSettings(split=path, folds=folds, **given)
        return compare_routes(DATA / "shapes", out=tmp_path, settings=settings, routes=routes)

    for parts, folds in (("rrt", 0), ("rrrrt", 2)):
        with pytest.raises(RouteError, match="no rows to choose among them"):
            run(parts, folds)
    assert len(run("rrrvt", 0).rounds.ranking[0].select)
    # What the table brings is as good.
    table = tmp_path / "table.csv"
    lines = Path(split_file(tmp_path / "split.csv", "rrrvt")).read_text(encoding="utf-8")
    rows = [line.split(",") for line in lines.splitlines()[1:]]
    text = ["path,label,split", *(f"{one},{one.split('/')[0]},{part}" for one, part in rows)]
    table.write_text("\n".join(text) + "\n", encoding="utf-8")
    found = compare_routes(
        table, out=tmp_path / "table", settings=CompareSettings(folds=0, **given), routes=routes,
        image_settings=ImageSettings(root=str(DATA / "shapes"), label_column="label"),
    )  # fmt: skip
    assert found.results.routes[0].candidates == 2


def test_folds_of_a_split_file_are_taken_and_its_validation_rows_select(tmp_path: Path) -> None:
    routes = parse_route("pixels=centroid")
    settings = CompareSettings(
        split=split_file(tmp_path / "split.csv", "rrrvt", folds=True), budgets=(), device="cpu"
    )
    found = compare_routes(DATA / "shapes", out=tmp_path, settings=settings, routes=routes)
    assert found.results.design["folds"] == 3
    for one in found.rounds.every:
        assert one.select.tolist() == found.split.val.tolist()
        assert len(one.select)
        assert not set(one.fit) & set(one.select)
    # And what a comparison leaves can be used for the next one.
    plain = CompareSettings(folds=2, repeats=2, budgets=(), device="cpu")
    first = compare_routes(DATA / "shapes", out=tmp_path / "a", settings=plain, routes=routes)
    again = CompareSettings(split=str(tmp_path / "a" / "split.csv"), budgets=(), device="cpu")
    second = compare_routes(DATA / "shapes", out=tmp_path / "b", settings=again, routes=routes)
    assert second.results.design["folds"] == 2
    assert second.results.design["repeats"] == 2
    assert [one.scored.tolist() for one in second.rounds.ranking] == [
        one.scored.tolist() for one in first.rounds.ranking
    ]
    other = CompareSettings(split=again.split, folds=3, budgets=(), device="cpu")
    with pytest.raises(SplitError, match="--folds 0"):
        compare_routes(DATA / "shapes", out=tmp_path / "b", settings=other, routes=routes)


def test_a_single_class_is_refused_before_anything_is_computed(tmp_path: Path) -> None:
    shutil.copytree(DATA / "shapes" / "circle", tmp_path / "shapes" / "circle")
    for ask in BOTH:
        with pytest.raises(SplitError, match="of one class, 'circle'"):
            ask(tmp_path / "shapes", out=tmp_path / "out", routes=parse_route("pixels=centroid"))
    assert not list(tmp_path.glob("out/*.h5"))


def test_images_that_are_too_few_because_they_are_copies_are_told_so(tmp_path: Path) -> None:
    shutil.copytree(DATA / "shapes", tmp_path / "shapes")
    files = sorted((tmp_path / "shapes" / "circle").iterdir())
    for file in files[1:]:
        file.unlink()
        shutil.copy(files[0], file.with_suffix(files[0].suffix))
    for ask in BOTH:
        with pytest.raises(SplitError, match=r"11 copies of other images do not count"):
            ask(tmp_path / "shapes", out=tmp_path / "out", routes=parse_route("pixels=centroid"))


def test_a_damaged_label_budget_is_made_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = CompareSettings(folds=2, budgets=(1, 2), device="cpu")

    def run() -> list[SizePoint]:
        found = compare_routes(
            DATA / "shapes", out=tmp_path, settings=settings, routes=parse_route("pixels=centroid")
        )
        return found.results.routes[0].budget

    whole = run()
    assert len(whole) == 3
    [file] = (tmp_path / "routes").rglob("budget-*")
    kept = file.read_bytes()
    edited = kept.replace(b'"size": 1, "value": 0.', b'"size": 1, "value": 1.')
    assert edited != kept
    for content in (b"[{}]", b"[]", b"", edited, kept[:-3]):
        file.write_bytes(content)
        caplog.clear()
        assert run() == whole
        assert "is run again" in caplog.text
        assert file.read_bytes() == kept


@pytest.mark.parametrize(
    "entries", ["[1]", "3", '[{"file": "../x.h5", "layers": []}]', '[{"file": "a.h5"}]']
)
def test_a_damaged_index_of_features_is_made_again(
    tmp_path: Path, entries: str, caplog: pytest.LogCaptureFixture
) -> None:
    def run() -> list[float]:
        settings = CompareSettings(folds=2, budgets=(), device="cpu")
        found = compare_routes(
            DATA / "shapes", out=tmp_path, settings=settings, routes=parse_route("pixels=centroid")
        )
        return found.results.routes[0].folds.accuracy

    before, index = run(), tmp_path / "features.json"
    [key] = json.loads(index.read_text(encoding="utf-8"))
    index.write_text(f'{{"{key}": {entries}}}', encoding="utf-8")
    assert run() == before
    assert "cannot be read" in caplog.text
    assert [one["file"] for one in json.loads(index.read_text(encoding="utf-8"))[key]] == [
        file.name for file in tmp_path.glob("features-*.h5")
    ]
