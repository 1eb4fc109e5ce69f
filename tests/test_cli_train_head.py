"""``featpipe train-head`` where it chooses: what it reads, prints, writes and refuses."""

import csv
import json
from pathlib import Path
from typing import Any

import click
import matplotlib.axes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from test_cli import invoke
from test_sweep import clouds, made

from featpipe.classifier import Classifier
from featpipe.cli._training import budgets_of, grid_of, value_of

ENDS = st.floats(1e-6, 1e6)


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two layers, one of them noise; three classes that overlap."""
    rows, names = clouds(120, spread=1.6)
    noise = np.random.default_rng(0).normal(size=(120, 4))
    path = tmp_path_factory.mktemp("train-head") / "made.h5"
    return made(path, {"noise": noise, "signal": rows}, names).path


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of any of three labels, or none."""
    rng = np.random.default_rng(0)
    truth = rng.random((120, 3)) < 0.4
    names = ["|".join(np.array(["red", "big", "old"])[row]) or "|" for row in truth]
    path = tmp_path_factory.mktemp("several") / "several.h5"
    return made(path, {"only": 2.0 * truth + rng.normal(size=(120, 3))}, names).path


def document(*arguments: object) -> Any:
    return json.loads(invoke("train-head", *arguments, "--device", "cpu", "--json").stdout)


def words(text: str) -> list[list[str]]:
    return [line.split() for line in text.splitlines()]


@given(ENDS, ENDS, st.integers(2, 40))
def test_a_range_above_zero_is_geometric_and_holds_both_ends(
    first: float, last: float, count: int
) -> None:
    values = grid_of([f"C={first!r}:{last!r}:{count}"])["C"]
    assert len(values) == count
    assert [values[0], values[-1]] == pytest.approx([first, last])
    assert np.diff(np.log(values)) == pytest.approx(np.log(last / first) / (count - 1), abs=1e-9)


@given(st.floats(-100, 0), st.floats(-100, 100), st.integers(2, 40))
def test_a_range_that_begins_at_zero_or_below_is_even(
    first: float, last: float, count: int
) -> None:
    for one, two in ((first, last), (last, first)):
        values = grid_of([f"x={one!r}:{two!r}:{count}"])["x"]
        assert values == pytest.approx(np.linspace(one, two, count), abs=1e-9)


@given(st.lists(st.one_of(st.integers(), st.booleans(), st.none(), ENDS), min_size=1))
def test_values_between_commas_come_back_as_they_were(values: list[Any]) -> None:
    assert grid_of(["name=" + ",".join(map(json.dumps, values))]) == {"name": values}


@pytest.mark.parametrize(
    ("items", "grid"),
    [
        (["C=1e-2:1e2:5"], {"C": [0.01, 0.1, 1.0, 10.0, 100.0]}),
        (["hidden=[460],[512,256]"], {"hidden": [(460,), (512, 256)]}),
        (["optimizer=adam,sgd"], {"optimizer": ["adam", "sgd"]}),
        (["optimizer=adam, sgd", "lr=1e-3"], {"optimizer": ["adam", "sgd"], "lr": [0.001]}),
        (["weight-decay=0,1e-4"], {"weight_decay": [0, 1e-4]}),
        (["class_weight=balanced,null"], {"class_weight": ["balanced", None]}),
        (["standardize=true,false"], {"standardize": [True, False]}),
        (["shrinkage=auto,0.5"], {"shrinkage": ["auto", 0.5]}),
        ([], {}),
    ],
)
def test_the_grid_of_what_is_typed(items: list[str], grid: dict[str, list[Any]]) -> None:
    assert grid_of(items) == grid


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ("C", "takes NAME=VALUE, not 'C'"),
        ("C=", "has no values"),
        ("C=,", "has no values"),
        ("C=1:2:1", "takes FIRST:LAST:COUNT"),
        ("C=1:2:2.5", "takes FIRST:LAST:COUNT"),
        ("C=1:2:-3", "takes FIRST:LAST:COUNT"),
        ("C=a:b:c", "takes FIRST:LAST:COUNT"),
        ("C=1:inf:3", "takes FIRST:LAST:COUNT"),
        ("C=1:2:inf", "takes FIRST:LAST:COUNT"),
        ("C=::", "takes FIRST:LAST:COUNT"),
    ],
)
def test_a_malformed_sweep_is_a_usage_error(
    features: Path, tmp_path: Path, item: str, message: str
) -> None:
    with pytest.raises(click.BadParameter, match=message):
        grid_of([item])
    result = invoke("train-head", features, "--sweep", item, "-o", tmp_path / "made", rc=2)
    assert message in " ".join(result.stderr.split())
    assert result.stdout == ""
    assert not (tmp_path / "made").exists()


