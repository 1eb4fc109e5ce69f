"""Tails: the rest of a network behind a cut, and training it from cached rows."""

import copy
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.base import clone
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, dropout

from featpipe.backbones import Backbone, load_backbone
from featpipe.behind import behind, divisible
from featpipe.cache import FeatureCache
from featpipe.classifier import Classifier
from featpipe.decode import Preprocessing
from featpipe.errors import (
    BackboneError,
    FeatpipeError,
    HeadError,
    LayerError,
    WeightsError,
)
from featpipe.extract import extract_features
from featpipe.head import Head
from featpipe.heads import make_head
from featpipe.images import open_images
from featpipe.layers import TracedLayers, open_layers
from featpipe.settings import ExtractSettings, TrainSettings
from featpipe.streamed import HeldRows, StreamedRows, batch_sizes
from featpipe.tails import cut_off, grow
from featpipe.tasks import Task
from featpipe.train import train_head

FAMILIES = [
    ("resnet18", 64, "layer3"),
    ("resnet50", 64, "layer3"),
    ("vgg11_bn", 64, "classifier.2"),
    ("densenet121", 64, "features.denseblock3"),
    ("mobilenet_v2", 64, "features.13"),
    ("squeezenet1_1", 64, "features.7"),
    ("efficientnet_b0", 64, "features.5"),
    ("convnext_tiny", 64, "features.5"),
    ("googlenet", 64, "inception4c"),
    ("shufflenet_v2_x0_5", 64, "stage3"),
    ("swin_t", 64, "features.5"),
    ("vit_b_32", None, "encoder.layers.encoder_layer_9"),
]


def loaded(name: str, size: int | None) -> Backbone:
    return load_backbone(name, "random", 0, size)


def rows_of(backbone: Backbone, layer: str, images: Tensor) -> Tensor:
    """What a cut gives for some images, flat."""
    layers = backbone.layers()
    with torch.no_grad():
        return backbone.cut(layers, [layers.resolve(layer)])(images)[0].flatten(1)


def tail(**options: Any) -> Head:
    """A head that is trained on the CPU in float32."""
    return make_head("tail", {"device": "cpu", "precision": "float32", **options})


@pytest.mark.parametrize(("name", "size", "layer"), FAMILIES, ids=[f[0] for f in FAMILIES])
def test_trunk_and_tail_are_the_whole_network(name: str, size: int | None, layer: str) -> None:
    backbone = loaded(name, size)
    images = torch.rand(2, 3, *backbone.preprocessing.crop)
    with torch.no_grad():
        whole = backbone.model(images)
        rows = rows_of(backbone, layer, images)
        stump = cut_off(backbone, layer, still=False)
        parts = stump.body(rows.view(2, *stump.shape))
    assert parts == pytest.approx(whole, abs=1e-5 * float(whole.abs().max()))
    grown = grow(stump, 3, "all", False, 0, "cpu").train()
    assert grown(rows.half()).shape == (2, 3)
    assert backbone.model.training is False


def test_a_cut_that_connections_cross_is_refused_with_the_nearest_that_is_free() -> None:
    backbone = loaded("densenet121", 64)
    with pytest.raises(LayerError, match="denselayer4") as error:
        cut_off(backbone, "features.denseblock3.denselayer5", still=False)
    assert "features.transition2.pool and features.denseblock3.cat" in str(error.value)
    with pytest.raises(LayerError, match=r"needs layer2\.0\.relu_2|needs layer2\.0\.relu_1"):
        cut_off(loaded("resnet18", 64), "layer2.1.conv1", still=False)


def test_every_free_layer_can_be_cut_at_and_no_other() -> None:
    layers = loaded("resnet18", 64).layers()
    assert isinstance(layers, TracedLayers)
    free = set(divisible(layers))
    for name in layers.shapes:
        try:
            behind(layers, name, still=False)
        except LayerError:
            assert name not in free
        else:
            assert name in free


