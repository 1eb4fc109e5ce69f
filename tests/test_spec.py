"""Whatever changes a feature changes the Spec, and is refused with the difference named."""

from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

import numpy as np
import pytest

from featpipe.backbones import Backbone, load_backbone
from featpipe.decode import Preprocessing
from featpipe.errors import SpecMismatchError
from featpipe.extract import extract_features
from featpipe.settings import ExtractSettings
from featpipe.spec import Spec

FORMATS = Path(__file__).parents[1] / "data" / "formats"
ROUNDING = 1e-5  # of the largest feature
PLAIN = Preprocessing((48, 40), (32, 32), mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
SETTINGS = ExtractSettings(
    layer=("features.3",), pool="avg", batch_size=4, precision="float32", decode="exact"
)


@dataclass(frozen=True)
class Change:
    """One thing that is done otherwise, and how the refusal names it."""

    named: str
    preprocessing: dict[str, object] = field(default_factory=dict)
    settings: dict[str, object] = field(default_factory=dict)
    seed: int = 0
    same_values: bool = False


CHANGES = {
    "weights": Change("weights digests features.3.cat", seed=1),
    "layer": Change("layers features.4.cat", settings={"layer": ("features.4",)}),
    "pool": Change("layers features.3.cat: cached avg, requested max", settings={"pool": "max"}),
    "resize": Change("preprocessing resize", {"resize": (40, 40)}),
    "crop": Change("preprocessing crop", {"crop": (36, 36)}),
    "interpolation": Change(
        "preprocessing interpolation: cached bilinear, requested bicubic",
        {"interpolation": "bicubic"},
    ),
    "antialias": Change(
        "preprocessing antialias: cached True, requested False", {"antialias": False}
    ),
    "exif": Change("preprocessing exif: cached True, requested False", {"exif": False}),
    "reshaped": Change(
        "preprocessing reshaped: cached nothing, requested True", {"reshaped": True}
    ),
    "mean": Change("preprocessing mean", {"mean": (0.1, 0.1, 0.1)}),
    "std": Change("preprocessing std", {"std": (0.5, 0.5, 0.5)}),
    "decoder": Change(
        "decoder: cached pillow: alpha over white, 16 bit scaled to 8, first frame, requested "
        "torchcodec",
        settings={"decode": "fast"},
        same_values=True,  # but for rounding, which these small pictures hardly have
    ),
    "precision": Change(
        "precision: cached float32, requested bfloat16", settings={"precision": "bfloat16"}
    ),
    "dtype": Change("dtype: cached float32, requested float16", settings={"dtype": "float16"}),
    "views": Change(
        "views count: cached nothing, requested 2",
        settings={"views": 2, "augment": "HorizontalFlip"},
        same_values=True,  # of the plain view
    ),
}


def backbone(change: Change | None = None) -> Backbone:
    loaded = load_backbone("squeezenet1_1", "random", change.seed if change else 0)
    plain = replace(PLAIN, **(change.preprocessing if change else {}))
    return replace(loaded, preprocessing=plain)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("spec") / "f.h5"
    extract_features(FORMATS, backbone(), out, SETTINGS).close()
    return out


def test_every_part_of_the_preprocessing_and_of_the_spec_is_perturbed_here() -> None:
    assert {one.name for one in fields(Preprocessing)} <= set(CHANGES)
    # The name of a network is nothing without its weights' digest, which is perturbed.
    named = {"backbone", "seed", "random_weights"}
    parts = {"weights_digests": "weights", "layers": "layer", "preprocessing": "resize"}
    assert {parts.get(one.name, one.name) for one in fields(Spec)} - named <= set(CHANGES)


@pytest.mark.parametrize("name", CHANGES)
def test_what_changes_a_feature_is_refused_and_named(base: Path, tmp_path: Path, name: str) -> None:
    change = CHANGES[name]
    settings = replace(SETTINGS, **change.settings)
    before = base.read_bytes()
    with pytest.raises(SpecMismatchError) as caught:
        extract_features(FORMATS, backbone(change), base, settings)
    assert change.named in str(caught.value)
    assert "--overwrite" in str(caught.value)
    assert base.read_bytes() == before
    # And nothing else is said to differ than what follows from it.
    assert len(str(caught.value).splitlines()) <= 2 + 3
    if change.same_values:
        return
    with extract_features(FORMATS, backbone(), tmp_path / "old.h5", SETTINGS) as one:
        reference = one.features()
    with extract_features(FORMATS, backbone(change), tmp_path / "new.h5", settings) as two:
        found = two.features()
    if found.shape == reference.shape and settings.dtype == "float32":
        assert np.nanmax(np.abs(found - reference)) > ROUNDING * np.nanmax(np.abs(reference))


def test_what_changes_only_rounding_is_not_refused(base: Path) -> None:
    for same in ({"batch_size": 3}, {"workers": 1}, {"device": "cpu"}):
        extract_features(FORMATS, backbone(), base, replace(SETTINGS, **same)).close()


@pytest.mark.parametrize("change", [lambda b: b, lambda b: replace(b, weights="elsewhere.pth")])
def test_the_same_weights_by_another_name_are_the_same(
    base: Path, change: Callable[[Backbone], Backbone]
) -> None:
    extract_features(FORMATS, change(backbone()), base, SETTINGS).close()
