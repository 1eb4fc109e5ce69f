"""Stage one, on real pictures through a real network."""

import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from featpipe.backbones import load_backbone
from featpipe.cache import FeatureCache
from featpipe.checksums import digest_bytes
from featpipe.decode import Preprocessing, decode
from featpipe.errors import DecodeError, ImagesChangedError
from featpipe.extract import extract_features
from featpipe.extractor import prepare
from featpipe.images import open_images
from featpipe.loading import ImageLoader
from featpipe.settings import ExtractSettings
from featpipe.table import Status

DATA = Path(__file__).parents[1] / "data"
TOLERANCE = 1e-5  # of the largest feature: float32 sums in another order


def test_features_are_those_of_the_plain_loop(
    shapes: Path, small: ExtractSettings, shapes_cache: FeatureCache
) -> None:
    backbone = load_backbone("squeezenet1_1", "random", input_size=64)
    mean = torch.tensor(backbone.preprocessing.mean).view(3, 1, 1)
    std = torch.tensor(backbone.preprocessing.std).view(3, 1, 1)
    for row in (0, 13, 35):
        picture = decode((shapes / shapes_cache.table.ids[row]).read_bytes())
        pixels = torch.from_numpy(backbone.preprocessing.pixels(picture)).permute(2, 0, 1)
        with torch.inference_mode():
            maps = backbone.model.features(((pixels / 255 - mean) / std)[None])
        expected = maps.mean((2, 3)).numpy()[0]
        found = shapes_cache.features()[row]
        np.testing.assert_allclose(found, expected, atol=TOLERANCE * np.abs(expected).max())


@pytest.mark.parametrize("change", [{"batch_size": 1}, {"batch_size": 36}, {"workers": 1}])
def test_features_do_not_depend_on_batches_or_workers(
    shapes: Path,
    small: ExtractSettings,
    shapes_cache: FeatureCache,
    tmp_path: Path,
    change: dict[str, int],
) -> None:
    with extract_features(
        shapes, "squeezenet1_1", tmp_path / "f.h5", replace(small, **change)
    ) as cache:  # fmt: skip
        reference = shapes_cache.features()
        limit = TOLERANCE * np.abs(reference).max()
        np.testing.assert_allclose(cache.features(), reference, atol=limit)


def test_features_do_not_depend_on_the_company_of_other_images(
    shapes: Path, small: ExtractSettings, shapes_cache: FeatureCache, tmp_path: Path
) -> None:
    chosen = shapes_cache.table.ids[[3, 20, 31]]
    for name in chosen:
        target = tmp_path / "some" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(shapes / name, target)
    with extract_features(tmp_path / "some", "squeezenet1_1", tmp_path / "f.h5", small) as cache:
        reference = shapes_cache.features(rows=np.array([3, 20, 31]))
        limit = TOLERANCE * np.abs(reference).max()
        np.testing.assert_allclose(cache.features(), reference, atol=limit)


def test_batch_norm_buffers_do_not_change(shapes: Path, tmp_path: Path) -> None:
    backbone = load_backbone("resnet18", "random", input_size=64)
    backbone.model.train()  # even a network left in train mode
    before = {name: value.clone() for name, value in backbone.model.state_dict().items()}
    extract_features(shapes, backbone, tmp_path / "f.h5").close()
    after = backbone.model.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert "bn1.running_mean" in before


def test_several_layers_in_one_pass(shapes: Path, small: ExtractSettings, tmp_path: Path) -> None:
    wanted = replace(small, layer=("features.3", "features"), pool="none")
    with extract_features(shapes, "squeezenet1_1", tmp_path / "f.h5", wanted) as cache:
        assert cache.layers == {"features.3.cat": (128, 15, 15), "features.12.cat": (512, 3, 3)}
        assert cache.spec.layers == {"features.3.cat": "none", "features.12.cat": "none"}