def test_a_network_that_cannot_be_traced_says_what_else_to_do() -> None:
    class Branching(nn.Sequential):
        def forward(self, images: Tensor) -> Any:
            return super().forward(images if images.sum() > 0 else -images)

    network = Branching(nn.Flatten(), nn.Linear(48, 5))
    with pytest.raises(LayerError, match="--head linear"):
        behind(open_layers(network, torch.zeros(2, 3, 4, 4)), "0", still=False)


def test_nothing_to_train_behind_the_cut_is_refused() -> None:
    with pytest.raises(LayerError, match="cut earlier"):
        cut_off(loaded("resnet18", 64), "fc", still=False)


class Dropping(nn.Module):
    """Drops out by a function, whose mode a graph takes up when it is traced."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.fc = nn.Conv2d(3, 8, 4, 4), nn.Linear(8, 5)

    def forward(self, images: Tensor) -> Any:
        maps = self.stem(images).mean((2, 3))
        return self.fc(dropout(maps, 0.5, training=self.training))


def test_dropout_as_a_function_works_in_training_and_only_there() -> None:
    backbone = Backbone("python", "x", "random", Dropping().eval(), Preprocessing(crop=(16, 16)))
    grown = grow(cut_off(backbone, "mean", still=True), 2, "last", False, 0, "cpu")
    rows = torch.ones(4, 8)
    assert not torch.equal(grown.train()(rows), grown(rows))
    assert torch.equal(grown.eval()(rows), grown(rows))


def test_an_in_place_layer_behind_the_cut_leaves_the_rows_alone() -> None:
    backbone = loaded("vgg11_bn", 64)
    rows = torch.randn(3, 4096)
    before = rows.clone()
    grow(cut_off(backbone, "classifier.0", still=True), 2, "last", False, 0, "cpu")(rows)
    assert torch.equal(rows, before)


# ---- ordinary fine-tuning, step by step --------------------------------------------------------


def ordinary(
    backbone: Backbone, images: Tensor, labels: Tensor, frozen: str, last: tuple[str, nn.Module],
    epochs: int, batch: int, lr: float, seed: int, freeze_norm: bool,
) -> dict[str, Tensor]:  # fmt: skip
    """The whole network in every step, its trunk frozen in eval mode."""
    network = copy.deepcopy(backbone.model)
    parent, _, own = last[0].rpartition(".")
    setattr(network.get_submodule(parent), own, copy.deepcopy(last[1]))
    trunk = {id(m) for m in _before(network, frozen)}
    trained = [p for m in network.modules() if id(m) not in trunk
               for p in m.parameters(recurse=False)]  # fmt: skip
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d) and freeze_norm]
    for norm in norms:
        trained = [p for p in trained if all(p is not q for q in norm.parameters())]
    for parameter in trained:
        parameter.requires_grad_(True)
    optimizer = torch.optim.SGD(trained, lr, momentum=0.9, weight_decay=1e-2, fused=True)
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for _ in range(epochs):
            order = torch.randperm(len(images), generator=generator)
            network.train()
            for module in network.modules():
                if id(module) in trunk or any(module is norm for norm in norms):
                    module.training = False
            for rows in torch.split(order, batch_sizes(len(order), batch)):
                loss = cross_entropy(network(images[rows]), labels[rows])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
    return network.state_dict()


def _before(network: nn.Module, frozen: str) -> list[nn.Module]:
    """Modules up to and with the one of this name, in the order they are registered in."""
    found: list[nn.Module] = []
    for name, module in network.named_modules():
        if next(module.children(), None) is None:
            found.append(module)
            if name == frozen:
                break
    return found


@pytest.mark.parametrize(
    ("name", "layer", "frozen", "last", "freeze_norm"),
    [
        ("resnet18", "layer3", "layer3.1.bn2", "fc", False),
        ("resnet18", "layer3", "layer3.1.bn2", "fc", True),
        # It has dropout; its batch norm, with random weights, makes of any rounding a difference.
        ("mobilenet_v2", "features.16", "features.16.conv.3", "classifier.1", True),
    ],
)
def test_it_equals_ordinary_fine_tuning_layer_for_layer(
    name: str, layer: str, frozen: str, last: str, freeze_norm: bool
) -> None:
    backbone = loaded(name, 96)
    generator = torch.Generator().manual_seed(1)
    images, labels = torch.randn(20, 3, 96, 96, generator=generator), torch.arange(20) % 3
    rows = rows_of(backbone, layer, images)
    options = {"train": "all", "backbone": name, "layer": layer, "weights": "random",
               "input_size": 96, "lr": 1e-3, "epochs": 2, "batch_size": 10, "optimizer": "sgd",
               "schedule": "constant", "freeze_norm": freeze_norm, "seed": 5}  # fmt: skip
    head = tail(**options).fit(rows.numpy(), labels.numpy())
    new = grow(cut_off(backbone, layer, freeze_norm), 3, "all", freeze_norm, 5, "cpu")
    state = ordinary(
        backbone, images, labels, frozen, (last, new.body.get_submodule(last)), 2, 10, 1e-3, 5,
        freeze_norm,
    )  # fmt: skip
    half = tail(**options).fit(rows.half().numpy(), labels.numpy()).arrays()
    begun, trained = new.body.state_dict(), dict(new.body.named_parameters())
    for tensor, found in head.arrays().items():
        wanted, before = state[tensor].numpy(), begun[tensor].numpy()
        size = max(1e-2, np.abs(wanted).max())
        np.testing.assert_allclose(found, wanted, atol=1e-5 * size, err_msg=tensor)
        if name == "resnet18":  # a random MobileNet's activations are near float16's smallest
            np.testing.assert_allclose(half[tensor], wanted, atol=5e-3 * size, err_msg=tensor)
        moves = trained[tensor].requires_grad if tensor in trained else not freeze_norm
        assert np.array_equal(found, before) != moves, tensor


def test_with_the_last_layer_alone_the_rest_stays_to_the_bit() -> None:
    backbone = loaded("resnet18", 64)
    rows = rows_of(backbone, "layer3", torch.rand(12, 3, 64, 64))
    before = {
        name: t.clone() for name, t in cut_off(backbone, "layer3", True).body.state_dict().items()
    }
    head = tail(backbone="resnet18", layer="layer3", weights="random", input_size=64, epochs=2)
    after = head.fit(rows.numpy(), np.arange(12) % 3).arrays()
    changed = {name for name in after if not np.array_equal(after[name], before[name].numpy())}
    assert changed == {"fc.weight", "fc.bias"}
    assert head.n_parameters == 3 * 513


# ---- from a cache ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cache(shapes: Path, small: ExtractSettings, tmp_path_factory: Any) -> FeatureCache:
    """Activations of a random SqueezeNet, as float16."""
    settings = ExtractSettings(
        layer=("features.7",), weights="random", input_size=64, dtype="float16",
        precision="float32", decode="exact", batch_size=4,
    )  # fmt: skip
    out = tmp_path_factory.mktemp("tails") / "maps.h5"
    return extract_features(shapes, "squeezenet1_1", out, settings)


QUICK: dict[str, Any] = {"train": "all", "epochs": 3, "lr": 1e-3, "precision": "float32"}
CPU = TrainSettings(device="cpu")


def test_a_classifier_predicts_cold_what_it_was_scored_with(
    cache: FeatureCache, shapes: Path, tmp_path: Path
) -> None:
    classifier, result = train_head(cache, "tail", CPU, **QUICK)
    assert result.conditions["options"]["backbone"] == "torchvision:squeezenet1_1"
    assert [row["epoch"] for row in result.curves] == [1, 2, 3]
    classifier.save(tmp_path / "c.safetensors")
    again = Classifier.load(tmp_path / "c.safetensors")
    assert again.head.n_parameters == classifier.head.n_parameters == result.parameters
    images = open_images(shapes)
    said = [one.proba for one in again.predict(images, ExtractSettings(device="cpu"))]
    rows = classifier.predict_features(cache.features().astype(np.float32))
    np.testing.assert_allclose(np.array(said), rows, atol=2e-3)


def test_a_fitted_tail_can_be_pickled(cache: FeatureCache) -> None:
    classifier, _ = train_head(cache, "tail", CPU, on_epoch=lambda row: None, **QUICK)
    X = cache.features().reshape(len(cache), -1)
    again = pickle.loads(pickle.dumps(classifier.head))
    assert np.array_equal(again.predict_proba(X), classifier.head.predict_proba(X))


def test_streamed_rows_train_the_same_tail_as_rows_in_memory(cache: FeatureCache) -> None:
    X = cache.features().reshape(len(cache), -1)
    y, head = cache.table.labels, tail(**QUICK).on(cache.spec, cache.layer(), ())
    assert y is not None
    train, select = np.arange(0, 36, 2), np.arange(1, 36, 4)
    held = clone(head).fit(X[train], y[train], validation=(X[select], y[select]))
    # All of it in one chunk: the order of the rows is then the same, too.
    rows = StreamedRows(lambda some: X[some], X.shape, 1 << 30, dtype=np.float16)
    streamed = clone(head).fit_streamed(rows, y, train, select)
    for name, array in held.arrays().items():
        assert np.array_equal(array, streamed.arrays()[name]), name


def test_more_activations_than_memory_are_read_block_by_block(
    cache: FeatureCache, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "featpipe")
    _, result = train_head(cache, "tail", TrainSettings(device="cpu", memory=2e-4), **QUICK)
    assert "block by block" in caplog.text
    assert len(result.curves) == 3


def test_folds_and_a_sweep_fit_tails_as_any_head(cache: FeatureCache) -> None:
    settings = TrainSettings(device="cpu", folds=2)
    _, result = train_head(cache, "tail", settings, sweep={"lr": [1e-9, 1e-3]}, **QUICK)
    assert result.sweep is not None
    assert [one.note for one in result.sweep.candidates] == ["", ""]
    assert result.sweep.candidates[0].epochs == [3, 3] or result.sweep.candidates[0].epochs
    assert result.scores["folds"].n == len(cache)


def test_labels_are_learnt_each_by_itself(cache: FeatureCache) -> None:
    y = cache.table.labels
    assert y is not None
    X, targets = cache.features().reshape(len(cache), -1), np.stack([y == 0, y != 1], axis=1)
    head = tail(**QUICK).on(cache.spec, cache.layer(), ()).fit(X, targets.astype(int))
    assert head.multilabel_
    assert head.predict_proba(X).shape == (len(cache), 2)
    task = Task(np.arange(0, 36, 2), np.arange(0), np.arange(1, 36, 2))
    (outcome,) = type(head).cross_fit([head], X, targets.astype(np.float32), 2, [task])
    assert outcome.proba is not None
    assert outcome.proba.shape == (18, 2)


def test_float16_rows_are_held_as_they_are() -> None:
    parts = [np.ones((3, 4), np.float16), np.zeros((2, 4), np.float16)]
    rows = HeldRows(parts, torch.device("cpu"))
    assert rows.take(torch.tensor([4, 3])).dtype == torch.float16
    assert torch.equal(rows.take(torch.tensor([2, 0])), torch.ones(2, 4).half())
    assert rows._parts[0].data_ptr() == parts[0].ctypes.data


def test_a_row_may_stand_under_several_numbers() -> None:
    parts = [np.arange(12.0).reshape(6, 2), np.arange(100.0, 106).reshape(3, 2)]
    rows = HeldRows(parts, torch.device("cpu"), each=[1, 4])
    assert rows.shape == (18, 2)
    assert rows.take(torch.tensor([5, 0])).tolist() == [[10, 11], [0, 1]]
    assert rows.take(torch.tensor([17, 14, 13, 6])).tolist() == [
        [104, 105], [104, 105], [102, 103], [100, 101],
    ]  # fmt: skip
    with pytest.raises(IndexError):
        rows.take(torch.tensor([5, 6]))


def test_validation_rows_are_not_copied_for_each_view(monkeypatch: pytest.MonkeyPatch) -> None:
    """They may be nearly as many as the training rows, and nothing counts copies of them."""
    held: list[HeldRows] = []

    class Watched(HeldRows):
        def __init__(self, *given: Any) -> None:
            super().__init__(*given)
            held.append(self)

    monkeypatch.setattr("featpipe.heads.tail.HeldRows", Watched)
    random, views = np.random.default_rng(0), 4
    X, X_val = random.normal(size=(2, 12, 5)).astype(np.float32)
    y, y_val = np.arange(3) % 2, np.arange(12) % 2
    head = tail(train="all", epochs=4, lr=0.1).fit_views(X, y, (X_val, y_val), views)
    assert [part.data_ptr() for part in held[0]._parts] == [X.ctypes.data, X_val.ctypes.data]
    expected = head.predict_proba(X_val)[np.arange(12), y_val]
    losses = [row["val_loss"] for row in head.curves_]
    assert min(losses) == pytest.approx(-np.log(expected).mean(), rel=1e-5)


def test_pooled_features_are_refused_with_the_way_out(shapes_cache: FeatureCache) -> None:
    with pytest.raises(LayerError, match=r"pooled \(avg\).*--pool flatten"):
        train_head(shapes_cache, "tail", CPU, **QUICK)


def test_other_weights_than_the_features_were_made_with_are_refused(
    cache: FeatureCache, tmp_path: Path
) -> None:
    file = tmp_path / "other.pth"
    torch.save(load_backbone("squeezenet1_1", "random", 7).model.state_dict(), file)
    with pytest.raises(WeightsError, match="other weights"):
        train_head(cache, "tail", CPU, weights=str(file), **QUICK)


def test_a_layer_of_another_size_is_refused() -> None:
    head = tail(backbone="squeezenet1_1", weights="random", layer="features.7", input_size=64)
    with pytest.raises(HeadError, match="have 10"):
        head.fit(np.zeros((6, 10), np.float32), np.arange(6) % 2)


def factory() -> nn.Module:
    """Code of the user's own, for ``python:test_tails:factory``."""
    return Dropping()


