"""Who kept whom waiting, and how fast each stage is alone."""

import json
import re
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from featpipe.bench import bench
from featpipe.cache import FeatureCache
from featpipe.cli import cli
from featpipe.device import available_cores
from featpipe.engines import LoadedImage, Read, local
from featpipe.errors import ImagesError
from featpipe.extract import extract_features
from featpipe.runtimes import fastest
from featpipe.settings import ExtractSettings
from featpipe.throughput import STAGES, Ceilings, Meter, describe


class Clock:
    """Goes on when it is told to."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_shares_are_of_the_time_and_of_the_threads() -> None:
    clock = Clock()
    meter = Meter(clock)
    meter.begin(workers=2, lanes=4)
    with meter.working("decode"):
        clock.now += 3
    with meter.waiting_for("decode"):
        clock.now += 4
    with meter.waiting_for("write"):
        clock.now += 1
    clock.now += 2
    meter.add(50)
    meter.end()
    clock.now += 100  # what comes later does not count
    assert meter.seconds == 10
    assert meter.rate == 5
    # 4 of 4 x 10 s; 1 of 10 s; decoders idle for 17 of 2 x 10 s, of which 1 s for the writer.
    assert meter.waits() == pytest.approx({"decode": 0.1, "forward": 0.75, "write": 0.1})
    assert meter.bound == "forward"


class Grey:
    """Loads grey images from nowhere."""

    whole = False

    def read(self, items: list[int]) -> list[Read]:
        return [b"grey"] * len(items)

    def decode(self, found: Sequence[Read]) -> list[LoadedImage]:
        return [LoadedImage(np.zeros((3, 2, 3), np.uint8)) for _ in found]


def mean(pixels: np.ndarray) -> dict[str, np.ndarray]:
    return {"a": pixels.mean((1, 2, 3), dtype=np.float32)[:, None]}


def in_fours(count: int) -> list[list[int]]:
    return [list(range(start, start + 4)) for start in range(0, count, 4)]


@pytest.mark.parametrize("whole", [True, False])
def test_memory_is_bounded_by_batches_ahead(whole: bool) -> None:
    live: set[int] = set()
    most = 0

    class Counting(Grey):
        def read(self, items: list[int]) -> list[Read]:
            nonlocal most
            live.update(items)
            most = max(most, len(live))
            return super().read(items)

    Counting.whole = whole  # which is always read ahead
    for batch in local.run(in_fours(400), Counting(), mean, 2, 2):
        live.difference_update(batch.items)
    assert most <= 4 * (2 + local.AHEAD)


def test_a_slow_disk_is_asked_for_several_files_at_once() -> None:
    """Though one thread decodes: what was slow once is read ahead."""
    lock, now, most = threading.Lock(), 0, 0

    class Distant(Grey):
        def read(self, items: list[int]) -> list[Read]:
            nonlocal now, most
            with lock:
                now += 1
                most = max(most, now)
            time.sleep(3 * local.WAITED * len(items))
            with lock:
                now -= 1
            return super().read(items)

    done = [batch.items for batch in local.run(in_fours(64), Distant(), mean, 1, 2)]
    assert done == in_fours(64)
    assert most == local.READERS


@pytest.mark.parametrize("whole", [True, False])
def test_a_whole_batch_is_decoded_by_one_call(whole: bool) -> None:
    seen: list[int] = []

    class Whole(Grey):
        def decode(self, found: Sequence[Read]) -> list[LoadedImage]:
            seen.append(len(found))
            return super().decode(found)

    Whole.whole = whole
    batches = list(local.run(in_fours(20), Whole(), mean, 2, 1))
    assert [batch.items for batch in batches] == in_fours(20)
    assert seen == ([4] * 5 if whole else [2] * 10)


@pytest.mark.parametrize("slow", STAGES)
def test_the_slow_stage_is_named(slow: str) -> None:
    pause = {stage: 0.03 if stage == slow else 0.0 for stage in STAGES}
    meter = Meter()

    class Slow(Grey):
        def decode(self, found: Sequence[Read]) -> list[LoadedImage]:
            time.sleep(pause["decode"])
            return super().decode(found)

    def forward(pixels: np.ndarray) -> dict[str, np.ndarray]:
        time.sleep(pause["forward"])
        return {"a": np.zeros((len(pixels), 1), np.float32)}

    batches = [[item] for item in range(40)]
    for batch in local.run(batches, Slow(), forward, 1, 1, meter):
        with meter.waiting_for("write"):
            time.sleep(pause["write"])
        meter.add(len(batch.items))
    meter.end()
    assert meter.bound == slow
    assert meter.waits()[slow] > 0.5
    assert sum(share > 0.5 for share in meter.waits().values()) == 1


def test_what_stages_allow_together() -> None:
    assert Ceilings(100.0, 50.0, shared=True).together == pytest.approx(100 / 3)
    assert Ceilings(100.0, 50.0, shared=False).together == 50
    assert Ceilings(40.0, 50.0, shared=False).together == 40


def test_a_meter_that_never_began_says_nothing_wrong() -> None:
    assert (Meter().seconds, Meter().rate) == (0.0, 0.0)
    assert Meter().bound in STAGES


def test_a_run_tells_its_ceilings_in_the_file_and_in_words(
    shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("featpipe.extract.WORTH_MEASURING", 1)
    settings = ExtractSettings(batch_size=2)
    with extract_features(shapes, "pixels", tmp_path / "f.h5", settings) as cache:
        found = cache.conditions["throughput"]
    assert set(found["alone"]) == set(STAGES)
    assert all(rate > 0 for rate in found["alone"].values())
    assert found["ceiling"] < min(found["alone"]["decode"], found["alone"]["forward"])
    assert re.fullmatch(
        r"[\d.]+ images/s, (decode|forward|write)-bound, \d+ % of its ceiling \(waited for decode "
        r"\d+ %, forward \d+ %, write \d+ %; alone decode [\d,]+/s, forward [\d,]+/s, write "
        r"[\d,]+/s\)",
        describe(found),
    )
    shown = CliRunner().invoke(cli, ["info", str(tmp_path / "f.h5")])
    assert f"speed         {describe(found)}" in shown.stdout
    assert "computed by   torch in float32, fast decoding, 2 images a batch" in shown.stdout


def test_files_of_earlier_versions_are_shown_without(tmp_path: Path) -> None:
    old = Path(__file__).parent / "format" / "v1.h5"
    with FeatureCache.open(old) as cache:
        assert "execution" not in cache.conditions
    assert CliRunner().invoke(cli, ["info", str(old)]).exit_code == 0


def test_a_short_run_measures_no_ceilings(shapes: Path, tmp_path: Path) -> None:
    with extract_features(shapes, "pixels", tmp_path / "f.h5") as cache:
        assert "ceiling" not in cache.conditions["throughput"]


def test_progress_names_the_bottleneck(shapes: Path, tmp_path: Path) -> None:
    command = ["extract", str(shapes), "-b", "pixels", "-o", str(tmp_path / "f.h5")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("featpipe.cli._output.EVERY", 0.0)
        printed = CliRunner().invoke(cli, command).stderr
    assert re.search(r"extract: 36/36, [\d.]+/s, \w+-bound, 0 s left", printed), printed


# ---- bench -------------------------------------------------------------------------------


def test_bench_measures_every_way_and_chooses_a_true_one(shapes: Path, tmp_path: Path) -> None:
    steps: list[tuple[int, int]] = []
    settings = ExtractSettings(weights="random", input_size=64, batch_size=2)
    found = bench(
        "squeezenet1_1", shapes, settings, folder=tmp_path,
        on_progress=lambda done, total: steps.append((done, total)),
    )  # fmt: skip
    assert set(found.decode) == {"exact", "fast"}
    expected = {(name, p) for p in ("float32", "bfloat16", "float16") for name in fastest("cpu", p)}
    assert {(way.runtime, way.precision) for way in found.forward} == expected
    able = [way for way in found.forward if not way.reason]
    assert {("torch", "float32")} <= {(way.runtime, way.precision) for way in able}
    for way in able:
        assert way.images_per_second > 0
        assert way.fidelity.images in (4, 32)
        if way.precision == "float32":
            assert way.fidelity.cosine > 0.9999
    assert found.write > 0
    chosen = [
        way for way in found.forward
        if (way.runtime, way.precision) == (found.choice["runtime"], found.choice["precision"])
    ]  # fmt: skip
    assert chosen[0].true
    assert chosen[0].images_per_second == max(way.images_per_second for way in able if way.true)
    assert 0 < found.choice["images_per_second"] < max(found.decode.values())
    assert steps[-1][0] == steps[-1][1] == len(steps)
    assert list(tmp_path.iterdir()) == []  # what was written for the measurement is gone


def test_bench_without_images_makes_some_up(tmp_path: Path) -> None:
    command = ["bench", "pixels", "--batch-size", "2", "-o", str(tmp_path)]
    document = json.loads(CliRunner().invoke(cli, [*command, "--json"]).stdout)
    assert document["machine"]["cores"] == available_cores()
    assert document["images"] == "made-up JPEGs of 500 x 375"
    printed = CliRunner().invoke(cli, command).stdout
    assert re.search(r"best: --runtime \w+ --precision \w+ --decode \w+: up to [\d,.]+ images/s",
                     printed)  # fmt: skip


def test_bench_of_nothing_that_can_be_decoded_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "empty.jpg").touch()
    with pytest.raises(ImagesError, match="can be decoded"):
        bench("pixels", tmp_path, folder=tmp_path)