def test_undecodable_images_are_rows_with_a_reason(shapes: Path, tmp_path: Path) -> None:
    mixed = tmp_path / "mixed"
    shutil.copytree(shapes / "circle", mixed)
    for file in (DATA / "broken").iterdir():
        shutil.copy(file, mixed / f"{file.stem} broken{file.suffix}")
    with (
        extract_features(mixed, "pixels", tmp_path / "mixed.h5") as cache,
        extract_features(shapes / "circle", "pixels", tmp_path / "clean.h5") as clean,
    ):
        broken = np.array(["broken" in name for name in cache.table.ids])
        assert (cache.status[broken] == Status.UNDECODABLE).all()
        assert all(cache.reasons[broken])
        assert np.isnan(cache.features()[broken]).all()
        # Every other row is its own image's, though the broken ones lie between.
        assert cache.table.ids[~broken].tolist() == clean.table.ids.tolist()
        np.testing.assert_array_equal(cache.features()[~broken], clean.features())


def test_on_error_raise_names_the_image_and_keeps_what_is_done(tmp_path: Path) -> None:
    with pytest.raises(DecodeError, match=r"empty\.jpg"):
        extract_features(
            DATA / "broken", "pixels", tmp_path / "f.h5", ExtractSettings(on_error="raise")
        )
    assert not (tmp_path / "f.h5").exists()


def test_on_error_raise_also_sees_what_an_earlier_run_recorded(tmp_path: Path) -> None:
    extract_features(DATA / "broken", "pixels", tmp_path / "f.h5").close()
    with pytest.raises(DecodeError, match=r"empty\.jpg"):
        extract_features(
            DATA / "broken", "pixels", tmp_path / "f.h5", ExtractSettings(on_error="raise")
        )


def test_what_the_system_will_not_read_is_a_row_with_a_reason(shapes: Path, tmp_path: Path) -> None:
    shutil.copy(shapes / "circle" / "circle_01.jpg", tmp_path / "a.jpg")
    (tmp_path / "b.jpg").mkdir()  # even root cannot read a folder as a file
    (tmp_path / "m.csv").write_text("path\na.jpg\nb.jpg\n")
    with extract_features(tmp_path / "m.csv", "pixels", tmp_path / "f.h5") as cache:
        assert cache.status.tolist() == [Status.OK, Status.UNREADABLE]
        assert "folder" in cache.reasons[1]


