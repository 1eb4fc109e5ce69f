"""Trainings that share a folder of checkpoints: none goes on with another's state."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from featpipe import checkpoint, descent, stacked
from featpipe.cache import FeatureCache
from featpipe.classifier import Classifier
from featpipe.extract import extract_features
from featpipe.images import open_images
from featpipe.scratch import train_from_scratch
from featpipe.settings import ExtractSettings, ScratchSettings, TrainSettings
from featpipe.split import Split
from featpipe.train import train_head

CPU = TrainSettings(device="cpu")
TAIL: dict[str, Any] = {"epochs": 2, "lr": 1e-3, "precision": "float32"}


@pytest.fixture(autouse=True)
def every_state_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "SECONDS", 0.0)
    for module in (descent, stacked):
        monkeypatch.setattr(module, "WORTH_KEEPING", 0.0)


@pytest.fixture(scope="module")
def cache(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FeatureCache]:
    """Two layers of one width, their channels in the same places."""
    settings = ExtractSettings(
        layer=("features.9", "features.10"), pool="avg", weights="random", input_size=64,
        precision="float32", decode="exact", batch_size=4,
    )  # fmt: skip
    out = tmp_path_factory.mktemp("resume") / "f.h5"
    with extract_features(shapes, "squeezenet1_1", out, settings) as made:
        yield made


@pytest.fixture(scope="module")
def maps(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FeatureCache]:
    settings = ExtractSettings(
        layer=("layer3",), weights="random", input_size=64, dtype="float16", precision="float32",
        decode="exact", batch_size=4,
    )  # fmt: skip
    out = tmp_path_factory.mktemp("resume") / "maps.h5"
    with extract_features(shapes, "resnet18", out, settings) as made:
        yield made


def figures(result: Any) -> list[Any]:
    return [one.folds["log_loss"] for one in result.sweep.candidates]


@pytest.mark.parametrize(
    ("sweep", "layers"), [({}, ("all",)), ({"standardize": [True, False]}, ("features.10",))]
)
def test_a_sweep_is_the_same_with_and_without_a_folder(
    cache: FeatureCache, sweep: dict[str, list[Any]], layers: tuple[str, ...], tmp_path: Path
) -> None:
    settings = TrainSettings(device="cpu", folds=3)
    options = {"epochs": 5, "lr": 0.01}
    _, alone = train_head(cache, "linear", settings, sweep, layers, **options)
    for _ in range(2):  # begun, and gone on
        _, kept = train_head(
            cache, "linear", settings, sweep, layers, unfinished=tmp_path / "u", **options
        )
        assert figures(kept) == figures(alone)


def test_another_standardisation_is_another_training(cache: FeatureCache, tmp_path: Path) -> None:
    settings = TrainSettings(device="cpu", layer="features.10")
    found = []
    for standardize in (True, False):
        options = {"epochs": 5, "lr": 0.01, "standardize": standardize}
        _, alone = train_head(cache, "linear", settings, **options)
        _, kept = train_head(cache, "linear", settings, unfinished=tmp_path, **options)
        assert kept.curves == alone.curves
        found.append(kept.curves)
    assert found[0] != found[1]


@pytest.mark.parametrize(
    "sweep", [{"train": ["all", "last"]}, {"freeze_norm": [False, True], "train": ["all"]}]
)
def test_tails_that_train_other_parts_are_other_trainings(
    maps: FeatureCache, sweep: dict[str, list[Any]], tmp_path: Path
) -> None:
    _, alone = train_head(maps, "tail", CPU, sweep, **TAIL)
    _, kept = train_head(maps, "tail", CPU, sweep, unfinished=tmp_path, **TAIL)
    assert figures(kept) == figures(alone)


def test_another_split_is_another_training_from_scratch(shapes: Path, tmp_path: Path) -> None:
    images = open_images(shapes)
    settings = ScratchSettings(epochs=1, input_size=16)
    none = np.arange(0)
    found = []
    for first in (0, 1):
        split = Split(np.arange(first, 36, 2), none, none, "by hand")
        alone, _ = train_from_scratch(images, split, settings, CPU)
        with checkpoint.checkpointing(tmp_path, "same"):
            kept, _ = train_from_scratch(images, split, settings, CPU)
        weights = [one.model.state_dict() for one in (alone, kept)]
        for name, tensor in weights[0].items():
            assert tensor.equal(weights[1][name]), name
        found.append(weights[1])
    assert any(not tensor.equal(found[1][name]) for name, tensor in found[0].items())


def test_clearing_leaves_the_states_of_other_trainings(tmp_path: Path) -> None:
    with checkpoint.checkpointing(tmp_path, "one") as kept:
        kept.save("key", {"step": 1})
    checkpoint._own.clear()  # the rest is done by another process
    with checkpoint.checkpointing(tmp_path, "other") as other:
        other.save("key", {"step": 2})
    checkpoint.Checkpoints(tmp_path).clear()
    assert other.load("key") is None
    one = checkpoint.Checkpoints(tmp_path, "one")
    assert one.load("key") == {"step": 1}
    one.clear()
    assert not tmp_path.exists()


def test_a_tail_of_a_network_trained_here_is_loaded_again(shapes: Path, tmp_path: Path) -> None:
    from featpipe.network_file import save_network

    settings = ScratchSettings(network="small", widths=(8, 16), epochs=1, input_size=32)
    network, _ = train_from_scratch(open_images(shapes), None, settings, CPU)
    save_network(tmp_path / "net.safetensors", network)
    whole = ExtractSettings(layer=("stages.0",), input_size=32, decode="exact")
    backbone = f"checkpoint:{tmp_path / 'net.safetensors'}"
    with extract_features(shapes, backbone, tmp_path / "f.h5", whole) as cache:
        classifier, _ = train_head(cache, "tail", CPU, train="all", **TAIL)
        features = cache.features().astype(np.float32)
    classifier.save(tmp_path / "c.safetensors")
    again = Classifier.load(tmp_path / "c.safetensors")
    expected = classifier.predict_features(features)
    np.testing.assert_allclose(again.predict_features(features), expected, atol=1e-6)


def test_loading_a_tail_changes_no_other(maps: FeatureCache, tmp_path: Path) -> None:
    features = maps.features().astype(np.float32)
    classifier, _ = train_head(maps, "tail", CPU, train="last", **TAIL)
    before = classifier.predict_features(features)
    classifier.save(tmp_path / "a.safetensors")
    arrays = {name: array + 0.1 for name, array in classifier.head.arrays().items()}
    classifier.head.arrays = lambda: arrays
    classifier.save(tmp_path / "b.safetensors")
    first = Classifier.load(tmp_path / "a.safetensors")
    second = Classifier.load(tmp_path / "b.safetensors")
    assert not np.allclose(second.predict_features(features), before, atol=1e-3)
    np.testing.assert_allclose(first.predict_features(features), before, atol=1e-6)
