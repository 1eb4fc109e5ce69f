"""Dry runs, and rows taken from other caches."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner
from damage import flip

from featpipe.cache import FeatureCache
from featpipe.cli import cli
from featpipe.errors import CacheError, ImagesChangedError, SpecMismatchError
from featpipe.extract import extract_features
from featpipe.plan import Plan, plan_extraction
from featpipe.settings import ExtractSettings

DATA = Path(__file__).parents[1] / "data"


def computed(images: Path, out: Path, settings: ExtractSettings | None = None) -> int:
    """Extract; return how many images went through the network."""
    totals = [0]
    extract_features(
        images, "pixels", out, settings, on_progress=lambda done, total: totals.append(total)
    ).close()
    return totals[-1]


def tree(folder: Path) -> set[tuple[str, int]]:
    return {(str(path), path.lstat().st_mtime_ns) for path in folder.rglob("*")}


@pytest.fixture
def folder(shapes: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(shapes, tmp_path / "shapes"))


def test_a_plan_counts_everything_and_writes_nothing(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "f.h5"
    names = sorted((folder / "circle").iterdir())
    shutil.copy(names[0], names[0].with_name("copy.jpg"))
    (folder / "gone.png").symlink_to(tmp_path / "nowhere")
    before = tree(tmp_path)
    plan = plan_extraction(folder, "pixels", out)
    assert tree(tmp_path) == before
    assert plan == Plan(38, 1, 1, 0, 0, 0, 0, 36, 3072 * 4)
    assert computed(folder, out) == 36
    flip(out, 5)
    shutil.copy(DATA / "formats" / "rgb.png", folder / "new.png")
    before = tree(tmp_path)
    plan = plan_extraction(folder, "pixels", out)
    assert tree(tmp_path) == before
    assert plan == Plan(39, 1, 1, 35, 0, 0, 1, 2, 3072 * 4)
    assert computed(folder, out) == 2


def test_a_plan_knows_what_an_interrupted_run_has_done(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "f.h5"

    def stop(done: int, total: int) -> None:
        if done >= 16:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        extract_features(folder, "pixels", out, ExtractSettings(batch_size=8), on_progress=stop)
    plan = plan_extraction(folder, "pixels", out)
    assert plan.unfinished >= 16
    assert plan.unfinished + plan.to_compute == 36


def test_a_plan_refuses_what_the_extraction_would_refuse(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "f.h5"
    computed(folder, out)
    with pytest.raises(SpecMismatchError):
        plan_extraction(folder, "pixels", out, ExtractSettings(dtype="float16"))
    with pytest.raises(ImagesChangedError):
        plan_extraction(DATA / "formats", "pixels", out)
    assert plan_extraction(folder, "pixels", out, ExtractSettings(overwrite=True)).to_compute == 36


def test_rows_of_another_cache_cost_nothing(folder: Path, tmp_path: Path) -> None:
    some, rest = tmp_path / "some", tmp_path / "rest"
    shutil.copytree(folder / "circle", some)
    shutil.copytree(folder / "square", rest)
    assert computed(some, tmp_path / "some.h5") == 12
    assert computed(rest, tmp_path / "rest.h5") == 12
    both = ExtractSettings(reuse=(str(tmp_path / "some.h5"), str(tmp_path / "rest.h5")))
    plan = plan_extraction(folder, "pixels", tmp_path / "f.h5", both)
    assert (plan.elsewhere, plan.to_compute) == (24, 12)
    assert computed(folder, tmp_path / "f.h5", both) == 12
    assert computed(folder, tmp_path / "g.h5") == 36
    with FeatureCache.open(tmp_path / "f.h5") as one, FeatureCache.open(tmp_path / "g.h5") as two:
        assert one.features().tobytes() == two.features().tobytes()
        assert one.table.ids.tolist() == two.table.ids.tolist()


def test_damaged_rows_of_another_cache_are_not_taken(folder: Path, tmp_path: Path) -> None:
    assert computed(folder, tmp_path / "other.h5") == 36
    flip(tmp_path / "other.h5", 3)
    reuse = ExtractSettings(reuse=(str(tmp_path / "other.h5"),))
    assert computed(folder, tmp_path / "f.h5", reuse) == 1


def test_another_cache_may_hold_more_layers(
    shapes: Path, small: ExtractSettings, tmp_path: Path
) -> None:
    two = replace(small, layer=("features.3", "features"), pool="avg")
    extract_features(shapes, "squeezenet1_1", tmp_path / "two.h5", two).close()
    one = replace(two, layer=("features",), reuse=(str(tmp_path / "two.h5"),))
    plan = plan_extraction(shapes, "squeezenet1_1", tmp_path / "f.h5", one)
    assert (plan.elsewhere, plan.to_compute) == (36, 0)
    with (
        extract_features(shapes, "squeezenet1_1", tmp_path / "f.h5", one) as cache,
        FeatureCache.open(tmp_path / "two.h5") as other,
    ):
        assert cache.features().tobytes() == other.features("features").tobytes()


def test_another_cache_of_another_spec_is_refused(folder: Path, tmp_path: Path) -> None:
    computed(folder, tmp_path / "half.h5", ExtractSettings(dtype="float16"))
    reuse = ExtractSettings(reuse=(str(tmp_path / "half.h5"),))
    with pytest.raises(SpecMismatchError, match=r"dtype: cached float16(.|\n)*Leave it out"):
        computed(folder, tmp_path / "f.h5", reuse)
    with pytest.raises(CacheError, match="no feature cache"):
        computed(folder, tmp_path / "f.h5", ExtractSettings(reuse=("nowhere.h5",)))
    assert not (tmp_path / "f.h5.parts").exists()


@pytest.mark.parametrize("change", ["rename", "move", "relabel", "delete", "copy"])
def test_what_does_not_change_a_picture_costs_nothing(
    folder: Path, tmp_path: Path, change: str
) -> None:
    out = tmp_path / "f.h5"
    assert computed(folder, out) == 36
    first = sorted((folder / "circle").iterdir())[0]
    if change == "rename":
        first.rename(first.with_name("zz" + first.suffix))
    elif change == "move":
        folder.rename(tmp_path / "elsewhere")
        folder = tmp_path / "elsewhere"
    elif change == "relabel":
        first.rename(folder / "square" / first.name)
    elif change == "delete":
        first.unlink()
    else:
        shutil.copy(first, folder / "square" / "again.jpg")
    assert computed(folder, out) == 0
    fresh = tmp_path / "fresh.h5"
    computed(folder, fresh)
    with FeatureCache.open(out) as one, FeatureCache.open(fresh) as two:
        assert one.features().tobytes() == two.features().tobytes()
        assert one.columns() == two.columns()


def test_the_command_prints_a_plan(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "f.h5"
    arguments = ["extract", str(folder), "-b", "pixels", "-o", str(out), "--plan"]
    text = CliRunner().invoke(cli, arguments)
    assert text.exit_code == 0, text.output
    assert "36 would be computed" in text.stdout
    document = json.loads(CliRunner().invoke(cli, [*arguments, "--json"]).stdout)
    assert document["to_compute"] == 36
    assert not out.exists()
