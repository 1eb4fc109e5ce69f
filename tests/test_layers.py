"""Layers: names, shapes, cuts."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor, nn
from torchvision import models

from featpipe.backbones import backbone_names, choose_pool, load_backbone
from featpipe.errors import BackboneError, LayerError
from featpipe.layers import (
    HookedLayers,
    TracedLayers,
    _shapes,
    open_layers,
    pool,
    pooled_shape,
)

# The largest would need gigabytes of random numbers; their smaller sisters share the code.
TOO_LARGE = {"regnet_y_128gf", "regnet_x_32gf", "regnet_y_32gf", "vit_h_14"}


@pytest.mark.parametrize(
    ("layer", "how", "values"),
    [
        ("features", "flatten", 25_088),
        ("classifier.0", "flatten", 4_096),
        ("classifier.3", "flatten", 4_096),
        ("features", "avg", 512),
        ("features", "max", 512),
    ],
)
def test_vgg16_layers_have_the_documented_sizes(layer: str, how: str, values: int) -> None:
    with torch.device("meta"):
        layers = load_backbone("vgg16", "random").layers()
        shape = layers.shapes[layers.resolve(layer)]
    assert pooled_shape(how, shape) == (values,)


def test_a_modules_name_means_its_last_node() -> None:
    layers = load_backbone("squeezenet1_1", "random", input_size=64).layers()
    assert layers.resolve("features") == "features.12.cat"
    assert layers.resolve("features.3") == "features.3.cat"
    assert layers.resolve("features.0") == "features.0"


def test_an_unknown_layer_names_the_nearest() -> None:
    layers = load_backbone("squeezenet1_1", "random", input_size=64).layers()
    with pytest.raises(LayerError, match="Did you mean"):
        layers.resolve("feature.12.cat")


@pytest.mark.parametrize(
    "name", sorted(set(backbone_names("torchvision")["torchvision"]) - TOO_LARGE)
)
def test_every_torchvision_model_has_penultimate_features(name: str) -> None:
    # RegNet computes its widths with numpy, which meta tensors do not allow.
    with torch.device("cpu" if name.startswith("regnet") else "meta"):
        backbone = load_backbone(name, "random")
        layers = backbone.layers()
        shape = layers.shapes[layers.default]
        head = [m for m in backbone.model.modules() if isinstance(m, nn.Linear | nn.Conv2d)][-1]
        width = pooled_shape(choose_pool("auto", False, shape), shape)
        assert isinstance(layers, TracedLayers)
        inputs = head.in_features if isinstance(head, nn.Linear) else head.in_channels
        assert width == (inputs,)


def test_several_layers_in_one_pass_equal_each_alone() -> None:
    # VGG's in-place ReLUs and ResNet's += would overwrite an earlier layer's output.
    images = torch.rand(2, 3, 64, 64)
    for name, wanted in (
        ("vgg11", ["features.0", "features.1", "classifier.3", "classifier.4"]),
        ("resnet18", ["layer1.0.bn2", "layer1.0.relu_1", "layer4.1.bn2", "flatten"]),
    ):
        layers = load_backbone(name, "random", input_size=64).layers()
        with torch.inference_mode():
            together = layers.cut(wanted)(images)
            for layer, output in zip(wanted, together, strict=True):
                (alone,) = layers.cut([layer])(images)
                assert torch.equal(output, alone), f"{name} {layer}"


def test_the_forward_pass_stops_at_the_last_layer_asked_for() -> None:
    cut = load_backbone("resnet18", "random", input_size=64).layers().cut(["layer1.0.relu_1"])
    names = {name.partition(".")[0] for name in cut.state_dict()}
    assert names == {"conv1", "bn1", "layer1"}


class Untraceable(nn.Module):
    """Has control flow that depends on the data."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, stride=2)
        self.act = nn.ReLU(inplace=True)
        self.head = nn.Linear(4, 5)
        self.calls_after_stem = 0

    def forward(self, images: Tensor) -> Tensor:
        maps = self.stem(images)
        if maps.sum() > 1e9:
            maps = maps * 0
        self.calls_after_stem += 1
        result: Tensor = self.head(self.act(maps).mean((2, 3)))
        return result