def test_budgets_are_numbers_or_all() -> None:
    assert budgets_of("1,2, 10,all") == [1, 2, 10, None]
    for text in ("0", "-1", "1,,2", "many", "1.5", ""):
        with pytest.raises(click.BadParameter, match="numbers from 1 or all"):
            budgets_of(text)


def test_a_value_that_is_no_json_is_text() -> None:
    assert [value_of(text) for text in ("3", "[1, 2]", "null", "auto")] == [3, [1, 2], None, "auto"]


@pytest.mark.parametrize(
    ("arguments", "rc", "message"),
    [
        (["C=1"], 2, "'C=1' stands behind no --sweep"),
        (["--budget", "0"], 2, "--budget takes numbers from 1 or all"),
        (["--sweep", "k=1,5", "--head", "knn", "--val", "0"], 1, "give --folds, or --val above 0"),
        (["--sweep", "C=1,5", "--head", "knn"], 1, "no option of knn 'C'"),
        (["--folds", "1"], 1, "folds is 1"),
        (["--folds", "500"], 1, "500 folds need 500 images"),
        (["--repeats", "3"], 1, "neither folds nor a label budget"),
        (["--budget", "1", "--val", "0"], 1, "give --test"),
        (["--layers", "all", "--layer", "signal"], 1, "layers names others"),
        (["--layers", "nothing"], 1, "There is no layer 'nothing'"),
        (["--min-precision", "2"], 2, "--min-precision"),
        (["--against", "nothing", "--head", "lda"], 1, "no heads plug-in 'nothing'"),
        (["--split", "given", "--folds", "3"], 1, "come with no split"),
        (["--separator", "|"], 1, "With a separator use linear, mlp or logistic"),
    ],
)
def test_what_cannot_be_done_is_one_message_and_leaves_nothing(
    features: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    rc: int,
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    layer = [] if "--layers" in arguments else ["--layer", "signal"]
    head = [] if "--head" in arguments else ["--head", "lda"]
    result = invoke("train-head", features, *layer, *head, *arguments, rc=rc)
    text = " ".join(result.stderr.split())
    assert message in text
    assert result.stdout == ""
    assert list(tmp_path.iterdir()) == []


def test_a_sweep_over_layers_and_folds_prints_every_candidate_and_marks_the_best(
    features: Path, tmp_path: Path
) -> None:
    out = tmp_path / "made"
    text = invoke(
        "train-head", features, "--head", "logistic", "--layers", "all", "--folds", 3,
        "--test", 0.25, "--sweep", "C=1e-4:1:5", "-o", out, "--device", "cpu",
    ).stdout  # fmt: skip
    lines = words(text)
    result = json.loads((out / "result.json").read_text(encoding="utf-8"))
    candidates = result["sweep"]["candidates"]
    assert len(candidates) == 10
    header = next(i for i, line in enumerate(lines) if line[:3] == ["layer", "C", "accuracy"])
    shown = lines[header + 1 : header + 11]
    marked = [line for line in shown if line[0] == "*"]
    best = candidates[result["sweep"]["best"]]
    assert [line[1:4] for line in marked] == [
        ["signal", f"{best['options']['C']:.4g}", f"{100 * best['accuracy']:.2f}"]
    ]
    for line, one in zip(shown, candidates, strict=True):
        cells = line[line[0] == "*" :]
        assert cells[:3] == [
            one["layer"],
            f"{one['options']['C']:.4g}",
            f"{100 * one['accuracy']:.2f}",
        ]
    assert "*: chosen by accuracy on 3 folds." in text
    for part in ("train", "folds", "test"):
        scored = result["scores"][part]
        assert [part, str(scored["n"]), f"{100 * scored['accuracy']:.2f}"] in [
            line[:3] for line in lines
        ]
    assert f"Saved in {out}" in text
    assert {path.name for path in out.iterdir()} == {
        "report.html",
        "results.json",
        "results.csv",
        "classifier.safetensors",
        "result.json",
        "split.csv",
        "sweep.png",
        "reliability.png",
    }
    for picture in out.glob("*.png"):
        with Image.open(picture) as opened:
            assert min(opened.size) > 300
    assert Classifier.load(out / "classifier.safetensors").layer == "signal"


def test_several_options_stand_behind_one_sweep(features: Path, tmp_path: Path) -> None:
    common = (features, "--layer", "signal", "--head", "knn", "--folds", 3, "-o", tmp_path / "o")
    one = document(*common, "--sweep", "k=1,5", "temperature=0.07,1")
    two = document(*common, "--sweep", "k=1,5", "--sweep", "temperature=0.07,1")
    options = [candidate["options"] for candidate in one["sweep"]["candidates"]]
    assert options == [candidate["options"] for candidate in two["sweep"]["candidates"]]
    assert options == [{"k": k, "temperature": t} for k in (1, 5) for t in (0.07, 1)]


def test_of_many_candidates_the_best_are_printed_and_all_are_kept(
    features: Path, tmp_path: Path
) -> None:
    out = tmp_path / "o"
    text = invoke(
        "train-head", features, "--layer", "signal", "--head", "ridge", "--sweep",
        "alpha=1e-3:1e3:70", "-o", out,
    ).stdout  # fmt: skip
    assert "of 70 candidates; result.json has all" in text
    result = json.loads((out / "result.json").read_text(encoding="utf-8"))
    assert len(result["sweep"]["candidates"]) == 70
    assert len([line for line in words(text) if line[:1] == ["*"]]) == 1


def test_the_split_of_a_run_gives_the_same_run_again(features: Path, tmp_path: Path) -> None:
    common = (features, "--head", "lda", "--layers", "all", "--seed", 3, "-o", tmp_path / "o")
    first = document(*common, "--folds", 3, "--test", 0.25)
    with (tmp_path / "o" / "split.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["id", "part", "fold1"]
    assert {row["part"] for row in rows} == {"train", "test"}
    assert sum(row["part"] == "test" for row in rows) == first["scores"]["test"]["n"]
    (tmp_path / "o" / "split.csv").rename(tmp_path / "split.csv")
    second = document(*common, "--split", tmp_path / "split.csv")
    assert second["scores"] == first["scores"]
    assert second["calibration"] == first["calibration"]
    assert [one["folds"] for one in second["sweep"]["candidates"]] == [
        one["folds"] for one in first["sweep"]["candidates"]
    ]


def test_a_budget_is_printed_drawn_and_kept(features: Path, tmp_path: Path) -> None:
    arguments = (
        "train-head", features, "--layer", "signal", "--head", "lda", "--test", 0.3,
        "--budget", "1,5,all", "--repeats", 3, "-o", tmp_path / "o",
    )  # fmt: skip
    text = invoke(*arguments).stdout
    found = json.loads(invoke(*arguments, "--json").stdout)["budget"]
    assert [point["budget"] for point in found["points"]] == [1, 5, 28]
    assert [len(point["accuracies"]) for point in found["points"]] == [3, 3, 1]
    for point in found["points"]:
        low, high = (f"{100 * point[name]:.2f}" for name in ("low", "high"))
        mean = f"{100 * point['mean']:.2f}"
        row = [str(point["budget"]), str(point["images"]), mean, low, "to", high]
        assert row in [line[:6] for line in words(text)]
    assert f"scored on the {found['scored']} test rows" in text
    assert (tmp_path / "o" / "budget.png").is_file()


def test_other_heads_are_compared_on_the_same_rows(features: Path, tmp_path: Path) -> None:
    arguments = (
        "train-head", features, "--layer", "signal", "--head", "lda", "--test", 0.3,
        "--against", "centroid", "--against", "knn", "-o", tmp_path / "o",
    )  # fmt: skip
    text = invoke(*arguments).stdout
    paired = json.loads(invoke(*arguments, "--json").stdout)["paired"]
    assert list(paired) == ["centroid", "knn"]
    assert "Against other heads (test):" in text
    for name, test in paired.items():
        difference, low, high = (f"{100 * value:+.2f}" for value in test["accuracy_difference"])
        line = next(line for line in words(text) if line[:2] == [name, difference])
        assert line[2:5] == [low, "to", high]
        assert line[-1] == f"{test['p_value']:.3f}"


def test_abstaining_is_printed_and_kept_in_the_classifier(features: Path, tmp_path: Path) -> None:
    out = tmp_path / "o"
    text = invoke(
        "train-head", features, "--layer", "signal", "--head", "lda", "--folds", 3,
        "--test", 0.3, "--min-precision", 0.9, "-o", out,
    ).stdout  # fmt: skip
    threshold = Classifier.load(out / "classifier.safetensors").threshold
    assert threshold is not None
    assert f"Abstains below a confidence of {threshold:.4f}: " in text
    result = json.loads((out / "result.json").read_text(encoding="utf-8"))
    assert result["calibration"]["abstention"]["folds"]["precision"] >= 0.9
    assert f"Temperature {result['calibration']['temperature']:.3f}, fitted on" in text


def test_several_labels_are_scored_by_mean_average_precision(several: Path, tmp_path: Path) -> None:
    out = tmp_path / "o"
    arguments = (
        "train-head", several, "--separator", "|", "--head", "logistic", "--folds", 3,
        "--test", 0.25, "--sweep", "C=0.01,1", "-o", out, "--device", "cpu",
    )  # fmt: skip
    text = invoke(*arguments).stdout
    found = json.loads(invoke(*arguments, "--json").stdout)
    assert found["sweep"]["metric"] == "average_precision"
    value = f"{100 * found['scores']['test']['average_precision']:.2f}"
    assert "mAP %" in text
    assert ["test", "30", value] in [line[:3] for line in words(text)]
    assert "chosen by average precision on 3 folds" in text
    assert "Confusion" not in text
    assert Classifier.load(out / "classifier.safetensors").classes == ("big", "old", "red")
    info = json.loads(invoke("info", out / "classifier.safetensors", "--json").stdout)
    assert info["classes"] == ["big", "old", "red"]


def test_a_candidate_that_diverged_says_so(features: Path, tmp_path: Path) -> None:
    text = invoke(
        "train-head", features, "--layer", "signal", "--sweep", "lr=1e38,0.01", "--epochs", 3,
        "--optimizer", "sgd", "-o", tmp_path / "o", "--device", "cpu",
    ).stdout  # fmt: skip
    row = next(line for line in words(text) if line[:1] == ["1e+38"])
    assert row[1:-1] == ["-", "-", "-", "-", "diverged", "in", "epoch", row[-2]]
    assert (tmp_path / "o" / "sweep.png").is_file()


def test_the_picture_marks_the_candidate_that_was_chosen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    features, names = clouds(60, spread=0.1)
    path = made(tmp_path / "f.h5", {"only": features}, names).path
    drawn: list[Any] = []
    plot = matplotlib.axes.Axes.plot

    def watched(self: Any, *args: Any, **kwargs: Any) -> Any:
        if any(isinstance(value, str) and "*" in value for value in args):
            drawn.append(args)
        return plot(self, *args, **kwargs)

    monkeypatch.setattr(matplotlib.axes.Axes, "plot", watched)
    invoke(
        "train-head", path, "--head", "logistic", "--sweep", "C=0.01,0.1,1", "--folds", 3,
        "-o", tmp_path / "o", "--device", "cpu",
    )  # fmt: skip
    assert drawn
    assert float(np.ravel(drawn[0][0])[0]) == 1.0  # of equal accuracy, the lowest log-loss


def test_a_range_of_whole_numbers_is_whole_numbers(tmp_path: Path) -> None:
    features, names = clouds(60)
    path = made(tmp_path / "f.h5", {"only": features}, names).path
    invoke("train-head", path, "--head", "knn", "--sweep", "k=1:9:5", "-o", tmp_path / "o")
