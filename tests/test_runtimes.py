"""Runtimes: every one gives what float32 gives, and what cannot run says so."""

import logging
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from featpipe.backbones import Backbone, load_backbone
from featpipe.cache import FeatureCache
from featpipe.decode import Preprocessing
from featpipe.device import available_cores, precisions
from featpipe.errors import RuntimeUnavailableError, UnknownNameError
from featpipe.extract import extract_features
from featpipe.extractor import REFERENCE, Execution, Extractor, prepare
from featpipe.fidelity import compare_features
from featpipe.registry import load_plugin, plugin_names
from featpipe.runtimes import fastest, in_batches
from featpipe.runtimes import openvino as openvino_runtime
from featpipe.runtimes import torch as torch_runtime
from featpipe.settings import ExtractSettings

DATA = Path(__file__).parents[1] / "data"
SMALL = ExtractSettings(weights="random", input_size=64, batch_size=4)
WAYS = [
    (runtime, precision)
    for runtime in plugin_names("runtimes")
    for precision in ("float32", "bfloat16", "float16")
    if load_plugin("runtimes", runtime).rank("cpu", precision)
]


def extractor(runtime: str = "auto", precision: str = "auto", name: str = "resnet18") -> Extractor:
    settings = ExtractSettings(
        weights="random", input_size=64, batch_size=4, runtime=runtime, precision=precision,
        layer=("layer2", "avgpool") if name == "resnet18" else (), pool="avg",
    )  # fmt: skip
    return prepare(name, settings)


def pixels(count: int) -> np.ndarray:
    shape = (count, 64, 64, 3)
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


def run(one: Extractor, images: np.ndarray) -> dict[str, np.ndarray]:
    with one.forward as forward:
        return forward(images)


def test_there_are_both_and_float32_runs_in_each() -> None:
    assert set(plugin_names("runtimes")) >= {"torch", "openvino"}
    assert {runtime for runtime, precision in WAYS if precision == "float32"} >= {"torch"}


@pytest.mark.parametrize(("runtime", "precision"), WAYS)
def test_every_way_gives_what_eager_float32_gives(runtime: str, precision: str) -> None:
    made = extractor(runtime, precision)
    assert made.execution == Execution(runtime, precision, "fast")
    assert (made.spec.precision, made.forward.precision) == (precision, precision)
    reference = run(made.at(REFERENCE), pixels(7))
    found = run(made, pixels(7))
    assert set(found) == set(reference) == set(made.shapes)
    for layer, rows in found.items():
        assert rows.dtype == np.float32
        assert rows.shape == (7, *made.shapes[layer])
    measured = compare_features(reference, found)
    least, most = (0.999999, 1e-4) if precision == "float32" else (0.999, 0.1)
    assert measured.cosine > least
    assert measured.error < most
    if precision == "bfloat16":  # which is not float32 under another name
        assert measured.error > 1e-4


@pytest.mark.parametrize(("runtime", "precision"), WAYS)
def test_lanes_side_by_side_give_each_batch_its_own_features(runtime: str, precision: str) -> None:
    images = pixels(32)
    with extractor(runtime, precision).forward as forward:
        alone = [forward(images[start : start + 4]) for start in range(0, 32, 4)]
        with ThreadPoolExecutor(max(2, forward.lanes)) as pool:
            together = list(
                pool.map(forward, [images[start : start + 4] for start in range(0, 32, 4)])
            )
    for one, two in zip(alone, together, strict=True):
        for layer in one:
            np.testing.assert_array_equal(one[layer], two[layer])


@pytest.mark.parametrize("runtime", sorted({runtime for runtime, _ in WAYS}))
def test_the_process_gets_its_threads_back(runtime: str) -> None:
    before = torch.get_num_threads()
    with extractor(runtime, "float32").forward as forward:
        assert torch.get_num_threads() == 1 or available_cores() > forward.lanes
    assert torch.get_num_threads() == before


def test_a_batch_is_filled_up_and_its_filling_left_out() -> None:
    seen = []

    def double(batch: np.ndarray) -> tuple[np.ndarray, ...]:
        seen.append(batch.copy())
        return (batch * 2, batch[:, 0])

    given = np.arange(14, dtype=np.uint8).reshape(7, 2)
    twice, first = in_batches(given, 3, double)
    np.testing.assert_array_equal(twice, given * 2)
    np.testing.assert_array_equal(first, given[:, 0])
    assert [len(batch) for batch in seen] == [3, 3, 3]
    assert not seen[-1][1:].any()


def test_the_copy_in_another_precision_leaves_the_network_as_it_is() -> None:
    made = extractor("torch", "bfloat16")
    before = {name: value.clone() for name, value in made.backbone.model.state_dict().items()}
    run(made, pixels(2))
    after = made.backbone.model.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert {value.dtype for value in after.values()} <= {torch.float32, torch.int64}


