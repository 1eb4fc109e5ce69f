"""``featpipe audit``: what it prints and leaves."""

import csv
import json
import shutil
from pathlib import Path

import pytest
from PIL import Image, ImageOps
from test_cli import SHAPES, invoke


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sample images, one of them again in another class and mirrored."""
    folder = tmp_path_factory.mktemp("audit")
    shutil.copytree(SHAPES, folder / "images")
    with Image.open(folder / "images" / "triangle" / "triangle_04.jpg") as picture:
        copy = ImageOps.mirror(picture.convert("RGB"))
    copy.save(folder / "images" / "circle" / "[red]\u202eodd.jpg", quality=70)
    out = folder / "f.h5"
    invoke("extract", folder / "images", "-b", "pixels", "--input-size", 32, "-o", out)
    return out


def test_it_prints_and_leaves_what_is_found(features: Path, tmp_path: Path) -> None:
    out = tmp_path / "audit"
    result = invoke("-q", "audit", features, "-o", out, "--folds", 3)
    assert "1 pairs of images show one picture, 0 of them byte for byte" in result.stdout
    assert "1 across classes" in result.stdout
    assert "mirrored" in result.stdout
    assert "[red]\\u202eodd.jpg" in result.stdout
    assert "labels are likely wrong" in result.stdout
    document = json.loads((out / "audit.json").read_text())
    (pair,) = document["leaks"]["near"]
    assert pair["across"] == ["class"]
    assert {document["ids"][str(row)] for row in pair["rows"]} == {
        "circle/[red]\u202eodd.jpg",
        "triangle/triangle_04.jpg",
    }
    with (out / "leaks.csv").open(encoding="utf-8", newline="") as file:
        (row,) = csv.DictReader(file)
    assert row["kind"] == "near"
    assert row["mirrored"] == "yes"
    with (out / "suspects.csv").open(encoding="utf-8", newline="") as file:
        listed = list(csv.DictReader(file))
    assert len(listed) == len(document["suspects"])
    for name in ("leaks.png", *(["suspects.png"] if listed else [])):
        with Image.open(out / name) as sheet:
            assert sheet.format == "PNG"
            assert sheet.width > 300


def test_json_and_a_split_file(features: Path, tmp_path: Path) -> None:
    split = tmp_path / "split.csv"
    invoke("-q", "split", features, "--test", 0.3, "--leaks", "group", "-o", split)
    asked = ("-q", "audit", features, "-o", tmp_path / "a", "--folds", 2, "--json")
    document = json.loads(invoke(*asked, "--split", split).stdout)
    assert document["leaks"]["near"][0]["across"] == ["class"]
    assert document["labels_judged"]
    assert "audit.json" in document["files"]
    assert document["classes"] == ["circle", "square", "triangle"]


def test_labels_that_cannot_be_judged_are_said_to_be_so(features: Path, tmp_path: Path) -> None:
    result = invoke("audit", features, "-o", tmp_path / "a", "--folds", 20, "--json")
    document = json.loads(result.stdout)
    assert not document["labels_judged"]
    assert "20 folds need 20 images" in document["note"]
    assert document["leaks"]["groups"] == 1


def test_a_file_in_the_way_is_refused(features: Path, tmp_path: Path) -> None:
    (tmp_path / "a").write_text("mine")
    assert "is a file" in invoke("audit", features, "-o", tmp_path / "a", rc=2).output


def test_pictures_that_are_gone_leave_no_sheet(features: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved.h5"
    shutil.copy(features, moved)
    images = features.parent / "images"
    away = images.rename(tmp_path / "away")
    try:
        result = invoke("audit", moved, "-o", tmp_path / "a", "--folds", 3)
        assert "Only exact duplicates are looked for" in result.stderr
        assert "No contact sheets are drawn" in result.stderr
        found = invoke("-q", "audit", moved, away, "-o", tmp_path / "b", "--folds", 3)
        assert "1 pairs" in found.stdout
    finally:
        away.rename(images)


def test_names_that_begin_like_formulas_are_not_run_by_spreadsheets(tmp_path: Path) -> None:
    for name, shape in (("=cmd|calc!A1", "circle"), ("square", "square")):
        shutil.copytree(Path(SHAPES) / shape, tmp_path / "images" / name)
    first = min((tmp_path / "images" / "=cmd|calc!A1").iterdir())
    shutil.copy(first, tmp_path / "images" / "=cmd|calc!A1" / f"again{first.suffix}")
    invoke("extract", tmp_path / "images", "-b", "pixels", "--input-size", 16,
           "-o", tmp_path / "f.h5")  # fmt: skip
    invoke("-q", "audit", tmp_path / "f.h5", "-o", tmp_path / "out", "--folds", 2)
    with (tmp_path / "out" / "leaks.csv").open(encoding="utf-8", newline="") as file:
        (row,) = csv.DictReader(file)
    assert row["image"].startswith("'=cmd|calc!A1/")
    assert row["other"].startswith("'=cmd|calc!A1/")
