"""The file of results: what it holds, and what is refused."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from featpipe.errors import ResultsError
from featpipe.results import Images, Items, Leaks, Map, Pair, Results, Verdict
from featpipe.route_results import Accuracy, ClassRow, Difference, RouteResult, Seconds

BAD = "<img src=x onerror=alert(1)>"


def made() -> Results:
    """Two routes, one of which failed."""
    good = RouteResult(
        "pixels + linear",
        "pixels",
        accuracy=Accuracy(0.75, (0.5, 1.0), 4, "folds"),
        test={"accuracy": 1.0, "accuracy_interval_95": [0.3, 1.0]},
        difference=Difference(-0.25, (-0.5, 0.0), 0.4, False),
        seconds=Seconds(3.0, 1.0, 2.0, 1.0),
        per_class=[ClassRow(BAD, 2, 1.0, 0.5, 2 / 3, (0.2, 1.0), None)],
    )
    failed = RouteResult("vgg16 + linear", "head", status="failed", reason="no weights")
    return Results(
        "x",
        "2026-01-01T00:00:00Z",
        Images("photos", 3, 1, {BAD: 2, "b": 1}),
        {"folds": 2},
        Items(["a\udcff", "b", "c"], [0, 0, 1], None, ["train", "train", ""]),
        [good, failed],
        Verdict("pixels + linear", ["It is the only one."]),
        leaks=Leaks("group", [[0, 1]], [Pair([0, 2], 0.99, 3, ["class"])], 1),
        map=Map("PCA", "pixels", [(0.0, 1.0), (1.0, 2.0), None]),
    )


def test_what_was_written_is_read_again(tmp_path: Path) -> None:
    made().save(tmp_path)
    assert Results.load(tmp_path) == made()
    assert Results.load(tmp_path / "results.json") == made()


def test_the_document_says_its_format_and_is_plain(tmp_path: Path) -> None:
    document = made().to_dict()
    assert (document["format"], document["version"]) == ("featpipe-results", 1)
    assert document == json.loads(json.dumps(document))
    assert document["routes"][0]["accuracy"]["interval_95"] == [0.5, 1.0]


def test_the_table_has_a_line_a_route(tmp_path: Path) -> None:
    made().save(tmp_path)
    with (tmp_path / "results.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["route"] for row in rows] == ["pixels + linear", "vgg16 + linear"]
    assert rows[0]["accuracy_low"] == "0.5"
    assert rows[1]["reason"] == "no weights"
    assert rows[1]["accuracy"] == ""


def test_unknown_names_are_passed_over() -> None:
    document = made().to_dict()
    document["routes"][0]["later"] = 1
    assert Results.from_dict(document) == made()


def change(path: list[Any], value: Any) -> dict[str, Any]:
    """The document with one thing changed, or taken away."""
    document = made().to_dict()
    inner: Any = document
    for name in path[:-1]:
        inner = inner[name]
    if value is ...:
        del inner[path[-1]]
    else:
        inner[path[-1]] = value
    return document


@pytest.mark.parametrize(
    ("document", "said"),
    [
        ([], "no results of featpipe"),
        ({"format": "other"}, "no results of featpipe"),
        (change(["version"], 2), "version 2; this featpipe reads 1"),
        (change(["title"], ...), "title is missing"),
        (change(["routes", 0, "name"], 3), r"routes\[0\].name is '3'"),
        (change(["routes", 0, "accuracy", "value"], "x"), r"routes\[0\].accuracy.value is 'x'"),
        (change(["routes", 0, "accuracy", "interval_95"], [1.0]), "has 1 values, not 2"),
        (change(["items", "ids"], {}), "items.ids is"),
    ],
)
def test_what_does_not_fit_is_refused_by_its_name(document: Any, said: str) -> None:
    with pytest.raises(ResultsError, match=said):
        Results.from_dict(document)


def test_files_that_are_not_there_or_damaged_are_named(tmp_path: Path) -> None:
    with pytest.raises(ResultsError, match=r"There is no .*results\.json"):
        Results.load(tmp_path)
    (tmp_path / "results.json").write_text("{")
    with pytest.raises(ResultsError, match="cannot be read as JSON"):
        Results.load(tmp_path)
    (tmp_path / "results.json").write_text("{}")
    with pytest.raises(ResultsError, match=r"results\.json: These are no results"):
        Results.load(tmp_path)


@pytest.mark.parametrize("name", ["deep", "deep in a field", "large"])
def test_a_hostile_file_is_refused_in_words(tmp_path: Path, name: str) -> None:
    document = json.dumps(made().to_dict())
    texts = {
        "deep": "[" * 100_000 + "]" * 100_000,
        "deep in a field": document.replace('"folds": 2', '"folds": ' + "[" * 500 + "]" * 500),
        "large": document.replace('"value": 0.75', '"value": 1' + "0" * 400),
    }
    text = texts[name]
    assert text != document
    (tmp_path / "results.json").write_text(text)
    with pytest.raises(ResultsError, match=r"cannot be read as JSON|nested more than|no float is"):
        Results.load(tmp_path)
