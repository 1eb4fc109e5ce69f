"""`benchmarks/reliability.py` in a short form, on the sample pictures."""

import os
from pathlib import Path

import pytest
import reliability

from featpipe.extract import extract_features
from featpipe.settings import ExtractSettings

DATA = Path(__file__).parents[1] / "data"
PIXELS = ExtractSettings()


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_whatever_is_killed_resumes_to_the_same_bytes(shapes: Path, tmp_path: Path) -> None:
    found = reliability.kills(shapes, "pixels", PIXELS, tmp_path / "k", 10)
    assert found["kills"] == found["resumed_bit_identical"] == 10
    assert found["rows_of_parts_lost"] == 0
    assert sum(found["when_killed"].values()) == 10


def test_every_flipped_byte_is_found_and_none_is_read(
    shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    extract_features(shapes, "pixels", tmp_path / "f.h5").close()
    monkeypatch.chdir(tmp_path)
    found = reliability.flips(tmp_path / "f.h5", tmp_path / "flips", 40)
    assert found == {"flips": 40, "found": 40, "returned_as_features": 0, "false_alarms": 0}


def test_no_broken_image_crashes_hangs_or_is_stored_wrongly(tmp_path: Path) -> None:
    found = reliability.images(DATA / "shapes", tmp_path, 120)
    assert found["crashes"] == found["mis_stored_rows"] == found["rows_without_a_reason"] == 0
    assert found["hangs_over_5_s"] == 0
    assert sum(found["outcomes"].values()) == 120
    assert {"OK", "UNDECODABLE"} <= set(found["outcomes"])


def test_adding_costs_what_is_added(tmp_path: Path) -> None:
    import numpy as np
    from PIL import Image

    (tmp_path / "many").mkdir()
    for number in range(202):
        colour = np.full((4, 4, 3), number, np.uint8)
        Image.fromarray(colour).save(tmp_path / "many" / f"{number:03d}.png")
    found = reliability.adding(tmp_path / "many", "pixels", PIXELS, tmp_path, 200)
    assert (found["computed_at_first"], found["computed_when_added"]) == (200, 2)


def test_the_costs_are_measured(shapes: Path, tmp_path: Path) -> None:
    scanned = reliability.scanning([shapes], 1)["shapes"]
    assert scanned["images"] == 36
    assert scanned["scan_speed_of_the_fastest_read"] > 0
    read = reliability.reading(tmp_path, 600, 700, 1)
    assert read["whole_against_plain"] > 0
    assert read["tenth_against_the_fastest_plain"] > 0
