"""Files of what a route came to."""

import logging
from pathlib import Path

import numpy as np
import pytest

from featpipe.kept import Keeper, Trial

TRIAL = Trial(
    np.array([[0.25, 0.75]]), np.empty((0, 2)), {"C": 0.1}, [{"options": {}, "value": None}], 1.5
)


def test_a_trial_is_read_as_it_was_written(tmp_path: Path) -> None:
    keeper = Keeper(tmp_path, {"route": 1})
    assert "a" not in keeper
    assert keeper.read("a") is None
    keeper.write("a", TRIAL)
    found = keeper.read("a")
    assert "a" in keeper
    assert found is not None
    assert found.proba.tolist() == TRIAL.proba.tolist()
    assert found.selecting.shape == (0, 2)
    assert (found.options, found.candidates, found.seconds) == ({"C": 0.1}, TRIAL.candidates, 1.5)


def test_what_is_decided_otherwise_has_another_folder(tmp_path: Path) -> None:
    keeper = Keeper(tmp_path, {"route": 1, "seed": 0})
    assert keeper.digest == Keeper(tmp_path, {"seed": 0, "route": 1}).digest
    assert keeper.digest != Keeper(tmp_path, {"route": 1, "seed": 1}).digest


@pytest.mark.parametrize("damage", [b"", b"x" * 40, None])
def test_what_is_damaged_is_as_if_it_were_not_there(
    tmp_path: Path, damage: bytes | None, caplog: pytest.LogCaptureFixture
) -> None:
    keeper = Keeper(tmp_path, {})
    keeper.write("a", TRIAL)
    file = next(tmp_path.rglob("a.trial"))
    file.write_bytes(file.read_bytes()[:-9] if damage is None else damage)
    with caplog.at_level(logging.WARNING):
        assert keeper.read("a") is None
    assert "it is run again" in caplog.text


def test_curves_are_kept_beside(tmp_path: Path) -> None:
    keeper = Keeper(tmp_path, {})
    assert keeper.read_curve("budget") is None
    keeper.write_curve("budget", [{"size": None, "value": 0.5}])
    assert keeper.read_curve("budget") == [{"size": None, "value": 0.5}]
