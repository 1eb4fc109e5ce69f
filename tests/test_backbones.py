"""Backbones: names, weights files, failures."""

import pickle
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save, save_file
from torch import nn

from featpipe.backbones import backbone_names, load_backbone, parse_backbone
from featpipe.backbones.torchvision import weights_file
from featpipe.errors import BackboneError, MissingExtraError, UnknownNameError, WeightsError
from featpipe.extractor import prepare
from featpipe.settings import ExtractSettings
from featpipe.weights import apply_state_dict


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("vgg16", ("torchvision", "vgg16", None)),
        ("vgg16@random", ("torchvision", "vgg16", "random")),
        ("timm:resnet50.a1_in1k", ("timm", "resnet50.a1_in1k", None)),
        ("mobilenet_v2@weights/m.pth", ("torchvision", "mobilenet_v2", "weights/m.pth")),
        ("python:pkg.mod:factory", ("python", "pkg.mod:factory", None)),
        ("pixels", ("pixels", "pixels", None)),
        ("checkpoint:out/n.safetensors", ("checkpoint", "out/n.safetensors", None)),
    ],
)
def test_backbones_are_written_source_name_weights(
    text: str, parts: tuple[str, str, str | None]
) -> None:
    assert parse_backbone(text) == parts


@pytest.mark.parametrize("text", ["", "@random", "vgg16@", "timm:"])
def test_half_a_backbone_is_an_error(text: str) -> None:
    with pytest.raises(BackboneError, match="name"):
        parse_backbone(text)


def test_names_of_every_source_are_listed() -> None:
    names = backbone_names()
    assert {"torchvision", "timm", "python", "pixels", "checkpoint"} <= set(names)
    assert {"vgg16", "resnet50", "squeezenet1_1"} <= set(names["torchvision"])
    assert not any("rcnn" in name or "raft" in name for name in names["torchvision"])


def test_an_unknown_model_names_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="resnet50"):
        load_backbone("resnet5", "random")


def test_random_weights_are_seeded_and_leave_the_global_seed_alone() -> None:
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    settings = [ExtractSettings(weights="random", seed=seed, input_size=64) for seed in (3, 3, 4)]
    digests = [prepare("squeezenet1_1", one).spec.weights_digests for one in settings]
    assert digests[0] == digests[1] != digests[2]
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize("form", ["pth", "safetensors", "wrapped", "data_parallel"])
def test_weights_come_from_a_file_of_any_common_form(tmp_path: Path, form: str) -> None:
    original = load_backbone("squeezenet1_1", "random", seed=7)
    state = dict(original.model.state_dict())
    path = tmp_path / ("w.safetensors" if form == "safetensors" else "w.pth")
    if form == "safetensors":
        save_file(state, path)
    elif form == "wrapped":
        torch.save({"epoch": 3, "state_dict": state}, path)
    elif form == "data_parallel":
        torch.save({f"module.{name}": value for name, value in state.items()}, path)
    else:
        torch.save(state, path)
    loaded = load_backbone(f"squeezenet1_1@{path}")
    assert not loaded.random
    assert loaded.loaded.missing == loaded.loaded.unexpected == ()
    for name, value in loaded.model.state_dict().items():
        assert torch.equal(value, state[name]), name


def test_a_missing_classifier_is_fine_until_a_layer_needs_it(tmp_path: Path) -> None:
    state = load_backbone("resnet18", "random").model.state_dict()
    body = {name: value for name, value in state.items() if not name.startswith("fc.")}
    torch.save(body, tmp_path / "body.pth")
    backbone = load_backbone("resnet18", str(tmp_path / "body.pth"), input_size=64)
    assert backbone.loaded.missing == ("fc.weight", "fc.bias")
    layers = backbone.layers()
    backbone.cut(layers, ["flatten"])
    with pytest.raises(WeightsError, match=r"fc\.bias, fc\.weight"):
        backbone.cut(layers, ["fc"])


def test_a_classifier_of_another_width_counts_as_missing(tmp_path: Path) -> None:
    state = load_backbone("resnet18", "random").model.state_dict()
    state["fc.weight"], state["fc.bias"] = torch.zeros(2, 512), torch.zeros(2)
    torch.save(state, tmp_path / "two.pth")
    loaded = load_backbone("resnet18", str(tmp_path / "two.pth")).loaded
    assert set(loaded.missing) == set(loaded.unexpected) == {"fc.weight", "fc.bias"}


def test_the_digest_is_that_of_the_tensors_the_layer_needs(tmp_path: Path) -> None:
    whole = tmp_path / "whole.pth"
    body = tmp_path / "body.pth"
    state = load_backbone("resnet18", "random").model.state_dict()
    torch.save(state, whole)
    torch.save({k: v for k, v in state.items() if not k.startswith("fc.")}, body)
    settings = ExtractSettings(input_size=64)
    specs = [prepare(f"resnet18@{path}", settings).spec for path in (whole, body)]
    assert specs[0].differences(specs[1]) == []
    state["layer4.1.conv2.weight"][0, 0, 0, 0] += 1e-3
    torch.save(state, whole)
    differences = prepare(f"resnet18@{whole}", settings).spec.differences(specs[0])
    assert [line.partition(":")[0] for line in differences] == ["weights digests flatten"]


