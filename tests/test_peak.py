"""The highest memory of a part, and what the figure says of itself."""

import subprocess
import sys
from pathlib import Path

import pytest

from featpipe import peak

HELD = """
import numpy as np
from featpipe import peak
with peak.measured() as before:
    pass
with peak.measured() as within:
    held = np.ones(1 << 25)  # 256 MB
    del held
print(within.resident - before.resident, within.meaning)
"""


def test_what_is_held_for_a_moment_is_seen() -> None:
    # In a process of its own: what a whole suite has freed may be what is held again.
    run = subprocess.run([sys.executable, "-c", HELD], capture_output=True, text=True, check=True)
    more, _, meaning = run.stdout.partition(" ")
    assert int(more) > 1 << 27
    assert "memory" in meaning


def test_where_linux_does_not_forget_the_figure_says_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(peak, "_RESET", tmp_path / "no" / "such")
    with peak.measured() as found:
        pass
    assert found.meaning == peak.SO_FAR
    monkeypatch.setattr(peak, "_STATUS", tmp_path / "nothing")
    with peak.measured() as found:
        pass
    assert found.resident
    assert found.meaning == peak.SO_FAR