def test_a_network_that_cannot_be_traced_offers_its_modules() -> None:
    model = Untraceable()
    layers = open_layers(model, torch.zeros(1, 3, 16, 16))
    assert isinstance(layers, HookedLayers)
    assert layers.shapes == {"stem": (4, 7, 7), "act": (4, 7, 7), "head": (5,)}
    assert layers.default == "act"
    images = torch.rand(3, 3, 16, 16)
    before = model.calls_after_stem
    with torch.inference_mode():
        stem, act = layers.cut(["stem", "act"])(images)
        assert torch.equal(stem, model.stem(images)), "the in-place ReLU reached the stem's output"
        assert torch.equal(act, stem.relu())
        layers.cut(["stem"])(images)
    assert model.calls_after_stem == before + 1, "the pass for the stem alone went on after it"


@pytest.mark.parametrize(
    ("shape", "axes"), [((4, 5, 5), (2, 3)), ((5, 5, 4), (1, 2)), ((6, 4), (1,))]
)
def test_pooling_averages_over_space_wherever_the_channels_are(
    shape: tuple[int, ...], axes: tuple[int, ...]
) -> None:
    features = torch.rand(2, *shape)
    assert torch.equal(pool(features, "avg", shape), features.mean(axes))
    assert torch.equal(pool(features, "max", shape), features.amax(axes))
    assert pool(features, "none", shape).shape == (2, *shape)
    assert pool(features, "flatten", shape).shape == (2, features[0].numel())


def test_an_input_size_the_network_cannot_take_is_an_error() -> None:
    with pytest.raises(BackboneError, match="--input-size"):
        load_backbone("vit_b_16", "random", input_size=64).layers()


def test_a_network_cut_by_hooks_runs_in_several_threads() -> None:
    cut = open_layers(Untraceable(), torch.zeros(2, 3, 16, 16)).cut(["act"])
    batches = [torch.rand(2, 3, 16, 16) for _ in range(60)]

    def run(images: Tensor) -> Tensor:
        with torch.inference_mode():
            return cut(images)[0]

    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(run, batches))
    assert all(torch.equal(run(one), found) for one, found in zip(batches, together, strict=True))


class SequenceFirst(nn.Module):
    """Has a node whose first axis is not the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 4, stride=4)

    def forward(self, images: Tensor) -> Tensor:
        return self.stem(images).flatten(2).permute(2, 0, 1).mean(0)


def test_only_nodes_with_a_batch_axis_are_layers() -> None:
    layers = open_layers(SequenceFirst(), torch.zeros(2, 3, 16, 16))
    assert layers.shapes == {"stem": (4, 4, 4), "flatten": (4, 16), "mean": (4,)}


class Odd(nn.Module):
    """Calls by keyword, an operator that zeros do not suit, a layer that is no plain one."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect")
        self.second = nn.Conv2d(4, 6, 3, stride=2)
        self.last = nn.Linear(6, 5)

    def forward(self, images: Tensor) -> Tensor:
        maps = self.second(input=self.conv(images)).flatten(2)
        covariance = maps @ maps.mT + torch.eye(6)
        inverse: Tensor = torch.linalg.inv(covariance)
        return self.last(inverse.mean(2))  # type: ignore[no-any-return]


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_shapes_are_those_of_a_forward_pass_whatever_the_layers_are() -> None:
    torch.manual_seed(0)
    model, images = Odd().eval(), torch.rand(2, 3, 16, 16)
    layers = open_layers(model, images)
    assert isinstance(layers, TracedLayers)
    for name, shape in layers.shapes.items():
        (found,) = layers.cut([name])(images)
        assert tuple(found.shape[1:]) == shape, name


@pytest.mark.parametrize(
    "network",
    [
        nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(999, 8), nn.ReLU(), nn.Linear(8, 2)
        ),
        nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(784, 2)),
    ],
)
def test_a_network_that_does_not_fit_the_input_is_found_out_at_once(network: nn.Module) -> None:
    with pytest.raises(Exception, match=r"shape|channels"):
        open_layers(network, torch.zeros(2, 3, 16, 16))


@pytest.mark.parametrize("name", ["resnet18", "vgg11", "mobilenet_v3_small", "vit_b_32"])
def test_shapes_without_values_are_those_with_them(name: str) -> None:
    model = getattr(models, name)().eval()
    images = torch.zeros(2, 3, 224, 224)
    layers = open_layers(model, images)
    assert isinstance(layers, TracedLayers)
    assert _shapes(layers.cut(list(layers.shapes)), images, lean=True) == _shapes(
        layers.cut(list(layers.shapes)), images, lean=False
    )