def test_a_dangling_link_is_a_missing_image(shapes: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(shapes / "circle", tmp_path / "c")
    (folder / "gone.jpg").symlink_to(tmp_path / "nowhere.jpg")
    with extract_features(folder, "pixels", tmp_path / "f.h5") as cache:
        row = cache.table.ids.tolist().index("gone.jpg")
        assert cache.status[row] == Status.MISSING
        assert cache.ok.sum() == 12


def test_images_that_have_all_gone_away_do_not_empty_the_cache(
    shapes: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(shapes / "circle", tmp_path / "c")
    (folder / "gone.jpg").symlink_to(tmp_path / "nowhere.jpg")
    extract_features(folder, "pixels", tmp_path / "f.h5").close()
    for file in folder.iterdir():  # the disk they lie on is no longer there
        file.unlink()
        file.symlink_to(tmp_path / "nowhere.jpg")
    with pytest.raises(ImagesChangedError):
        extract_features(folder, "pixels", tmp_path / "f.h5")
    with FeatureCache.open(tmp_path / "f.h5") as cache:
        assert cache.ok.sum() == 12


def test_a_changed_image_is_computed_again_and_no_other(shapes: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(shapes, tmp_path / "s")
    extract_features(folder, "pixels", tmp_path / "f.h5").close()
    names = sorted((folder / "circle").iterdir())
    shutil.copy(names[1], names[0])  # now a duplicate of another
    shutil.copy(DATA / "formats" / "rgb.png", folder / "square" / "new.png")
    counts: list[int] = []
    with extract_features(
        folder, "pixels", tmp_path / "f.h5", on_progress=lambda done, total: counts.append(total)
    ) as cache:
        assert counts == [1]
        assert len(cache) == 37
        features = cache.features()
        np.testing.assert_array_equal(features[0], features[1])
    with extract_features(folder, "pixels", tmp_path / "fresh.h5") as fresh:
        np.testing.assert_array_equal(features, fresh.features())


def test_a_file_that_changes_while_it_is_extracted_is_not_used(shapes: Path) -> None:
    source = open_images(shapes)
    plain = Preprocessing((8, 8), (8, 8))
    right = digest_bytes(source.read(0))
    digests = np.frombuffer(2 * right, np.uint8).reshape(2, 16)
    same, changed = ImageLoader(source, plain, digests=digests)([0, 1])
    assert same.status == Status.OK
    assert changed.status == Status.UNREADABLE
    assert changed.pixels is None


def test_the_users_own_code_is_part_of_the_spec(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    digests = []
    for pool in ("Avg", "Max"):
        (tmp_path / f"net_{pool}.py").write_text(
            f"from torch import nn\ndef make():\n    return nn.Sequential(nn.{pool}Pool2d(4))\n"
        )
        spec = prepare(f"python:net_{pool}:make", ExtractSettings(input_size=8)).spec
        digests.append(spec.weights_digests)
    assert digests[0] != digests[1]


KILLED = """
import os, signal, sys
from featpipe import cache_build, extract_features, ExtractSettings
cache_build.PART_ROWS = 4
batches = 0
def stop(done, total):
    global batches
    batches += 1
    if batches == int(sys.argv[4]):
        os.kill(os.getpid(), getattr(signal, sys.argv[5]))
extract_features(sys.argv[1], "squeezenet1_1", sys.argv[2],
                 ExtractSettings(weights="random", input_size=64, batch_size=4,
                                 precision="float32", decode="exact"), on_progress=stop)
"""


@pytest.mark.skipif(os.name != "posix", reason="signals")
@pytest.mark.parametrize(("batches", "name"), [(1, "SIGKILL"), (5, "SIGKILL"), (4, "SIGINT")])
def test_a_killed_run_resumes_to_the_same_bytes(
    shapes: Path,
    small: ExtractSettings,
    shapes_cache: FeatureCache,
    tmp_path: Path,
    batches: int,
    name: str,
) -> None:
    out = tmp_path / "f.h5"
    command = [sys.executable, "-c", KILLED, str(shapes), str(out), "", str(batches), name]
    killed = subprocess.run(command, capture_output=True, text=True)
    assert killed.returncode == -getattr(signal, name), killed.stderr
    assert not out.exists()
    parts = list((tmp_path / "f.h5.parts").glob("part-*.h5"))
    if name == "SIGINT":
        assert len(parts) >= batches - 1
    totals: list[int] = []
    with extract_features(
        shapes, "squeezenet1_1", out, small, on_progress=lambda done, total: totals.append(total)
    ) as cache:
        assert totals[0] == 36 - 4 * len(parts)
        assert cache.features().tobytes() == shapes_cache.features().tobytes()
        assert cache.table.ids.tolist() == shapes_cache.table.ids.tolist()


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_ctrl_c_on_the_command_line_says_how_to_go_on_and_exits_130(
    shapes: Path, tmp_path: Path
) -> None:
    code = """
import os, signal, sys
from featpipe.cli import main
from featpipe.engines import local
run = local.run
def interrupted(*args, **kwargs):
    for number, batch in enumerate(run(*args, **kwargs)):
        yield batch
        if number == 2:
            os.kill(os.getpid(), signal.SIGINT)
local.run = interrupted
main()
"""
    arguments = ["extract", str(shapes), "-b", "pixels", "-o", str(tmp_path / "f.h5")]
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
    assert done.returncode == 130, done.stderr
    assert "24 computed images are saved" in done.stderr.replace("\n", " ")
    assert "Traceback" not in done.stderr


def test_the_file_says_how_it_was_made(shapes_cache: FeatureCache) -> None:
    conditions = shapes_cache.conditions
    assert conditions["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert conditions["seconds"] > 0
    assert shapes_cache.spec.random_weights
