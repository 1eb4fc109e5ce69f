"""A trained network's file, and the backbone that is made of it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from featpipe.backbones import backbone_names, load_backbone, parse_backbone
from featpipe.cnn import Architecture
from featpipe.descent import seeded
from featpipe.errors import WeightsError
from featpipe.extract import extract_features
from featpipe.extractor import prepare
from featpipe.network_file import TrainedNetwork, load_network, save_network
from featpipe.settings import ExtractSettings
from featpipe.weights import read_tensors, write_tensors

ARCHITECTURES = {
    "two-layer": Architecture("two-layer", 3, 16),
    "small": Architecture("small", 3, 24, (4, 6, 8), 0.3),
    "resnet18": Architecture("resnet18", 3, 32),
    "vit": Architecture("vit_b_32", 3, 32),
    "squeezenet": Architecture("squeezenet1_1", 3, 32, dropout=0.1),
}


def made(name: str) -> TrainedNetwork:
    """A network whose batch norms have seen something."""
    architecture = ARCHITECTURES[name]
    model = seeded(0, architecture.build)
    side = architecture.input_size
    with torch.no_grad():
        model.train()(torch.randn(4, 3, side, side))
    model = model.eval().to(memory_format=torch.channels_last)
    result = {"scores": {"test": {"accuracy": 0.5}}, "conditions": {"images": "photos"}}
    return TrainedNetwork(model, architecture, ("a", "b", "c"), result)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A small network's file."""
    path = tmp_path / "network.safetensors"
    save_network(path, made("small"))
    return path


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_network_comes_back_as_it_was(name: str, tmp_path: Path) -> None:
    network, path = made(name), tmp_path / "n.safetensors"
    save_network(path, network)
    again = load_network(path)
    side = network.architecture.input_size
    images = torch.randn(2, 3, side, side)
    plain = network.model.to(memory_format=torch.contiguous_format)
    with torch.no_grad():
        assert torch.equal(again.model(images), plain(images))
    assert again.architecture == network.architecture
    assert (again.classes, again.result) == (network.classes, network.result)
    assert [one.name for one in tmp_path.iterdir()] == ["n.safetensors"]


def test_the_file_says_in_plain_words_what_it_is(file: Path) -> None:
    _, metadata = read_tensors(file)
    assert metadata["format"] == "featpipe-network"
    assert json.loads(metadata["classes"]) == ["a", "b", "c"]
    assert json.loads(metadata["preprocessing"])["crop"] == [24, 24]
    assert json.loads(metadata["result"])["scores"]["test"]["accuracy"] == 0.5
    assert json.loads(metadata["architecture"]) == {
        "name": "small", "outputs": 3, "input_size": 24, "widths": [4, 6, 8], "dropout": 0.3,
    }  # fmt: skip


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_network_is_a_backbone_with_layers(name: str, tmp_path: Path) -> None:
    path = tmp_path / "n.safetensors"
    save_network(path, made(name))
    backbone = load_backbone(f"checkpoint:{path}")
    side = ARCHITECTURES[name].input_size
    assert backbone.preprocessing.crop == backbone.preprocessing.resize == (side, side)
    assert not backbone.random
    assert not any(parameter.requires_grad for parameter in backbone.model.parameters())
    layers = backbone.layers()
    assert layers.shapes[list(layers.shapes)[-1]] == (3,)
    assert layers.default in layers.shapes


def test_its_features_are_what_its_last_layer_is_given(file: Path, shapes: Path) -> None:
    settings = ExtractSettings(precision="float32", decode="exact", runtime="torch", device="cpu")
    with extract_features(shapes, f"checkpoint:{file}", file.parent / "f.h5", settings) as cache:
        assert cache.spec.backbone == "checkpoint:small"
        assert cache.spec.weights == str(file)
        assert not cache.spec.random_weights
        features = cache.features()
    assert features.shape == (36, 8)
    assert np.ptp(features, axis=0).max() > 0


def test_two_files_of_one_network_make_one_spec(file: Path) -> None:
    other = file.with_name("copy@of:it.safetensors")
    other.write_bytes(file.read_bytes())
    specs = [
        prepare(f"checkpoint:{path}", ExtractSettings(device="cpu")).spec for path in (file, other)
    ]
    assert specs[0].differences(specs[1]) == []
    state, metadata = read_tensors(file)
    state["stages.0.0.weight"][0, 0, 0, 0] += 1e-3
    write_tensors(other, state, metadata)
    changed = prepare(f"checkpoint:{other}", ExtractSettings(device="cpu")).spec
    assert [line.partition(":")[0] for line in changed.differences(specs[0])] == [
        "weights",
        "weights digests flatten",
    ]


