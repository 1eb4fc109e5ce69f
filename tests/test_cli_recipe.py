"""``featpipe recipe``: what it lists, shows, runs, prints and refuses."""

import json
from pathlib import Path
from typing import Any

import pytest
from test_cli import invoke
from test_recipes import NAMES, NET, cars, cells, flowers

from featpipe.recipes import load_recipe

__all__ = ["cars", "cells", "flowers"]  # fixtures
TINY = ("--input-size", 32, "--precision", "float32", "--runtime", "torch", "--decode", "exact")


@pytest.fixture(scope="module")
def ran(cells: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """What the malaria recipe prints, and where it leaves its files."""
    out = tmp_path_factory.mktemp("cli") / "out"
    return invoke("recipe", "malaria", cells, "-o", out, "-b", NET, *TINY).stdout, out


def test_alone_it_lists_every_recipe_with_what_was_published() -> None:
    text = invoke("recipe").stdout
    for name in NAMES:
        assert name in text
    for figure in ("90.09 (88.92 to 91.15), n 2,756", "98.90", "83.47", "76.26", "plots only"):
        assert figure in text
    listed = json.loads(invoke("recipe", "--json").stdout)
    assert [one["recipe"] for one in listed] == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_show_prints_every_way_fault_and_assumption(name: str) -> None:
    recipe, text = load_recipe(name), invoke("recipe", name, "--show").stdout
    for fault in recipe.faults:
        assert f"{fault.name}. {fault.why}" in text
        assert f"Instead: {fault.mended}" in text
    for line in recipe.assumed:
        assert f"Assumed: {line}" in text
    for route in recipe.routes:
        for told in route.way.described().values():
            assert told in text
    shown = json.loads(invoke("recipe", name, "--show", "--json").stdout)
    for route, written in zip(recipe.routes, shown["routes"], strict=True):
        assert [way["way"] for way in written["ways"]] == [
            json.loads(json.dumps(rung.way.to_dict())) for rung in recipe.ladder(route)
        ]


def test_published_as_published_and_done_right_stand_side_by_side(ran: tuple[str, Path]) -> None:
    text, _ = ran
    header = next(line for line in text.splitlines() if line.startswith("accuracy, %"))
    assert header.split("  ", 1)[1].split() == [
        "published", "as", "published,", "here", "done", "right",
    ]  # fmt: skip
    assert "90.09 (88.92 to 91.15), n 2,756, test" in text
    assert "10 patients" in text
    for fault in load_recipe("malaria").faults:
        assert f"{fault.name}: {fault.why}" in text
    assert "the gap is" in text
    assert "stands in for densenet121" in text
    assert "RANDOM" in text or "random weights" in text


def test_the_files_hold_what_is_printed(ran: tuple[str, Path]) -> None:
    _, out = ran
    document: Any = json.loads((out / "recipe.json").read_text(encoding="utf-8"))
    (route,) = document["routes"]
    assert route["published"]["images"] == 2756
    assert route["steps"][0]["name"] == "as published"
    assert len(route["changes"]) == len(route["steps"]) - 1
    assert route["gap"]["groups"] == 10
    assert not (out / "unfinished").exists()


def test_json_is_the_same_document(cells: Path, ran: tuple[str, Path]) -> None:
    _, out = ran
    command = ("recipe", "malaria", cells, "-o", out, "-b", NET, *TINY, "--json")
    document = json.loads(invoke(*command).stdout)
    written = json.loads((out / "recipe.json").read_text(encoding="utf-8"))
    assert document == {"out": str(out), **written}


def test_a_table_takes_the_columns_of_the_recipe(cars: Path, tmp_path: Path) -> None:
    done = invoke(
        "recipe", "vehicles", cars, "-o", tmp_path / "out", "-b", NET, *TINY, "--as-published"
    )
    assert "20 source pictures" in done.stdout
    assert "done right" not in done.stdout.partition("\n\n")[2].partition("\n")[0]


def test_both_ends_name_the_faults_without_figures(flowers: Path, tmp_path: Path) -> None:
    done = invoke(
        "recipe", "five-flowers", flowers, "-o", tmp_path / "out", "-b", NET, *TINY, "--both-ends"
    )
    assert "Fault 1" in done.stdout
    assert "Mended:" not in done.stdout


def test_an_unknown_recipe_is_refused_with_the_names() -> None:
    assert "five-flowers, malaria, two-flowers, vehicles" in invoke("recipe", "cats", rc=1).stderr
    assert "Did you mean vehicles" in invoke("recipe", "vehicle", rc=1).stderr


def test_a_recipe_needs_images_to_run() -> None:
    assert "featpipe recipe malaria IMAGES" in invoke("recipe", "malaria", rc=2).stderr


def test_what_was_not_done_is_not_claimed(
    cells: Path, ran: tuple[str, Path], tmp_path: Path
) -> None:
    done = invoke(
        "recipe", "malaria", cells, "-o", tmp_path / "out", "-b", NET, *TINY, "--group", "none"
    ).stdout
    assert "patients kept apart" not in done
    assert "done right" not in done
    assert "all mended that can be here" in done
    assert "NOT MENDED, every step has it: Which images are of one patient is not heeded" in done
    assert "Note: Which images" in done
    assert "done right" in ran[0]
    assert "NOT MENDED" not in ran[0]


def test_both_intervals_of_the_gap_say_what_they_are(ran: tuple[str, Path]) -> None:
    lines = [line for line in ran[0].splitlines() if line.startswith("    95 % interval")]
    assert len(lines) == 2
    assert "patients drawn anew: other patients, scored by these heads" in lines[0]
    assert "corrected t over folds: heads trained anew" in lines[1]


def test_a_pattern_that_names_no_patient_is_refused(flowers: Path, tmp_path: Path) -> None:
    asked = ("recipe", "malaria", flowers, "-o", tmp_path / "out", "-b", NET, "--group", "(P1)")
    assert "'(P1)' does not match 60 of 60 ids" in invoke(*asked, rc=1).stderr
