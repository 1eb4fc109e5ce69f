"""Files of every format version so far are read, and go on being extended.

``tests/format/v1.h5`` was written once, by the featpipe that introduced version 1, and never
changes; ``v1.json`` is what it holds. The images it was made of are put together below. ``v2.h5``
is of the same images in several views, without which a file still has version 1.
"""

import json
import os
import shutil
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

from featpipe.cache import FORMAT_VERSION, FeatureCache
from featpipe.extract import extract_features
from featpipe.settings import ExtractSettings, ImageSettings
from featpipe.verification import verify

FROZEN = Path(__file__).parent / "format"
DATA = Path(__file__).parents[1] / "data"
VERSIONS = range(1, FORMAT_VERSION + 1)
SETTINGS = {
    1: ExtractSettings(input_size=4),
    2: ExtractSettings(
        input_size=4, views=3, augment="RandomResizedCrop(0.5,1.0),HorizontalFlip", decode="exact"
    ),
}
IMAGES = {
    "a b/circle's.jpg": "shapes/circle/circle_01.jpg",
    "a b/square.png": "shapes/square/square_02.png",
    "ü/again.png": "shapes/square/square_02.png",
    "ü/grey16.png": "formats/grey16.png",
    "ü/no\npicture.jpg": "broken/text.jpg",
    "\udcff/name.gif": "formats/animated.gif",
}


def images(folder: Path) -> Path:
    """A table of the images of version 1, and one that is missing."""
    for name, origin in IMAGES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(DATA / origin, folder / name)
    rows = [
        (name, name.partition("/")[0], split, f"g{number % 3}")
        for number, (name, split) in enumerate(
            zip(
                [*IMAGES, "gone.png"], ["train", "val", "test", "", "train", "val", ""], strict=True
            )
        )
    ]
    lines = [
        f'"{path}",{"" if label in ("gone.png", chr(0xDCFF)) else label},{split},{group}'
        for path, label, split, group in rows
    ]
    table = "\n".join(["path,label,split,group", *lines])
    (folder / "table.csv").write_text(table, encoding="utf-8", errors="surrogateescape")
    return folder / "table.csv"


def stored(cache: FeatureCache, layer: str | None = None) -> np.ndarray:
    """Features as they lie in the file."""
    return cache.features(layer, view=None if cache.views > 1 else 0)


@pytest.mark.parametrize("version", VERSIONS)
def test_every_version_is_read(version: int) -> None:
    expected = json.loads((FROZEN / f"v{version}.json").read_text(encoding="utf-8"))
    with FeatureCache.open(FROZEN / f"v{version}.h5") as cache:
        assert cache.columns() == expected["columns"]
        assert list(cache.table.classes) == expected["classes"]
        assert cache.spec.to_dict() == expected["spec"]
        assert cache.conditions == expected["conditions"]
        assert cache.layers == {k: tuple(v) for k, v in expected["layers"].items()}
        for layer, values in expected["features"].items():
            rows, every = np.array(values, np.float32), stored(cache, layer)
            np.testing.assert_array_equal(every[cache.ok], rows)
            assert np.isnan(every[~cache.ok]).all()
    assert verify(FROZEN / f"v{version}.h5", sample=0).ok


@pytest.mark.parametrize("version", VERSIONS)
def test_every_version_is_read_by_plain_h5py(version: int) -> None:
    expected = json.loads((FROZEN / f"v{version}.json").read_text(encoding="utf-8"))
    with h5py.File(FROZEN / f"v{version}.h5") as f:
        for layer, values in expected["features"].items():
            found = f["features"][layer][:]
            np.testing.assert_array_equal(found[f["status"][:] == 0], np.array(values, np.float32))
        ids = [name.decode("utf-8", "surrogateescape") for name in f["ids"][:]]
        assert ids == expected["columns"]["id"]


@pytest.mark.skipif(sys.platform in ("darwin", "win32"), reason="names are not any bytes there")
@pytest.mark.parametrize("version", VERSIONS)
def test_every_version_is_extended_without_computing_anything_again(
    version: int, tmp_path: Path
) -> None:
    table, out = images(tmp_path), tmp_path / "f.h5"
    shutil.copy(FROZEN / f"v{version}.h5", out)
    shutil.copy(DATA / "formats" / "rgb.png", tmp_path / "new.png")
    with table.open("a", encoding="utf-8") as file:
        file.write("\nnew.png,ü,,g1")
    totals: list[int] = []
    with (
        extract_features(
            table,
            "pixels",
            out,
            SETTINGS[version],
            on_progress=lambda done, total: totals.append(total),
        ) as cache,
        FeatureCache.open(FROZEN / f"v{version}.h5") as old,
    ):
        assert totals == [1]
        assert cache.table.ids.tolist() == [*old.table.ids, "new.png"]
        np.testing.assert_array_equal(stored(cache)[:-1], stored(old))
        with h5py.File(out) as file:
            assert file.attrs["format_version"] == version


def freeze(version: int) -> None:
    """Write a new version's file, once: ``python tests/test_format.py``."""
    work = Path(os.environ["WORK"])
    os.chdir(work)
    table = images(Path("images"))
    out = FROZEN / f"v{version}.h5"
    assert not out.exists(), f"{out} is frozen"
    with extract_features(table, "pixels", out, SETTINGS[version], ImageSettings()) as cache:
        document = {
            "columns": cache.columns(),
            "classes": cache.table.classes,
            "spec": cache.spec.to_dict(),
            "conditions": cache.conditions,
            "layers": cache.layers,
            "features": {layer: stored(cache, layer)[cache.ok].tolist() for layer in cache.layers},
        }
    text = json.dumps(document, indent=1)
    (FROZEN / f"v{version}.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    freeze(FORMAT_VERSION)