# ---- choosing ----------------------------------------------------------------------------


def test_auto_takes_the_fastest_runtime_and_the_precision_of_the_hardware() -> None:
    fast = precisions("cpu")[0]
    assert extractor().execution == Execution(fastest("cpu", fast)[0], fast, "fast")


def test_plain_pixels_are_not_worth_a_runtime() -> None:
    assert prepare("pixels", ExtractSettings()).execution == Execution("torch", "float32", "fast")


def test_an_unknown_runtime_is_refused_and_the_known_ones_named() -> None:
    with pytest.raises(UnknownNameError, match="openvino"):
        prepare("pixels", ExtractSettings(runtime="openvin"))


def test_a_runtime_that_cannot_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openvino_runtime, "_capabilities", lambda: ("FP32",))
    with pytest.raises(RuntimeUnavailableError, match="openvino does not compute in bfloat16"):
        extractor("openvino", "bfloat16")
    assert "openvino" not in fastest("cpu", "bfloat16")
    assert openvino_runtime.rank("cuda", "float32") == 0


def test_without_openvino_torch_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openvino_runtime.importlib.util, "find_spec", lambda name: None)
    assert extractor().execution.runtime == "torch"
    with pytest.raises(RuntimeUnavailableError, match="openvino does not compute"):
        extractor("openvino")


class Branching(nn.Module):
    """What neither torch.fx nor torch.export can follow."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 4, 3), nn.Linear(4, 2)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        maps = self.first(images)
        if float(maps.sum()) > 1e30:
            maps = -maps
        features: torch.Tensor = self.last(maps.mean((2, 3)))
        return features


def test_a_network_that_openvino_cannot_convert_runs_in_torch(
    shapes: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    torch.manual_seed(0)
    mine = Backbone("python", "m:f", "DEFAULT", Branching(), Preprocessing((16, 16), (16, 16)))
    with caplog.at_level(logging.WARNING, "featpipe"):
        cache = extract_features(shapes, mine, tmp_path / "f.h5", ExtractSettings(batch_size=4))
    assert cache.conditions["execution"]["runtime"] == "torch"
    if fastest("cpu", precisions("cpu")[0])[0] == "openvino":
        assert "OpenVINO cannot run this network" in caplog.text
    with pytest.raises(RuntimeUnavailableError, match="--runtime torch"):
        extract_features(
            shapes, mine, tmp_path / "g.h5", ExtractSettings(runtime="openvino", batch_size=4)
        )


# ---- OpenVINO's converted models -----------------------------------------------------------


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder for converted models."""
    pytest.importorskip("openvino")
    monkeypatch.setenv("FEATPIPE_CACHE_DIR", str(tmp_path / "models"))
    return tmp_path / "models" / "openvino"


def forbid(monkeypatch: pytest.MonkeyPatch) -> None:
    def convert(*_: Any) -> None:
        raise AssertionError("converted again")

    monkeypatch.setattr(openvino_runtime, "_convert", convert)


