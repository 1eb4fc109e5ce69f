"""What tests share: sample images, a small network, the real data where it is."""

import os
import signal
import tempfile
from pathlib import Path

import pytest

from featpipe.cache import FeatureCache
from featpipe.extract import extract_features
from featpipe.settings import ExtractSettings

ROOT = Path(__file__).parents[1]
SHARED = Path(os.environ.get("FEATPIPE_SHARED", ROOT.parent / "shared"))


# Converted models are shared by all tests and by nothing else; subprocesses inherit the name.
_MODELS = tempfile.TemporaryDirectory(prefix="featpipe-models-")
os.environ["FEATPIPE_CACHE_DIR"] = _MODELS.name

# A shell starts jobs in the background deaf to Ctrl-C, and so would be all that they start.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests on real data where it is not."""
    if SHARED.is_dir():
        return
    skip = pytest.mark.skip(reason=f"no real data at {SHARED}; set FEATPIPE_SHARED")
    for item in items:
        if item.get_closest_marker("realdata"):
            item.add_marker(skip)


@pytest.fixture(scope="session")
def shapes() -> Path:
    """36 rendered pictures in three classes and five formats."""
    return ROOT / "data" / "shapes"


@pytest.fixture(scope="session")
def shared() -> Path:
    """Real images and weights; only for tests marked ``realdata``."""
    return SHARED


@pytest.fixture(scope="session")
def small() -> ExtractSettings:
    """A real architecture at a size that costs milliseconds."""
    return ExtractSettings(
        weights="random", input_size=64, batch_size=4, precision="float32", decode="exact"
    )


@pytest.fixture(scope="session")
def shapes_cache(
    shapes: Path, small: ExtractSettings, tmp_path_factory: pytest.TempPathFactory
) -> FeatureCache:
    """Features of `shapes` by a random SqueezeNet."""
    out = tmp_path_factory.mktemp("cache") / "shapes.h5"
    return extract_features(shapes, "squeezenet1_1", out, small)