def test_a_file_that_names_code_runs_it_only_where_that_is_trusted(
    shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    settings = ExtractSettings(layer=("mean",), precision="float32", decode="exact", input_size=16)
    with extract_features(shapes, "python:test_tails:factory", tmp_path / "f.h5", settings) as own:
        with pytest.raises(BackboneError, match="--trust-code"):
            train_head(own, "tail", CPU, epochs=1)
        classifier, _ = train_head(own, "tail", CPU, epochs=1, trust_code=True)
    classifier.save(tmp_path / "c.safetensors")
    with pytest.raises(BackboneError, match="--trust-code"):
        Classifier.load(tmp_path / "c.safetensors")
    assert Classifier.load(tmp_path / "c.safetensors", trust_code=True).layer == "mean"


@pytest.mark.realdata
def test_weights_whose_batch_norm_is_folded_are_warned_of(
    shared: Path, caplog: pytest.LogCaptureFixture
) -> None:
    backbone = load_backbone("mobilenet_v2", str(shared / "weights" / "mobilenet_v2.pth"))
    cut_off(backbone, "features.13", still=False)
    assert "freeze_norm" in caplog.text


@pytest.mark.parametrize(
    ("params", "tensors", "said"),
    [
        ({"input_size": 10**6}, {}, "input_size"),
        ({"layer": "features.10"}, {}, "not those behind|features have"),
        ({"backbone": "torchvision:squeezenet1_0"}, {}, "not those|features have|contradict|size"),
        ({}, {"classifier.1.weight": np.zeros((3, 5, 1, 1), np.float32)}, "not a whole"),
    ],
)
def test_a_file_whose_tail_is_another_is_refused(
    cache: FeatureCache,
    tmp_path: Path,
    params: dict[str, Any],
    tensors: dict[str, np.ndarray],
    said: str,
) -> None:
    classifier, _ = train_head(cache, "tail", CPU, **{**QUICK, "epochs": 1})
    head = classifier.head
    arrays = {**head.arrays(), **tensors}
    head.set_params(**params)
    head.arrays = lambda: arrays
    classifier.save(tmp_path / "c.safetensors")
    with pytest.raises(FeatpipeError, match=said):
        Classifier.load(tmp_path / "c.safetensors")