def test_a_weights_file_may_have_a_name_of_any_bytes(tmp_path: Path) -> None:
    file = tmp_path / "\udcff\n.safetensors"
    state = load_backbone("squeezenet1_1@random").model.state_dict()
    try:
        file.write_bytes(save(state))
    except OSError:
        pytest.skip("this file system has no such names")
    loaded = load_backbone("squeezenet1_1", str(file)).model.state_dict()
    assert all(torch.equal(loaded[name], state[name]) for name in state)


def test_another_architectures_weights_are_refused(tmp_path: Path) -> None:
    torch.save(load_backbone("squeezenet1_1", "random").model.state_dict(), tmp_path / "s.pth")
    with pytest.raises(WeightsError, match="does not fit ResNet"):
        load_backbone("resnet18", str(tmp_path / "s.pth"))


class Bomb:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (print, ("boom",))


def test_a_pickle_bomb_is_refused_and_does_not_go_off(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bomb.pth").write_bytes(pickle.dumps({"weight": Bomb()}))
    torch.save({"weight": Bomb()}, tmp_path / "zipped.pth")
    for name in ("bomb.pth", "zipped.pth"):
        with pytest.raises(WeightsError):
            load_backbone("resnet18", str(tmp_path / name))
    assert "boom" not in capsys.readouterr().out


@pytest.mark.parametrize("content", [b"", b"nonsense", b"PK\x03\x04 not a zip"])
def test_a_damaged_weights_file_is_an_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "bad.pth").write_bytes(content)
    with pytest.raises(WeightsError, match=r"bad\.pth"):
        load_backbone("resnet18", str(tmp_path / "bad.pth"))


def test_a_failed_download_says_what_to_put_where(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    # A proxy that refuses every connection at once, so that nothing leaves this machine.
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    for variable in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    url, file = weights_file("vgg16")
    with pytest.raises(WeightsError) as caught:
        load_backbone("vgg16")
    message = str(caught.value)
    for part in (url, str(file), "--weights PATH", "--weights random"):
        assert part in message
    assert str(file).startswith(str(tmp_path))


def test_downloaded_weights_are_taken_from_torchs_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    _, file = weights_file("squeezenet1_1")
    file.parent.mkdir(parents=True)
    state = load_backbone("squeezenet1_1", "random", seed=5).model.state_dict()
    torch.save(state, file)
    # torch checks a hash only while it downloads; a file in the cache is taken as it is.
    for name, value in load_backbone("squeezenet1_1").model.state_dict().items():
        assert torch.equal(value, state[name])


def test_an_unknown_weights_name_lists_the_known_ones() -> None:
    with pytest.raises(WeightsError, match="IMAGENET1K_V2"):
        load_backbone("resnet50@IMAGENET")


def test_weights_said_twice_must_agree() -> None:
    with pytest.raises(WeightsError, match="disagree"):
        load_backbone("resnet18@random", "DEFAULT")


def test_without_timm_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(MissingExtraError, match=r"featpipe\[timm\]"):
        load_backbone("timm:resnet10t@random")
    assert backbone_names("timm") == {"timm": []}


def test_timm_models_bring_their_own_preprocessing() -> None:
    backbone = load_backbone("timm:resnet10t@random")
    config = backbone.model.pretrained_cfg
    assert list(backbone.preprocessing.mean) == list(config["mean"])
    assert backbone.preprocessing.crop == tuple(config["input_size"][1:])
    layers = backbone.layers()
    assert layers.shapes[layers.default] == (512,)


def test_the_users_own_network_is_called_by_its_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_net.py").write_text(
        "from torch import nn\n"
        "from featpipe import Preprocessing\n"
        "def plain():\n"
        "    return nn.Sequential(nn.Conv2d(3, 6, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(),\n"
        "                         nn.Linear(6, 2))\n"
        "def own():\n"
        "    return plain(), Preprocessing(resize=20, crop=(16, 16))\n"
        "def wrong():\n"
        "    return 3\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    plain = load_backbone("python:my_net:plain")
    assert plain.layers().shapes[plain.layers().default] == (6,)
    assert load_backbone("python:my_net:own").preprocessing.crop == (16, 16)
    for bad in ("wrong", "absent"):
        with pytest.raises(BackboneError, match="my_net"):
            load_backbone(f"python:my_net:{bad}")
    with pytest.raises(BackboneError, match="cannot be imported"):
        load_backbone("python:no_such_module:plain")


class Tied(nn.Module):
    """Two names for one parameter, and for one buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.second.weight = self.first.weight
        self.first.register_buffer("scale", torch.ones(4))
        self.second.register_buffer("scale", self.first.scale)


@pytest.mark.parametrize("left_out", ["second.weight", "second.scale"])
def test_a_file_may_hold_what_is_tied_under_one_name(left_out: str) -> None:
    model = Tied()
    state = {name: torch.rand_like(value) for name, value in model.state_dict().items()}
    del state[left_out]
    apply_state_dict(model, state, "tied.pth")
    kept = left_out.replace("second", "first")
    now = model.state_dict()
    assert torch.equal(now[kept], now[left_out])


def test_tensors_of_a_file_get_the_models_type_and_memory_of_their_own() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    one = torch.rand(4, 4, dtype=torch.float64)
    state = {"0.weight": one, "1.weight": one, "0.bias": torch.rand(4).half()}
    apply_state_dict(model, state, "shared.pth")
    assert {value.dtype for value in model.state_dict().values()} == {torch.float32}
    with torch.no_grad():
        model[0].weight.zero_()
    assert torch.equal(model[1].weight, one.float())
    assert all(parameter.requires_grad for parameter in model.parameters())