def test_a_model_is_converted_once(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = run(extractor("openvino", "float32"), pixels(4))
    kept = {path.suffix: path.stem for path in models.iterdir()}
    assert set(kept) == {".xml", ".bin", ".json"}
    assert len(set(kept.values())) == 1
    forbid(monkeypatch)
    again = run(extractor("openvino", "float32"), pixels(4))
    for layer in first:
        np.testing.assert_array_equal(first[layer], again[layer])
    with pytest.raises(RuntimeUnavailableError, match="converted again"):  # another network
        run(extractor("openvino", "float32", "squeezenet1_1"), pixels(4))


def test_converting_reports_to_nobody_and_prints_nothing(models: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    environment = {key: value for key, value in os.environ.items() if key != "CI"}
    command = [
        sys.executable, "-m", "featpipe", "-q", "extract", str(DATA / "shapes"), "-b",
        "squeezenet1_1@random", "--input-size", "64", "--runtime", "openvino", "--precision",
        "float32", "-o", str(tmp_path / "f.h5"),
    ]  # fmt: skip
    done = subprocess.run(
        command, capture_output=True, text=True, check=True,
        env={**environment, "HOME": str(home)},
    )  # fmt: skip
    assert len(list(models.iterdir())) == 3
    assert "36 of 36 images" in done.stdout
    assert len(done.stderr.splitlines()) == 1, done.stderr  # the weights are random
    assert list(home.iterdir()) == []  # where the makers' package leaves its name for the user


@pytest.mark.parametrize("suffix", [".xml", ".bin", ".json"])
@pytest.mark.parametrize("how", ["flip", "remove"])
def test_a_damaged_model_is_converted_again(models: Path, suffix: str, how: str) -> None:
    first = run(extractor("openvino", "float32"), pixels(4))
    (file,) = models.glob(f"*{suffix}")
    whole = file.read_bytes()
    if how == "flip":
        middle = len(whole) // 2
        file.write_bytes(whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :])
    else:
        file.unlink()
    again = run(extractor("openvino", "float32"), pixels(4))
    for layer in first:
        np.testing.assert_array_equal(first[layer], again[layer])
    assert len(list(models.iterdir())) == 3


def test_where_models_cannot_be_kept_it_runs_all_the_same(models: Path) -> None:
    models.parent.mkdir()
    models.write_text("in the way")
    found = run(extractor("openvino", "float32"), pixels(4))
    assert all(np.isfinite(rows).all() for rows in found.values())


def test_the_model_used_longest_ago_makes_room(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(extractor("openvino", "float32"), pixels(4))
    (old,) = models.glob("*.json")
    monkeypatch.setattr(openvino_runtime, "MOST_BYTES", 1000)
    run(extractor("openvino", "float32", "squeezenet1_1"), pixels(4))
    (left,) = models.glob("*.json")
    assert left != old
    assert len(list(models.iterdir())) == 3


# ---- torch: compiled, and CUDA as far as a CPU can show it -----------------------------------


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_a_compiled_network_gives_the_same() -> None:
    settings = ExtractSettings(
        weights="random", input_size=64, batch_size=4, runtime="torch", precision="float32",
        compile=True,
    )  # fmt: skip
    made = prepare("squeezenet1_1", settings)
    assert (made.execution.compiled, REFERENCE.compiled) == (True, False)
    measured = compare_features(run(made.at(REFERENCE), pixels(6)), run(made, pixels(6)))
    assert measured.cosine > 0.999999


def test_what_cannot_be_compiled_is_run_otherwise(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, shapes: Path, tmp_path: Path
) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise RuntimeError("no compiler")

    monkeypatch.setattr(torch, "compile", fail)
    one = ExtractSettings(
        weights="random", input_size=64, runtime="torch", compile=True, batch_size=4
    )
    with caplog.at_level(logging.WARNING, "featpipe"):
        cache = extract_features(shapes, "squeezenet1_1", tmp_path / "f.h5", one)
    assert "torch.compile failed: no compiler. Going on with torch, " in caplog.text
    assert cache.conditions["execution"]["compiled"] is False


class FakeLane:
    """A lane of a GPU that has room for so many images at once."""

    room = 3

    def __init__(self, run: Any, image: tuple[int, int], size: int, device: str) -> None:
        if size > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        self.size, self._run = size, run

    def __call__(self, batch: np.ndarray) -> tuple[np.ndarray, ...]:
        assert len(batch) == self.size
        return tuple(out.numpy() for out in self._run(torch.from_numpy(batch)))


def on_gpu(monkeypatch: pytest.MonkeyPatch, room: int) -> torch_runtime.Runtime:
    monkeypatch.setattr(torch_runtime, "_Lane", FakeLane)
    monkeypatch.setattr(FakeLane, "room", room)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    network = extractor("torch", "float32").network
    made = torch_runtime.Runtime(network, "cuda", "float32", 8)
    made._run = network
    return made


def test_a_batch_that_does_not_fit_is_halved_aloud(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    made = on_gpu(monkeypatch, room=3)
    reference = run(extractor("torch", "float32"), pixels(13))
    caplog.clear()
    with caplog.at_level(logging.WARNING, "featpipe"):
        found = made(pixels(13))
    for layer, rows in reference.items():
        np.testing.assert_allclose(found[layer], rows, atol=1e-4 * np.abs(rows).max())
    said = [record.getMessage() for record in caplog.records]
    assert [line.split(" do not fit")[0] for line in said] == ["8 images", "4 images"]
    assert "going on with 2 at once" in said[-1]
    caplog.clear()
    made(pixels(5))
    assert not caplog.records  # once is enough


def test_one_image_that_does_not_fit_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(torch.OutOfMemoryError):
        on_gpu(monkeypatch, room=0)(pixels(3))


@pytest.mark.parametrize(
    ("free", "size"),
    # 8 images take 80 units; two lanes may use a quarter of what is free.
    [(10_000, 64), (79, 1), (80, 1), (160, 2), (1, 1), (5_120, 64), (5_119, 32), (10**9, 256)],
)
def test_the_batch_fits_into_the_free_memory(
    monkeypatch: pytest.MonkeyPatch, free: int, size: int
) -> None:
    seen = []
    network = extractor("torch", "float32").network
    network.register_forward_hook(lambda module, given, out: seen.append(len(given[0])))
    for name, found in (
        ("reset_peak_memory_stats", None),
        ("memory_allocated", 500),
        ("max_memory_allocated", 500 + 10 * torch_runtime.TRIED_BATCH),
        ("mem_get_info", (free, 10**9)),
        ("empty_cache", None),
    ):
        monkeypatch.setattr(torch.cuda, name, lambda *_, found=found: found)
    assert torch_runtime.fitting_batch(network, "cpu", "float32") == size
    assert seen == [torch_runtime.TRIED_BATCH]


def test_where_nothing_fits_it_begins_with_one(monkeypatch: pytest.MonkeyPatch) -> None:
    network = extractor("torch", "float32").network
    for name in ("reset_peak_memory_stats", "memory_allocated"):
        monkeypatch.setattr(torch.cuda, name, lambda *_: 0)

    def full(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    network.register_forward_hook(full)
    assert torch_runtime.fitting_batch(network, "cpu", "float32") == 1


# ---- what lies there decides -------------------------------------------------------------


def test_auto_goes_on_as_the_cache_was_made(shapes: Path, tmp_path: Path) -> None:
    first = ExtractSettings(
        weights="random", input_size=64, batch_size=4, precision="float32", decode="exact"
    )
    for name in ("circle", "square"):
        shutil.copytree(shapes / name, tmp_path / "images" / name)
    extract_features(tmp_path / "images", "squeezenet1_1", tmp_path / "f.h5", first).close()
    shutil.copytree(shapes / "triangle", tmp_path / "images" / "triangle")
    with extract_features(tmp_path / "images", "squeezenet1_1", tmp_path / "f.h5", SMALL) as cache:
        assert len(cache) == 36
        assert cache.spec.precision == "float32"
        assert cache.conditions["execution"]["decode"] == "exact"


def test_what_was_measured_stands_in_the_file(shapes: Path, tmp_path: Path) -> None:
    with extract_features(shapes, "resnet18", tmp_path / "f.h5", SMALL) as cache:
        conditions: dict[str, Any] = cache.conditions
    assert conditions["execution"]["precision"] == precisions("cpu")[0]
    assert 0.999 <= conditions["fidelity"]["cosine"] <= 1
    assert conditions["fidelity"]["images"] in (4, 32)
    assert conditions["throughput"]["images_per_second"] > 0
    with FeatureCache.open(tmp_path / "f.h5") as again:
        assert again.conditions == conditions


MANY_AT_ONCE = """
import sys, threading
sys.setswitchinterval(1e-6)
import numpy as np
from featpipe.runtimes.openvino import _openvino
openvino, together = _openvino(), threading.Barrier(8)
def first():
    together.wait()
    openvino.Type.u8.to_dtype()
    openvino.Tensor(np.zeros(3, np.uint8)).data
threads = [threading.Thread(target=first, daemon=True) for _ in range(8)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join(20)
sys.exit(any(thread.is_alive() for thread in threads))
"""


@pytest.mark.skipif("openvino" not in {name for name, _ in WAYS}, reason="no OpenVINO")
@pytest.mark.parametrize("attempt", range(3))
def test_first_calls_from_several_threads_do_not_wait_for_ever(attempt: int) -> None:
    """OpenVINO by itself hangs in three of four such processes."""
    done = subprocess.run([sys.executable, "-c", MANY_AT_ONCE], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr or "it hangs"


SIGNAL_AFTER_MODELS = """
import gc, signal, sys
from featpipe.extractor import prepare
from featpipe.settings import ExtractSettings
heard = []
signal.signal(signal.SIGINT, lambda *_: heard.append(1))
def ready():
    settings = ExtractSettings(weights="random", input_size=64, batch_size=2, runtime="openvino")
    made = prepare("resnet18", settings)
    with made.forward:
        return made
elder, younger = ready(), ready()
del elder
gc.collect()
del younger
gc.collect()
signal.raise_signal(signal.SIGINT)
sys.exit(heard != [1])
"""


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
@pytest.mark.skipif("openvino" not in {name for name, _ in WAYS}, reason="no OpenVINO")
def test_ctrl_c_is_heard_when_one_model_has_given_way_to_another() -> None:
    """Where the processor has AMX, OpenVINO by itself leaves the process to crash."""
    done = subprocess.run(
        [sys.executable, "-c", SIGNAL_AFTER_MODELS], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr or done.returncode


@pytest.mark.parametrize("runtime", plugin_names("runtimes"))
def test_a_reshaped_picture_is_what_numpy_makes_of_it_in_every_runtime(runtime: str) -> None:
    settings = ExtractSettings(weights="random", batch_size=4, runtime=runtime, precision="float32")
    loaded = load_backbone("resnet18", "random", input_size=64)
    scrambled = replace(loaded.preprocessing, reshaped=True)
    given = pixels(4)
    wanted = given.reshape(4, 3, 64, 64).transpose(0, 2, 3, 1)
    plain = run(prepare(loaded, settings), wanted)
    found = run(prepare(replace(loaded, preprocessing=scrambled), settings), given)
    for layer, values in plain.items():
        np.testing.assert_allclose(found[layer], values, atol=1e-5)
