"""``featpipe split``: what it prints, writes and refuses."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from test_cli import DATA, invoke

from featpipe.cache import FeatureCache
from featpipe.settings import TrainSettings
from featpipe.split import load_split, split_rows


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Raw pixels of the sample images, with a group for each three of them."""
    folder = tmp_path_factory.mktemp("split")
    names = sorted(path.relative_to(DATA).as_posix() for path in (DATA / "shapes").rglob("*.*"))
    with (folder / "table.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label", "patient"])
        writer.writerows(
            [name, name.split("/")[-2], f"p{row // 3}"] for row, name in enumerate(names)
        )
        writer.writerow(["shapes/missing.png", "circle", "p0"])
    invoke("extract", folder / "table.csv", "-b", "pixels", "--root", DATA, "-o", folder / "f.h5")
    return folder / "f.h5"


def document(*arguments: object) -> Any:
    return json.loads(invoke("split", *arguments, "--json").stdout)


def test_counts_of_classes_parts_and_groups(features: Path) -> None:
    found = document(features, "--test", 0.25, "--val", 0.25, "--seed", 3)
    parts = found["parts"]
    assert list(parts) == ["train", "val", "test"]
    for part in parts.values():
        assert sum(part["classes"].values()) == part["images"]
    assert min(parts["train"]["classes"].values()) > 0
    assert sum(part["images"] for part in parts.values()) == 36
    assert sum(part["groups"] for part in parts.values()) == 12  # none is in two parts
    assert found["left_out"] == 1
    assert found["folds"] == []
    assert found["origin"] == "random, stratified by class, groups kept together, seed 3"
    assert found["out"] is None


def test_sizes_of_folds(features: Path) -> None:
    found = document(features, "--folds", 3, "--repeats", 2, "--group", "none")
    assert found["folds"] == [
        {"repeat": repeat, "fold": fold, "train": 24, "val": 12, "val_groups": None}
        for repeat in (1, 2)
        for fold in (1, 2, 3)
    ]
    left_out = document(features, "--leave-one-group-out")["folds"]
    assert [(fold["val"], fold["val_groups"]) for fold in left_out] == [(3, 1)] * 12


def test_the_file_holds_the_split_that_python_makes_and_trains_a_head(
    features: Path, tmp_path: Path
) -> None:
    out = tmp_path / "split.csv"
    shown = document(features, "--test", 0.25, "--folds", 3, "--out", out)
    assert shown["out"] == str(out)
    with FeatureCache.open(features) as cache:
        made = split_rows(cache.table, TrainSettings(test=0.25, folds=3), cache.ok)
        found = load_split(out, cache.table, cache.ok)
    assert found.train.tolist() == made.train.tolist()
    assert found.test.tolist() == made.test.tolist()
    for one, two in zip(found.folds, made.folds, strict=True):
        assert [rows.tolist() for rows in one] == [rows.tolist() for rows in two]
    again = document(features, "--split", out)
    assert {**again, "origin": ""} == {**shown, "origin": "", "out": None}
    assert again["origin"] == f"from {out}"


def test_parts_of_a_file_are_those_that_a_head_is_trained_on(
    features: Path, tmp_path: Path
) -> None:
    out = tmp_path / "split.csv"
    parts = document(features, "--test", 0.25, "--out", out)["parts"]
    trained = json.loads(
        invoke(
            "train-head", features, "--split", out, "--epochs", 1, "--device", "cpu",
            "--seed", 5, "-o", tmp_path / "head", "--json",
        ).stdout
    )  # fmt: skip
    scored = {name: scores["n"] for name, scores in trained["scores"].items()}
    assert scored == {name: part["images"] for name, part in parts.items()}


def test_the_text_is_a_table_and_says_what_was_made(features: Path, tmp_path: Path) -> None:
    out = tmp_path / "split.csv"
    text = invoke("split", features, "--test", 0.25, "--folds", 2, "--out", out).stdout
    lines = [line.split() for line in text.splitlines()]
    assert ["class", "train", "test"] in lines
    assert ["all", "images", "27", "9"] in lines
    assert ["groups", "9", "3"] in lines
    assert ["repeat", "fold", "train", "validation", "validation", "groups"] in lines
    assert [line[:2] for line in lines].count(["1", "2"]) == 1
    assert "1 rows are in no part" in text
    assert f"Saved in {out}" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--split", "nonsense"], "no split file nonsense"),
        (["--folds", "1"], "at least 2"),
        (["--folds", "30", "--group", "none"], "'circle' has 12"),
        (["--leave-one-group-out", "--group", "none"], "needs groups"),
        (["--out", "split.txt"], "written as .csv"),
    ],
)
def test_what_cannot_be_divided_is_one_message_and_leaves_no_file(
    features: Path,
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    result = invoke("split", features, *arguments, rc=1)
    assert message in " ".join(result.stderr.split())
    assert result.stdout == ""
    assert list(tmp_path.iterdir()) == []
