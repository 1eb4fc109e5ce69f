"""What a comparison says of itself beforehand, and leaves untouched."""

from pathlib import Path

import pytest

from featpipe.compare import compare_routes
from featpipe.compare_plan import ComparisonPlan, plan_comparison
from featpipe.route import Route
from featpipe.routes import parse_route
from featpipe.settings import CompareSettings

SHAPES = Path(__file__).parents[1] / "data" / "shapes"
SETTINGS = CompareSettings(folds=2, budgets=(1,), device="cpu")
NET = "backbone=squeezenet1_1@random input_size=64"


def routes(*lines: str) -> list[Route]:
    """Routes of some lines."""
    return [route for line in lines for route in parse_route(line)]


def planned(out: Path, *lines: str) -> ComparisonPlan:
    """The plan of some lines."""
    return plan_comparison(SHAPES, out=out, settings=SETTINGS, routes=routes(*lines))


def test_everything_is_to_do_and_nothing_is_written(tmp_path: Path) -> None:
    plan = planned(
        tmp_path / "new",
        f"{NET} sweep.lr=0.1,0.01",
        f"{NET} cut=features.11 options.epochs=2",
        "scratch=two-layer epochs=2 input_size=32",
    )
    assert not (tmp_path / "new").exists()
    assert [one.images for one in plan.features] == [36, 36]
    assert all(one.seconds for one in plan.features)
    assert [one.trainings for one in plan.routes] == [4, 2, 2]
    assert [one.candidates for one in plan.routes] == [2, 1, 1]
    assert all(one.seconds for one in plan.routes)
    assert plan.temporary_bytes == 36 * 32 * 32 * 3
    # 512 floats of the penultimate layer, and the halves of the cut's activations.
    assert plan.disk_bytes == 36 * (512 * 4 + 512 * 3 * 3 * 2)
    assert plan.seconds == pytest.approx(
        sum(one.seconds or 0 for one in [*plan.features, *plan.routes])  # type: ignore[attr-defined]
    )


def test_what_is_kept_costs_nothing(tmp_path: Path) -> None:
    lines = [NET, "scratch=two-layer epochs=1 input_size=32"]
    compare_routes(SHAPES, out=tmp_path, settings=SETTINGS, routes=routes(*lines))
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    plan = planned(tmp_path, *lines, "pixels=centroid")
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
    assert [one.kept for one in plan.routes] == [2, 2, 0]
    assert [one.seconds == 0 for one in plan.routes] == [True, True, False]
    assert [one.images for one in plan.features] == [0, 36]


def test_what_cannot_run_is_told_and_stops_no_other(tmp_path: Path) -> None:
    plan = planned(tmp_path, "backbone=squeezenet1_1@/no/such.pth", "pixels=centroid")
    assert "such.pth" in plan.features[0].note
    assert "such.pth" in plan.routes[0].note
    assert plan.routes[0].seconds is None
    assert plan.routes[1].seconds
    document = plan.to_dict()
    assert document["seconds"] == plan.seconds