@pytest.mark.parametrize("folder", ["plain", "a@b", "c:d", "e@f:g", "\udcff"])
def test_a_path_may_hold_the_signs_that_divide_a_backbone(
    folder: str, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(file.parent)
    try:
        Path(folder).mkdir()
    except OSError:
        pytest.skip("this file system has no such names")
    moved = file.rename(Path(folder, "n.safetensors"))
    backbone = load_backbone(f"checkpoint:{moved}")
    assert backbone.weights == str(moved)
    # As it is written, and as a Spec has it, it is found again.
    again = load_backbone(f"checkpoint:{backbone.name}", backbone.weights)
    assert again.weights == backbone.weights
    assert load_backbone(str(backbone)).weights == backbone.weights


def test_a_drives_letter_belongs_to_the_path() -> None:
    assert parse_backbone(r"checkpoint:C:\nets\n.safetensors") == (
        "checkpoint", r"C:\nets\n.safetensors", None,
    )  # fmt: skip


def test_a_checkpoint_has_no_random_weights_and_no_names(file: Path) -> None:
    assert backbone_names("checkpoint") == {"checkpoint": []}
    with pytest.raises(WeightsError, match="resnet18@random"):
        load_backbone(f"checkpoint:{file}@random")


def test_a_file_that_is_not_there_is_told_of(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"no file .*absent\.safetensors"):
        load_backbone(f"checkpoint:{tmp_path / 'absent.safetensors'}")


@pytest.mark.parametrize("kept", [0, 4, 8, 100, -1])
def test_a_damaged_file_is_told_of(kept: int, file: Path) -> None:
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(WeightsError, match="damaged"):
        load_network(file)


def test_weights_of_others_are_told_apart(file: Path) -> None:
    state, _ = read_tensors(file)
    write_tensors(file, state, {"format": "pt"})
    with pytest.raises(WeightsError, match=r"no network that featpipe train-scratch wrote.*@FILE"):
        load_network(file)


def test_a_newer_files_version_is_named(file: Path) -> None:
    state, metadata = read_tensors(file)
    write_tensors(file, state, {**metadata, "format_version": "7"})
    with pytest.raises(WeightsError, match="format version 7"):
        load_network(file)


WRONG: dict[str, dict[str, Any]] = {
    "huge": {"widths": [4096] * 8, "input_size": 4096},
    "too wide": {"widths": [10**12]},
    "another": {"name": "resnet18", "widths": []},
    "unknown": {"name": "../../etc"},
    "no text": {"name": 3},
    "no number": {"outputs": "3"},
    "true": {"outputs": True},
    "more outputs": {"outputs": 4},
    "more values": {"pretrained": True},
    "other size": {"input_size": 48},
    "no list": {"widths": 5},
}


@pytest.mark.parametrize("how", WRONG)
def test_a_file_that_contradicts_itself_is_refused(how: str, file: Path) -> None:
    state, metadata = read_tensors(file)
    values = {**json.loads(metadata["architecture"]), **WRONG[how]}
    write_tensors(file, state, {**metadata, "architecture": json.dumps(values)})
    with pytest.raises(WeightsError, match=r"network\.safetensors"):
        load_network(file)


@pytest.mark.parametrize("what", ["architecture", "classes", "preprocessing", "result"])
def test_a_part_that_is_missing_or_no_json_is_refused(what: str, file: Path) -> None:
    state, metadata = read_tensors(file)
    for value in ({}, {what: "{"}, {what: "3"}):
        rest = {name: text for name, text in metadata.items() if name != what}
        write_tensors(file, state, {**rest, **value})
        with pytest.raises(WeightsError, match="not a whole network"):
            load_network(file)


def test_a_missing_and_a_superfluous_tensor_are_named(file: Path) -> None:
    state, metadata = read_tensors(file)
    state["odd"] = state.pop("classifier.weight")
    write_tensors(file, state, metadata)
    with pytest.raises(WeightsError, match=r"lacks classifier\.weight, and has, unused, odd"):
        load_network(file)
