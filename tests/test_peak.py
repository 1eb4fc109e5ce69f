"""The highest memory of a part, and what the figure says of itself."""

from pathlib import Path

import numpy as np
import pytest

from featpipe import peak


def test_what_is_held_for_a_moment_is_seen() -> None:
    with peak.measured() as before:
        pass
    with peak.measured() as within:
        held = np.ones(1 << 25)  # 256 MB
        del held
    assert before.resident is not None
    assert within.resident is not None
    assert within.resident > before.resident + (1 << 27)
    assert "memory" in within.meaning


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
