"""The transformer: what it gives, what it computes again (nothing), and what it refuses."""

import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils import resample
from sklearn.utils.validation import check_is_fitted

from featpipe import FeatureExtractor, extract_features, feature_store
from featpipe.cache import FeatureCache
from featpipe.errors import CacheError, DecodeError, FeatpipeError, ImagesError, SettingsError
from featpipe.settings import ExtractSettings


@pytest.fixture(scope="module")
def paths(shapes: Path) -> list[str]:
    return [str(path) for path in sorted(shapes.glob("*/*"))]


@pytest.fixture(scope="module")
def labels(paths: list[str]) -> list[str]:
    return [Path(path).parent.name for path in paths]


@pytest.fixture
def extractor(tmp_path: Path) -> FeatureExtractor:
    """Computes nothing but the resized picture."""
    return FeatureExtractor("pixels", decode="exact", cache=tmp_path / "features")


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many rows each file had after it was extended, as that goes on."""
    rows: list[int] = []

    def counting(*given: object) -> FeatureCache:
        cache = extract_features(*given)  # type: ignore[arg-type]
        rows.append(len(cache))
        return cache

    monkeypatch.setattr(feature_store, "extract_features", counting)
    return rows


def network(folder: Path) -> FeatureExtractor:
    """A real architecture with random weights at a size that costs milliseconds."""
    return FeatureExtractor(
        "squeezenet1_1@random", input_size=64, precision="float32", decode="exact", cache=folder
    )


def test_rows_are_those_of_extract_features(shapes: Path, paths: list[str], tmp_path: Path) -> None:
    settings = ExtractSettings(input_size=64, precision="float32", decode="exact")
    with extract_features(shapes, "squeezenet1_1@random", tmp_path / "f.h5", settings) as cache:
        expected = dict(zip(cache.table.ids, cache.features(), strict=True))
    found = network(tmp_path / "features").transform(paths)
    assert found.dtype == np.float32
    assert found.shape == (36, 512)
    ids = [Path(path).relative_to(shapes).as_posix() for path in paths]
    np.testing.assert_allclose(found, [expected[one] for one in ids], atol=1e-5)


def test_a_pipeline_fits_predicts_and_is_cross_validated(
    paths: list[str], labels: list[str], extractor: FeatureExtractor, computed: list[int]
) -> None:
    model = make_pipeline(extractor, StandardScaler(), LogisticRegression())
    assert model.fit(paths, labels).score(paths, labels) == 1
    scores = cross_val_score(model, np.array(paths), labels, cv=3)
    alone = make_pipeline(StandardScaler(), LogisticRegression())
    assert np.array_equal(scores, cross_val_score(alone, extractor.transform(paths), labels, cv=3))
    assert computed == [36]


def test_a_grid_search_over_backbones_and_heads_computes_each_backbone_once(
    paths: list[str], labels: list[str], extractor: FeatureExtractor, computed: list[int]
) -> None:
    model = Pipeline([("features", extractor), ("head", KNeighborsClassifier())])
    grid = {"features__input_size": [8, 16], "head__n_neighbors": [1, 3, 5]}
    search = GridSearchCV(model, grid, cv=2).fit([Path(path) for path in paths], labels)
    assert set(search.best_params_) == set(grid)
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()
    assert computed == [18, 36, 18, 36]  # a fold each; then nothing is new


def test_new_images_cost_only_themselves_and_old_ones_stay(
    paths: list[str], extractor: FeatureExtractor, computed: list[int]
) -> None:
    everything = extractor.transform(paths[:30])
    extractor.transform(paths[28:])
    assert np.array_equal(extractor.transform(paths[:30]), everything)
    assert computed == [30, 36]


def test_a_path_listed_twice_has_the_same_row_twice(
    paths: list[str], extractor: FeatureExtractor, computed: list[int]
) -> None:
    drawn = resample(np.arange(36), random_state=0)
    bootstrap = extractor.transform([paths[row] for row in drawn])
    assert computed == [len(set(drawn))]
    assert np.array_equal(bootstrap, extractor.transform(paths)[drawn])


def test_copies_and_moved_images_are_found_by_their_bytes(
    paths: list[str], extractor: FeatureExtractor, computed: list[int], tmp_path: Path
) -> None:
    first, second = tmp_path / "first.jpg", tmp_path / "second.jpg"
    for copy in (first, second):
        shutil.copy(paths[0], copy)
    found = extractor.transform([first, second])
    assert np.array_equal(found[0], found[1])
    first.unlink()
    second.unlink()
    assert np.array_equal(extractor.transform(paths[:1]), found[:1])
    assert computed == [1]


def test_a_file_that_has_changed_has_new_features_and_takes_the_place_of_the_old(
    paths: list[str], extractor: FeatureExtractor, computed: list[int], tmp_path: Path
) -> None:
    image = tmp_path / "image.jpg"
    expected = extractor.transform(paths[:2])
    for row in (0, 1, 0):
        shutil.copy(paths[row], image)
        assert np.array_equal(extractor.transform([image])[0], expected[row])
    other = clone(extractor).set_params(cache=tmp_path / "other")
    for row in (0, 1, 0):
        shutil.copy(paths[row], image)
        assert np.array_equal(other.transform([image])[0], expected[row])
    assert computed == [2, 1, 1, 1]


def test_relative_and_absolute_paths_mean_the_same(
    shapes: Path, paths: list[str], extractor: FeatureExtractor, monkeypatch: pytest.MonkeyPatch
) -> None:
    absolute = extractor.transform(paths)
    monkeypatch.chdir(shapes)
    relative = pd.Series([Path(path).relative_to(shapes) for path in paths])
    assert np.array_equal(extractor.transform(relative), absolute)


def test_the_files_lie_in_the_cache_folder_of_the_user(
    paths: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEATPIPE_CACHE_DIR", str(tmp_path))
    FeatureExtractor("pixels").transform(paths[:3])
    (made,) = (tmp_path / "features").glob("*.h5")
    with FeatureCache.open(made) as cache:
        assert list(cache.table.ids) == [Path(path).as_posix() for path in paths[:3]]


@pytest.mark.parametrize(
    "change", [{"input_size": 8}, {"backbone": "squeezenet1_1@random", "input_size": 64}]
)
def test_other_settings_have_another_file(
    paths: list[str], extractor: FeatureExtractor, change: dict[str, object], tmp_path: Path
) -> None:
    plain = extractor.transform(paths[:2])
    changed = clone(extractor).set_params(**change).transform(paths[:2])
    assert changed.shape != plain.shape
    assert len(list((tmp_path / "features").glob("*.h5"))) == 2
    assert np.array_equal(extractor.transform(paths[:2]), plain)


def test_a_layer_that_was_named_is_flattened(paths: list[str], tmp_path: Path) -> None:
    named = network(tmp_path).set_params(layer="features.3")
    assert named.transform(paths[:2]).shape == (2, named.get_feature_names_out().size)
    averaged = clone(named).set_params(pool="avg")
    assert averaged.transform(paths[:2]).shape == (2, 128)


def test_processes_that_extend_one_file_at_once_lose_nothing(
    paths: list[str], tmp_path: Path
) -> None:
    code = (
        "import sys; from featpipe import FeatureExtractor\n"
        "extractor = FeatureExtractor('pixels', decode='exact', cache=sys.argv[1])\n"
        "for path in sys.argv[2:]: extractor.transform([path])\n"
    )
    folder = tmp_path / "features"
    parts = [paths[:8], paths[5:12]]
    started = [subprocess.Popen([sys.executable, "-c", code, str(folder), *part]) for part in parts]
    assert [process.wait(120) for process in started] == [0, 0]
    (made,) = folder.glob("*.h5")
    with FeatureCache.open(made) as cache:
        assert sorted(cache.table.ids) == sorted(paths[:12])
        assert cache.ok.all()


def test_parallel_jobs_of_a_cross_validation_share_the_file(
    paths: list[str], labels: list[str], extractor: FeatureExtractor
) -> None:
    model = make_pipeline(extractor, KNeighborsClassifier(1))
    parallel = cross_val_score(model, paths, labels, cv=3, n_jobs=2)
    assert np.array_equal(parallel, cross_val_score(model, paths, labels, cv=3))


def test_a_damaged_file_is_computed_again(
    paths: list[str], extractor: FeatureExtractor, tmp_path: Path
) -> None:
    expected = extractor.transform(paths)
    (made,) = (tmp_path / "features").glob("*.h5")
    content = bytearray(made.read_bytes())
    place = content.find(expected[3].tobytes())
    assert place > 0
    content[place : place + 8] = b"\xff" * 8
    made.write_bytes(content)
    assert np.array_equal(extractor.transform(paths), expected)
    made.write_bytes(b"no HDF5")
    assert np.array_equal(extractor.transform(paths), expected)


@pytest.mark.parametrize("among", [0, 4])
def test_an_image_that_is_none_is_named_and_the_others_are_kept(
    paths: list[str], shapes: Path, extractor: FeatureExtractor, computed: list[int], among: int
) -> None:
    broken = shapes.parent / "broken" / "text.jpg"
    with pytest.raises(DecodeError, match=r"broken/text\.jpg.*cannot leave out") as raised:
        extractor.transform([*paths[:among], broken])
    assert isinstance(raised.value, FeatpipeError)
    extractor.transform(paths[: among or 1])
    assert computed == ([5] if among else [1, 1])


def test_missing_files_are_named_before_anything_is_computed(
    paths: list[str], extractor: FeatureExtractor, computed: list[int]
) -> None:
    with pytest.raises(ImagesError, match=r"nowhere\.jpg: no such file \(and 1 more\)"):
        extractor.transform([*paths, "nowhere.jpg", "neither.jpg"])
    assert computed == []


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ("a.jpg", "list of image paths"),
        (Path("a.jpg"), "list of image paths"),
        (3, "list of image paths"),
        ([], "no images"),
        ([1.0, 2.0], "list of image paths"),
        (np.zeros((2, 3)), r"shape \(2, 3\)"),
        (pd.DataFrame({"path": ["a.jpg"]}), r"shape \(1, 1\)"),
    ],
)
def test_what_is_no_list_of_paths_is_refused(
    extractor: FeatureExtractor, given: object, match: str
) -> None:
    for method in (extractor.fit, extractor.transform):
        with pytest.raises(ImagesError, match=match):
            method(given)


def test_a_folder_that_cannot_be_made_is_named(paths: list[str], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(CacheError, match="Give another folder as cache"):
        FeatureExtractor("pixels", cache=tmp_path / "file").transform(paths[:1])


def test_a_setting_is_checked_by_fit_and_not_by_the_constructor(paths: list[str]) -> None:
    extractor = FeatureExtractor(pool="most")
    with pytest.raises(SettingsError, match="pool"):
        extractor.fit(paths)


def test_it_is_cloned_pickled_and_shown_like_any_estimator(
    paths: list[str], extractor: FeatureExtractor, tmp_path: Path
) -> None:
    assert clone(extractor).get_params() == extractor.get_params()
    again = pickle.loads(pickle.dumps(extractor.fit(paths)))
    assert np.array_equal(again.transform(paths[:3]), extractor.transform(paths[:3]))
    assert "backbone='pixels'" in repr(extractor)
    assert not hasattr(clone(extractor), "n_features_in_")
    assert extractor.n_features_in_ == 1
    check_is_fitted(clone(extractor))  # there is nothing to fit
    assert not extractor.__sklearn_tags__().requires_fit


def test_its_columns_have_names(paths: list[str], extractor: FeatureExtractor) -> None:
    table = extractor.set_output(transform="pandas").fit_transform(paths[:3])
    assert table.shape == (3, 32 * 32 * 3)
    assert list(table.columns[:2]) == ["featureextractor0", "featureextractor1"]
    assert list(table.columns) == list(extractor.get_feature_names_out())


@pytest.mark.realdata
def test_a_pipeline_on_photographs(shared: Path, tmp_path: Path) -> None:
    root = shared / "data" / "hymenoptera"
    images = {part: sorted((root / part).glob("*/*.jpg")) for part in ("train", "val")}
    classes = {part: [path.parent.name for path in found] for part, found in images.items()}
    backbone = f"mobilenet_v2@{shared / 'weights' / 'mobilenet_v2.pth'}"
    model = make_pipeline(
        FeatureExtractor(backbone, cache=tmp_path), StandardScaler(), LogisticRegression()
    )
    model.fit(images["train"], classes["train"])
    assert model.score(images["val"], classes["val"]) >= 0.9
