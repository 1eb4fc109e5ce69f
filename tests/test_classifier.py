"""The classifier file: what is saved is what predicts, on the same backbone only."""

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from safetensors import safe_open
from safetensors.numpy import save_file

from featpipe.backbones import load_backbone
from featpipe.cache import FeatureCache
from featpipe.classifier import Classifier
from featpipe.cli import cli
from featpipe.errors import BackboneError, ClassifierError
from featpipe.extract import extract_features
from featpipe.images import open_images
from featpipe.settings import ExtractSettings, TrainSettings
from featpipe.train import train_head

DATA = Path(__file__).parents[1] / "data"
NET = "squeezenet1_1@random"
SETTINGS = ExtractSettings(input_size=64, seed=3)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FeatureCache]:
    """Features of the sample images by a random network of seed 3."""
    with extract_features(
        DATA / "shapes", NET, tmp_path_factory.mktemp("cls") / "f.h5", SETTINGS
    ) as cache:
        yield cache


@pytest.fixture(scope="module")
def classifier(cache: FeatureCache) -> Classifier:
    """A linear head on them."""
    return train_head(cache, "linear", epochs=20, device="cpu")[0]


@pytest.fixture(scope="module")
def saved(classifier: Classifier, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file it is saved in."""
    path = tmp_path_factory.mktemp("saved") / "c.safetensors"
    classifier.save(path)
    return path


@pytest.mark.parametrize(
    ("head", "options"),
    [("linear", {"epochs": 4}), ("mlp", {"epochs": 4, "hidden": (9, 5)}), ("sklearn-logistic", {})],
)
def test_a_saved_classifier_is_the_same_again(
    cache: FeatureCache, head: str, options: dict[str, object], tmp_path: Path
) -> None:
    made, _ = train_head(cache, head, **options)
    made.save(tmp_path / "c.safetensors")
    read = Classifier.load(tmp_path / "c.safetensors")
    features = cache.features()
    assert np.array_equal(read.predict_features(features), made.predict_features(features))
    assert (read.spec, read.layer, read.head_name) == (made.spec, made.layer, head)
    assert read.classes == made.classes == ("circle", "square", "triangle")
    assert read.result == json.loads(json.dumps(made.result))


def test_a_classifier_that_was_read_can_be_saved_again(saved: Path, tmp_path: Path) -> None:
    Classifier.load(saved).save(tmp_path / "again.safetensors")
    with (
        safe_open(saved, "numpy") as one,
        safe_open(tmp_path / "again.safetensors", "numpy") as two,
    ):
        assert one.metadata() == two.metadata()
        for name in one.keys():  # noqa: SIM118
            assert np.array_equal(one.get_tensor(name), two.get_tensor(name))


def test_the_file_is_plain_arrays_and_json(saved: Path) -> None:
    with safe_open(saved, "numpy") as file:
        metadata = file.metadata()
        names = set(file.keys())
    assert names == {"0.weight", "0.bias", "mean", "scale"}
    for key in ("spec", "head", "classes", "result"):
        json.loads(metadata[key])
    strings = {"format", "format_version", "layer", "spec", "head", "classes", "result"}
    assert set(metadata) == strings | {"calibration"}


def test_images_get_the_labels_that_their_cached_features_get(
    cache: FeatureCache, saved: Path
) -> None:
    loaded = Classifier.load(saved)
    predictions = list(loaded.predict(open_images(DATA / "shapes")))
    assert [prediction.id for prediction in predictions] == cache.table.ids.tolist()
    proba = np.array([prediction.proba for prediction in predictions])
    expected = loaded.predict_features(cache.features())
    assert np.abs(proba - expected).max() < 1e-4
    assert np.array_equal(proba.argmax(axis=1), expected.argmax(axis=1))
    assert proba.sum(axis=1) == pytest.approx(1)
    labels = cache.table.labels
    assert labels is not None
    assert [p.true for p in predictions] == [cache.table.classes[label] for label in labels]


@pytest.mark.parametrize("batch_size", [1, 5, 36, 100])
def test_any_batch_size_predicts_every_image_in_order(saved: Path, batch_size: int) -> None:
    source = open_images(DATA / "shapes")
    steps: list[tuple[int, int]] = []
    settings = ExtractSettings(batch_size=batch_size, workers=2)
    predictions = list(
        Classifier.load(saved).predict(
            source, settings, on_progress=lambda done, total: steps.append((done, total))
        )
    )
    assert [prediction.id for prediction in predictions] == source.table.ids.tolist()
    assert steps[-1] == (36, 36)


def test_a_layer_among_several_finds_its_own_features(tmp_path: Path) -> None:
    settings = replace(SETTINGS, layer=("features.2", "features.12.cat"), pool="avg")
    cache = extract_features(DATA / "shapes", NET, tmp_path / "f.h5", settings)
    made, _ = train_head(cache, "sklearn-logistic", TrainSettings(layer="features.2"))
    predictions = list(made.predict(open_images(DATA / "shapes")))
    expected = made.predict_features(cache.features("features.2"))
    assert np.abs(np.array([p.proba for p in predictions]) - expected).max() < 1e-4


def test_features_stored_as_float16_are_no_difference(tmp_path: Path) -> None:
    cache = extract_features(
        DATA / "shapes", "pixels", tmp_path / "f.h5", ExtractSettings(dtype="float16")
    )
    made, _ = train_head(cache, "sklearn-logistic")
    predictions = list(made.predict(open_images(DATA / "shapes")))
    expected = made.predict_features(cache.features())
    assert np.abs(np.array([p.proba for p in predictions]) - expected).max() < 0.01


def test_other_weights_are_refused_with_the_difference(saved: Path) -> None:
    other = load_backbone(NET, seed=4, input_size=64)
    with pytest.raises(ClassifierError, match=r"weights digest.*: trained with \w+, requested"):
        list(Classifier.load(saved).predict(open_images(DATA / "shapes"), backbone=other))


def test_the_backbone_may_be_handed_over(saved: Path) -> None:
    same = load_backbone(NET, seed=3, input_size=64)
    predictions = Classifier.load(saved).predict(open_images(DATA / "shapes"), backbone=same)
    assert all(prediction.proba is not None for prediction in predictions)


@pytest.mark.parametrize("factory", ["square", "wide"])
def test_a_network_of_the_users_own_is_built_again_from_its_seed_and_size(
    factory: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = tmp_path / f"net_{factory}.py"
    size = {"square": (32, 32), "wide": (32, 64)}[factory]
    module.write_text(
        "from torch import nn\nfrom featpipe import Preprocessing\n"
        "def make():\n"
        "    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1),\n"
        "                        nn.Flatten(), nn.Linear(4, 2))\n"
        f"    return net, Preprocessing({size}, {size})\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    settings = ExtractSettings(seed=3 if factory == "square" else 0)
    cache = extract_features(
        DATA / "shapes", f"python:{module.stem}:make", tmp_path / "f.h5", settings
    )
    made, _ = train_head(cache, "sklearn-logistic")
    with pytest.raises(BackboneError, match=f"names python:{module.stem}:make, code.*trust_code"):
        list(made.predict(open_images(DATA / "shapes")))
    trusted = ExtractSettings(trust_code=True)
    predictions = list(made.predict(open_images(DATA / "shapes"), trusted))
    expected = made.predict_features(cache.features())
    assert np.abs(np.array([p.proba for p in predictions]) - expected).max() < 1e-4


def test_no_code_runs_because_a_file_names_it(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran = tmp_path / "ran"
    (tmp_path / "hostile.py").write_text(f"import pathlib\npathlib.Path({str(ran)!r}).touch()\n")
    monkeypatch.chdir(tmp_path)
    loaded = Classifier.load(saved)
    forged = replace(loaded, spec=replace(loaded.spec, backbone="python:hostile:make"))
    forged.save("forged.safetensors")
    arguments = ["predict", "forged.safetensors", str(DATA / "shapes")]
    refused = CliRunner().invoke(cli, arguments)
    assert (refused.exit_code, "--trust-code" in refused.stderr) == (1, True)
    assert not ran.exists()
    CliRunner().invoke(cli, [*arguments, "--trust-code"])
    assert ran.exists()  # or the refusal would have shown nothing


# What is changed in a sound file, and what is said of it.
FORGED = {
    "layer": ("classifier.99", "none of its Spec's"),
    "classes": ('["circle", "square", "square"]', "the name of another"),
    "classes ": ("[]", "no names"),
    "classes  ": ('["circle", 7, "square"]', "no text"),
    "classes   ": ('["circle", "square"]', "none of its classes"),
    "result": ("[]", "not a whole classifier"),
    "result ": ('{"scores": {"val": {"accuracy": 0.5}}}', "not a whole classifier"),
    "result  ": (
        '{"scores": {"val": {"accuracy": 0.9, "accuracy_interval_95": [0.1, 0.2], "n": 3}}}',
        "its scores contradict",
    ),
    "head n_features": (10**15, "n_features is 1000000000000000"),
    "head n_features ": (-1, "n_features is -1"),
    "head n_features  ": (7, "not a whole classifier"),
    "head classes": ([0, 2, 1], "none of its classes"),
    "head classes ": ([-1, 0, 1], "none of its classes"),
    "head classes  ": ([0.0, 0.5, 1.0], "none of its classes"),
    "head classes   ": ([[0, 1, 2]], "not a whole classifier"),
}


@pytest.mark.parametrize("what", FORGED)
def test_a_file_whose_parts_contradict_each_other_is_refused(
    what: str, saved: Path, tmp_path: Path
) -> None:
    with safe_open(saved, "numpy") as file:
        metadata = file.metadata()
        state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    value, said = FORGED[what]
    part, _, key = what.strip().partition(" ")
    if key:
        value = json.dumps({**json.loads(metadata[part]), key: value})
    save_file(state, tmp_path / "forged.safetensors", {**metadata, part: value})
    with pytest.raises(ClassifierError, match=re.escape(said)):
        Classifier.load(tmp_path / "forged.safetensors")


def test_an_undecodable_image_is_a_prediction_with_a_reason(saved: Path) -> None:
    source = open_images(DATA / "broken")
    predictions = list(Classifier.load(saved).predict(source))
    assert [prediction.id for prediction in predictions] == source.table.ids.tolist()
    assert all(prediction.proba is None and prediction.reason for prediction in predictions)
    assert {p.id: p.reason for p in predictions}["empty.jpg"] == "the file is empty"


def test_a_bad_image_among_good_ones_spoils_no_other(saved: Path) -> None:
    good = open_images(DATA / "shapes")
    mixed = replace(good, read=lambda row: b"" if row == 2 else good.read(row))
    loaded = Classifier.load(saved)
    clean, spoilt = list(loaded.predict(good)), list(loaded.predict(mixed))
    assert (spoilt[2].proba, spoilt[2].reason) == (None, "the file is empty")
    for row in (0, 1, 3, 35):
        assert np.allclose(spoilt[row].proba, clean[row].proba, atol=1e-5)


def test_a_folder_that_is_no_class_gives_no_true_label(saved: Path, tmp_path: Path) -> None:
    for folder, name in (("circle", "circle_01.jpg"), ("holiday", "circle_02.jpg")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / name).write_bytes((DATA / "shapes/circle" / name).read_bytes())
    predictions = list(Classifier.load(saved).predict(open_images(tmp_path)))
    assert [prediction.true for prediction in predictions] == ["circle", None]


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ClassifierError, match=r"no classifier file .*nothing"):
        Classifier.load(tmp_path / "nothing.safetensors")


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "text.safetensors"
    path.write_text("This is no classifier, however it is called.")
    with pytest.raises(ClassifierError, match="not a safetensors file"):
        Classifier.load(path)


def test_another_programs_safetensors_file_is_refused(tmp_path: Path) -> None:
    save_file({"a": np.zeros(3)}, tmp_path / "other.safetensors")
    with pytest.raises(ClassifierError, match="not featpipe's"):
        Classifier.load(tmp_path / "other.safetensors")


def test_a_newer_format_asks_for_a_newer_featpipe(saved: Path, tmp_path: Path) -> None:
    with safe_open(saved, "numpy") as file:
        metadata = {**file.metadata(), "format_version": "99"}
        arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    save_file(arrays, tmp_path / "new.safetensors", metadata)
    with pytest.raises(ClassifierError, match="version 99"):
        Classifier.load(tmp_path / "new.safetensors")


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.99])
def test_a_truncated_file_is_refused(saved: Path, share: float, tmp_path: Path) -> None:
    data = saved.read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(data[: int(share * len(data))])
    with pytest.raises(ClassifierError, match="damaged"):
        Classifier.load(tmp_path / "cut.safetensors")
