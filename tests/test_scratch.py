"""Networks trained from pixels: what they are, what they are shown, what is left of it."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from featpipe import pixel_rows
from featpipe.checkpoint import checkpointing
from featpipe.cnn import Architecture
from featpipe.decode import Preprocessing, encode_png
from featpipe.device import precisions
from featpipe.errors import (
    BackboneError,
    DiskSpaceError,
    FeatpipeError,
    ImagesError,
    SettingsError,
    SplitError,
    UnknownNameError,
)
from featpipe.images import ImageSource
from featpipe.pixel_rows import CropFlip, PixelRows, fingerprint
from featpipe.scratch import options_of, train_from_scratch
from featpipe.settings import ScratchSettings, TrainSettings
from featpipe.split import Split, split_rows
from featpipe.table import make_table

TRAIN = TrainSettings(val=0.25, test=0.25, device="cpu")
SMALL = ScratchSettings(
    network="small", widths=(4, 8), epochs=8, input_size=16, lr=0.02, batch_size=8,
    precision="float32",
)  # fmt: skip


def stripes(count: int = 48, names: tuple[str, ...] = ("across", "down")) -> ImageSource:
    """Noisy stripes across or down; the last labels are as good as any."""
    rng = np.random.default_rng(0)
    labels = [names[row % len(names)] for row in range(count)]
    pictures = []
    for name in labels:
        wave = 80 * np.sin(np.arange(16) * 1.5 + rng.uniform(0, 6))
        flat = np.broadcast_to(wave if "down" in name else wave[:, None], (16, 16))
        noisy = 128 + flat[..., None] + rng.normal(0, 20, (16, 16, 3))
        pictures.append(encode_png(noisy.clip(0, 255).astype(np.uint8)))
    table = make_table([f"{row:03d}.png" for row in range(count)], labels)
    return ImageSource("stripes", table, pictures.__getitem__)


def broken(source: ImageSource, row: int) -> ImageSource:
    """The same, with one image that cannot be decoded."""
    read = source.read
    return replace(source, read=lambda r: b"nonsense" if r == row else read(r))


# ---- settings -------------------------------------------------------------------------------


def test_the_two_layer_network_is_as_it_was_published() -> None:
    options = options_of(ScratchSettings())
    assert options["network"] == "two-layer"
    assert (options["epochs"], options["batch_size"], options["lr"]) == (15, 128, 1e-3)
    assert (options["optimizer"], options["schedule"]) == ("adam", "constant")
    assert (options["input_size"], options["precision"]) == (224, "float32")
    assert not any(
        options[name]
        for name in ("augment", "weight_decay", "label_smoothing", "patience", "class_weight")
    )


def test_what_is_given_wins_over_the_networks_own() -> None:
    given = ScratchSettings(epochs=3, augment=True, weight_decay=0.0, patience=0, input_size=64)
    for network in ("two-layer", "small", "resnet18"):
        options = options_of(replace(given, network=network))
        assert (options["epochs"], options["augment"], options["patience"]) == (3, True, 0)
        assert (options["weight_decay"], options["input_size"]) == (0.0, 64)
    assert options_of(replace(given, network="small", dropout=0.0))["dropout"] == 0.0
    assert options_of(ScratchSettings(network="inception_v3"))["input_size"] == 299


@pytest.mark.parametrize(
    ("settings", "kind", "message"),
    [
        ({"network": "resnet19"}, UnknownNameError, "resnet18"),
        ({"network": "two-layer", "widths": (8,)}, SettingsError, "widths are those of small"),
        ({"network": "two-layer", "dropout": 0.5}, SettingsError, "two-layer has no dropout"),
        ({"network": "resnet18", "dropout": 0.5}, SettingsError, "resnet18 takes no dropout"),
        ({"network": "convnext_tiny", "dropout": 0.5}, SettingsError, "takes no dropout"),
        ({"network": "small", "widths": (8, 0)}, SettingsError, "from 1 to 4096"),
        ({"network": "small", "widths": (8,) * 9}, SettingsError, "at most 8"),
        ({"network": "small", "input_size": 8}, SettingsError, "from 16 to"),
        ({"network": "alexnet", "input_size": 16}, BackboneError, "16 x 16 pixels.*--input-size"),
        ({"network": "vit_b_32", "input_size": 33}, BackboneError, "Try another"),
    ],
)
def test_what_a_network_does_not_take_is_refused_before_an_image_is_decoded(
    settings: dict, kind: type[FeatpipeError], message: str
) -> None:
    def read(row: int) -> bytes:
        raise AssertionError("an image was read")

    with pytest.raises(kind, match=message):
        train_from_scratch(replace(stripes(), read=read), None, ScratchSettings(**settings), TRAIN)


@pytest.mark.parametrize("name", ["optimizer", "schedule", "precision", "class_weight"])
def test_a_choice_may_be_left_open_but_not_be_unknown(name: str) -> None:
    assert ScratchSettings(**{name: None}) == ScratchSettings()
    with pytest.raises(SettingsError, match=f"{name} is 'other'"):
        ScratchSettings(**{name: "other"})


def test_folds_are_refused() -> None:
    with pytest.raises(SettingsError, match="leave the folds out"):
        train_from_scratch(stripes(), None, SMALL, replace(TRAIN, folds=3))


def test_copies_are_not_looked_for_without_features() -> None:
    with pytest.raises(SettingsError, match="featpipe split --leaks"):
        train_from_scratch(stripes(), None, SMALL, replace(TRAIN, leaks="group"))


# ---- what is shown to it --------------------------------------------------------------------


def test_pixels_are_normalised_as_a_backbones_are() -> None:
    pixels = torch.randint(256, (5, 6, 6, 3), dtype=torch.uint8)
    usual = Preprocessing()
    rows = PixelRows(pixels, usual, torch.device("cpu"))
    taken = rows.take(torch.tensor([4, 0]))
    for channel in range(3):
        plain = (pixels[[4, 0], ..., channel].float() / 255 - usual.mean[channel]) / usual.std[
            channel
        ]
        assert torch.allclose(taken[:, channel], plain)


def test_each_image_is_cropped_and_flipped_by_itself_and_within_itself() -> None:
    ramp = torch.linspace(-1, 1, 64).expand(200, 3, 64, 64)
    torch.manual_seed(0)
    seen = CropFlip()(ramp)
    assert seen.shape == ramp.shape
    assert seen.abs().max() <= 1 + 1e-6
    steps = seen[:, 0].diff(dim=-1)
    mirrored = (steps <= 1e-6).all(-1).all(-1)
    assert ((steps >= -1e-6).all(-1).all(-1) | mirrored).all()
    assert 60 < int(mirrored.sum()) < 140
    width = (seen[:, 0, 0, -1] - seen[:, 0, 0, 0]).abs() / 2
    assert width.min() > 0.5  # of 0.4 of the area, 4/3 as high as it is wide: 0.55
    assert width.max() <= 1
    assert len(width.unique()) > 150
    rows = CropFlip()(ramp.transpose(2, 3))[:, 0, :, 0]
    assert (rows[:, -1] > rows[:, 0]).all()  # never upside down


def test_augmentation_draws_from_the_generator_it_is_told_to() -> None:
    images = torch.randn(4, 3, 8, 8)
    made = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        made.append(CropFlip()(images))
    assert torch.equal(made[0], made[1])
    assert not torch.equal(made[0], made[2])


def test_the_users_own_augmentation_takes_the_place_of_ours() -> None:
    seen: list[tuple[int, ...]] = []

    def mirror(batch: torch.Tensor) -> torch.Tensor:
        seen.append(tuple(batch.shape))
        return batch.flip(3)

    _, result = train_from_scratch(stripes(), None, SMALL, TRAIN, augment=mirror)
    assert seen[:3] == [(8, 3, 16, 16)] * 3
    assert len(seen) == 3 * 8
    assert "mirror" in result.conditions["options"]["augment"]


# ---- what comes of it -----------------------------------------------------------------------


def test_a_small_network_learns_what_there_is_to_learn() -> None:
    network, result = train_from_scratch(stripes(96), None, replace(SMALL, epochs=20), TRAIN)
    assert result.scores["test"].accuracy > 0.9
    assert result.scores["test"].to_dict()["roc_auc"] > 0.95
    assert network.classes == ("across", "down")
    assert result.proba["test"].sum(1) == pytest.approx(1.0)
    assert result.calibration["fitted_on"] == "val"
    assert not network.model.training


@pytest.mark.parametrize("name", ["two-layer", "small", "resnet18", "mobilenet_v3_small"])
def test_every_network_trains_and_is_scored_on_every_part(name: str) -> None:
    settings = ScratchSettings(network=name, epochs=2, input_size=32)
    reported: list[dict[str, float]] = []
    network, result = train_from_scratch(stripes(), None, settings, TRAIN, reported.append)
    assert {part: scores.n for part, scores in result.scores.items()} == {
        "train": 24, "val": 12, "test": 12,
    }  # fmt: skip
    assert result.curves == reported
    assert len(reported) == 2
    assert result.parameters == sum(p.numel() for p in network.model.parameters())
    assert result.conditions["route"] == f"{name} from scratch"
    assert result.conditions["train_counts"] == {"across": 12, "down": 12}
    fast = precisions("cpu")[0] == "bfloat16" and name != "two-layer"
    wanted = "bfloat16" if fast else "float32"
    assert result.conditions["options"]["precision"] == wanted


@pytest.mark.parametrize("name", ["vgg11", "squeezenet1_1", "mobilenet_v3_small", "vit_b_32"])
def test_an_architectures_dropout_can_be_set(name: str) -> None:
    with torch.device("meta"):
        model = Architecture(name, 2, 32, dropout=0.37).build()
    rates = [part.p for part in model.modules() if isinstance(part, torch.nn.Dropout)]
    assert 0.37 in rates


def test_googlenet_is_built_with_one_output() -> None:
    model = Architecture("googlenet", 4, 64).build()
    assert model(torch.zeros(2, 3, 64, 64)).shape == (2, 4)


def test_a_seed_decides_everything_and_the_global_one_is_left_alone() -> None:
    before = torch.get_rng_state()
    weights = []
    for seed in (3, 3, 4):
        network, _ = train_from_scratch(
            stripes(), None, replace(SMALL, epochs=2), replace(TRAIN, seed=seed)
        )
        weights.append(network.model.state_dict()["classifier.weight"])
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert torch.equal(torch.get_rng_state(), before)


def test_training_stops_early_and_keeps_the_best_epoch() -> None:
    source = stripes(48, ("x", "y"))  # nothing to learn: all are stripes across
    settings = replace(SMALL, epochs=60, patience=3)
    _, result = train_from_scratch(source, None, settings, TRAIN)
    losses = [row["val_loss"] for row in result.curves]
    assert len(losses) == losses.index(min(losses)) + 1 + 3 < 60


def test_rare_classes_weigh_more_if_it_is_asked_for() -> None:
    source = stripes(60, ("across", "across", "across", "across", "down"))
    given = split_rows(source.table, TRAIN, np.ones(60, bool))
    settings = replace(SMALL, epochs=1, lr=1e-9, augment=False, dropout=0.0, label_smoothing=0.0)
    losses = {}
    for weight in (None, "balanced"):
        _, result = train_from_scratch(source, given, replace(settings, class_weight=weight), TRAIN)
        losses[weight] = result.curves[0]["train_loss"]
    assert result.conditions["train_counts"] == {"across": 24, "down": 6}
    assert losses["balanced"] != pytest.approx(losses[None], rel=1e-4)
    assert losses["balanced"] == pytest.approx(losses[None], rel=0.5)


def test_several_labels_an_image_are_learnt_by_themselves() -> None:
    source = stripes(60, ("across|old", "down|old", "across", "down|new"))
    settings, train = replace(SMALL, epochs=3), replace(TRAIN, separator="|")
    network, result = train_from_scratch(source, None, settings, train)
    assert network.classes == ("across", "down", "new", "old")
    assert result.scores["test"].to_dict()["multilabel"]
    assert result.conditions["train_counts"]["old"] > 5


def test_a_broken_image_is_left_out_and_told_of(caplog: pytest.LogCaptureFixture) -> None:
    _, result = train_from_scratch(broken(stripes(), 7), None, replace(SMALL, epochs=1), TRAIN)
    assert "1 labelled images cannot be used" in caplog.text
    assert "007.png" in caplog.text
    assert sum(scores.n for scores in result.scores.values()) == 47


def test_a_broken_image_of_a_given_split_is_an_error() -> None:
    rows = np.arange(48)
    split = Split(rows[:40], rows[40:], rows[:0], "by hand")
    with pytest.raises(ImagesError, match=r"007\.png cannot be used"):
        train_from_scratch(broken(stripes(), 7), split, SMALL, TRAIN)


def test_images_without_labels_are_refused() -> None:
    source = stripes()
    bare = replace(source, table=make_table(source.table.ids.tolist(), [None] * 48))
    with pytest.raises(SplitError, match="label"):
        train_from_scratch(bare, None, SMALL, TRAIN)


# ---- interrupted ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["two-layer", "small"])
def test_interrupted_and_begun_again_it_ends_the_same(name: str, tmp_path: Path) -> None:
    settings = replace(SMALL, network=name, epochs=5)
    if name == "two-layer":
        settings = replace(settings, widths=())
    source, mark = stripes(), fingerprint(stripes())
    plain, whole = train_from_scratch(source, None, settings, TRAIN)

    def interrupt(row: dict[str, float]) -> None:
        if row["epoch"] == 3:
            raise KeyboardInterrupt

    with checkpointing(tmp_path, mark, seconds=0), pytest.raises(KeyboardInterrupt):
        train_from_scratch(source, None, settings, TRAIN, interrupt)
    with checkpointing(tmp_path, mark, seconds=0):
        again, result = train_from_scratch(source, None, settings, TRAIN)
    for key, value in plain.model.state_dict().items():
        assert torch.equal(value, again.model.state_dict()[key]), key
    assert result.curves == whole.curves
    assert np.array_equal(result.proba["test"], whole.proba["test"])
    assert (whole.conditions["resumed"], result.conditions["resumed"]) == (False, True)


@pytest.mark.parametrize("changed", [{"input_size": 20}, {"augment": False}, {"lr": 0.01}])
def test_other_settings_begin_anew(changed: dict, tmp_path: Path) -> None:
    settings = replace(SMALL, epochs=2)
    plain, _ = train_from_scratch(stripes(), None, replace(settings, **changed), TRAIN)
    for one in (settings, replace(settings, **changed)):
        with checkpointing(tmp_path, seconds=0):
            network, result = train_from_scratch(stripes(), None, one, TRAIN)
        assert not result.conditions["resumed"]
    weights = (part.model.state_dict()["classifier.weight"] for part in (plain, network))
    assert torch.equal(*weights)


def test_pixels_that_the_disk_does_not_hold_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    usage = pixel_rows.disk_usage("/")._replace(free=48 * 16 * 16 * 3 - 1)
    monkeypatch.setattr(pixel_rows, "disk_usage", lambda folder: usage)
    with pytest.raises(DiskSpaceError, match=r"48 images need 36,864 bytes.*TMPDIR"):
        train_from_scratch(stripes(), None, SMALL, TRAIN)


def test_other_bytes_make_other_images() -> None:
    source = stripes()
    assert fingerprint(source) == fingerprint(stripes())
    assert fingerprint(broken(source, 3)) != fingerprint(source)
