"""What a cache survives: other writers, kills, damage, hostile files, full disks, Ctrl-C.

Processes are real and are really killed. Those that compute run in processes of their own, forked
from one that has imported everything and started no thread.
"""

import contextlib
import ctypes
import itertools
import json
import multiprocessing
import os
import pickle
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from click.testing import CliRunner
from damage import flip
from test_cache import SPEC, begin, builder, compute, make, spec
from torch.utils.data import DataLoader

from featpipe import cache_assemble, cache_build, cache_parts, cache_rows, extract
from featpipe.cache import FeatureCache
from featpipe.cache_layout import CHUNK_SUMS, ROW_SUMS, as_attribute, read_attribute
from featpipe.cache_parts import Part
from featpipe.cache_rows import LayerWriter
from featpipe.checksums import digest_column
from featpipe.cli import cli, main
from featpipe.durable import Deferred
from featpipe.errors import CacheDamagedError, CacheError, SpecMismatchError
from featpipe.images import ImageSource
from featpipe.loading import ImageLoader
from featpipe.settings import ExtractSettings
from featpipe.spec import Spec
from featpipe.table import ImageTable, make_table, text_column

resource = pytest.importorskip("resource")
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks, limits and mounts of Linux")

SHAPES = Path(__file__).parents[1] / "data" / "shapes"
SECONDS = 60  # after which a process hangs
RANDOM = ExtractSettings(
    weights="random", input_size=64, batch_size=4, precision="float32", decode="exact"
)
TWO = spec(layers={"a": "flatten", "b": "flatten"}, weights_digests={"a": "d", "b": "e"})
NEW = spec(precision="bfloat16")

PROCESSES = multiprocessing.get_context("forkserver" if os.name == "posix" else "spawn")
PROCESSES.set_forkserver_preload(
    ["featpipe.extract", "featpipe.cli.extract", "featpipe.cli._text", "torch", "torchvision"]
)


def apart(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function of this module in a process of its own."""
    mine, theirs = PROCESSES.Pipe()
    process = PROCESSES.Process(target=_told, args=(theirs, function, arguments))
    process.start()
    theirs.close()
    try:
        assert mine.poll(SECONDS), f"{function.__name__} hangs"
        error, value = mine.recv()
    except EOFError:
        process.join()
        error, value = f"{function.__name__} ended with {process.exitcode}", None
    finally:
        process.kill()
        process.join()
    assert not error, error
    return value


def _told(to: Connection, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    try:
        to.send(("", function(*arguments)))
    except BaseException:
        to.send((traceback.format_exc(), None))


def forked(function: Callable[[], Any]) -> int:
    """Call a function in a fork of this process; its exit code, negative for a signal."""
    child = os.fork()
    if not child:
        signal.alarm(SECONDS)
        code = 99
        try:
            function()
            code = 0
        except SystemExit as stop:
            code = int(stop.code or 0)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def contents(path: Path) -> dict[str, bytes]:
    """Every dataset of a finished file, features read and checked by featpipe."""
    with FeatureCache.open(path) as cache, h5py.File(path) as file:
        found = {layer: cache.features(layer).tobytes() for layer in cache.layers}
        return found | {
            name: file[name][:].tobytes() for name in file if isinstance(file[name], h5py.Dataset)
        }


def by_two(work: Callable[[Any], None], tasks: list[Any]) -> None:
    """Do tasks in two forks of this process, which has two cores."""
    children = []
    for half in (tasks[::2], tasks[1::2]):
        child = os.fork()
        if not child:
            code = 1
            try:
                for task in half:
                    work(task)
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(code)
        children.append(child)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    assert codes == [0, 0], "see above"


def names(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


def command_line(*arguments: str, before: Callable[[], None] = lambda: None) -> tuple[int, str]:
    """Exit code and standard error of the command line, forked, with patches applied before."""
    reading, writing = os.pipe()

    def run() -> None:
        os.close(reading)
        sys.stdout = sys.stderr = os.fdopen(writing, "w")
        before()
        sys.argv = ["featpipe", *arguments]
        main()

    code = forked(run)
    os.close(writing)
    with os.fdopen(reading) as file:
        return code, file.read()


def pixels(images: Path, out: Path) -> list[str]:
    return ["-q", "extract", str(images), "-b", "pixels", "-o", str(out)]


def computed_by(images: Path, out: Path) -> int:
    """Extract in a fork; how many images went through the network."""
    reading, writing = os.pipe()

    def run() -> None:
        totals = [0]
        extract.extract_features(
            images, "pixels", out, on_progress=lambda done, total: totals.append(total)
        ).close()
        os.write(writing, str(totals[-1]).encode())

    code = forked(run)
    os.close(writing)
    with os.fdopen(reading) as file:
        assert code == 0
        return int(file.read())


# ---- several processes -------------------------------------------------------------------


def _hold(out: Path, to: Connection) -> None:
    """Extract until some parts are durable, then stay there."""
    cache_build.PART_ROWS = 4

    def wait(done: int, total: int) -> None:
        if done >= 12:
            while len(list(out.with_name("f.h5.parts").glob("part-*"))) < 2:
                time.sleep(0.01)  # written by another thread
            to.send(done)
            signal.pause()

    settings = ExtractSettings(batch_size=4)
    extract.extract_features(SHAPES, "pixels", out, settings, on_progress=wait)


def _refused(out: Path, as_nobody: bool = False) -> tuple[int, str]:
    """Extract to where it cannot be; reading an image would be an error."""

    def scan(*_: Any) -> None:
        raise AssertionError("an image was read")

    def build(*arguments: Any) -> cache_build.CacheBuilder:
        if as_nobody and os.geteuid() == 0:  # whom no permission stops
            ctypes.CDLL(None).setfsuid(65534)
        return cache_build.CacheBuilder(*arguments)

    def forbid() -> None:
        extract.scan, extract.CacheBuilder = scan, build  # type: ignore[assignment, misc]

    return command_line(*pixels(SHAPES, out), before=forbid)


def test_a_second_writer_is_refused_before_it_reads_and_takes_over_after_a_kill(
    tmp_path: Path,
) -> None:
    out, reference = tmp_path / "f.h5", tmp_path / "reference.h5"
    apart(computed_by, SHAPES, reference)
    mine, theirs = PROCESSES.Pipe()
    first = PROCESSES.Process(target=_hold, args=(out, theirs))
    first.start()
    try:
        assert mine.poll(SECONDS)
        # What is still being written (its name begins with a dot) may be renamed at any time.
        files = (tmp_path / "f.h5.parts").glob("[!.]*")
        held = {file: file.read_bytes() for file in files}
        assert len(held) >= 4, held  # the lock, build.json, the work, a part
        code, said = apart(_refused, out)
        assert (code, "Another process is extracting" in said) == (1, True), said
        assert all(file.read_bytes() == content for file, content in held.items())
    finally:
        first.kill()
        first.join()
    parts = len(list((tmp_path / "f.h5.parts").glob("part-*")))
    assert parts >= 2
    assert apart(computed_by, SHAPES, out) == 36 - 4 * parts
    assert contents(out) == contents(reference)
    assert names(tmp_path) == ["f.h5", "reference.h5"]


def test_what_is_written_in_the_lock_file_means_nothing(tmp_path: Path) -> None:
    (tmp_path / "f.h5.parts").mkdir()
    (tmp_path / "f.h5.parts" / "lock").write_text(f"{os.getppid()}\n")
    make(tmp_path / "f.h5", [1, 2]).close()
    assert names(tmp_path) == ["f.h5"]


def _read_on(path: Path) -> None:
    make(path, list(range(9))).close()
    old = contents(path)
    with FeatureCache.open(path) as cache, h5py.File(path) as plain:
        stop, ready = os.pipe(), os.pipe()

        def read() -> None:
            os.set_blocking(stop[0], False)
            going_on = True
            for turn in itertools.count():
                assert cache.features().tobytes() == old["a"]
                if turn == 0:
                    os.write(ready[1], b".")
                if not going_on:
                    return
                with contextlib.suppress(BlockingIOError):
                    going_on = os.read(stop[0], 1) != b""

        child = os.fork()
        if not child:
            os.close(stop[1])
            os._exit(forked(read))
        os.read(ready[0], 1)
        assert forked(lambda: make(path, list(range(5, 20))).close()) == 0
        os.close(stop[1])
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert cache.features().tobytes() == plain["features/a"][:].tobytes() == old["a"]
        assert cache.table.ids.tolist() == plain["ids"].asstr()[:].tolist()
        assert len(cache) == 9
    with FeatureCache.open(path) as cache:
        assert cache.features()[:, 0].tolist() == list(range(5, 20))


def test_open_caches_go_on_reading_what_was_there_when_the_file_is_replaced(
    tmp_path: Path,
) -> None:
    apart(_read_on, tmp_path / "f.h5")


def _all_at_once(path: Path, insist: bool, rivals: bool) -> list[int]:
    """Eight processes on one output; their exit codes."""
    start = os.pipe()
    children = []
    for number in range(8):
        child = os.fork()
        if not child:
            os.close(start[1])
            os.read(start[0], 1)
            other = {"of": NEW, "overwrite": True} if rivals and number % 2 else {}
            os._exit(forked(lambda other=other: _try(path, insist, other)))  # type: ignore[misc]
        children.append(child)
    os.close(start[1])
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


def _try(path: Path, insist: bool, options: dict[str, Any]) -> None:
    for _ in range(1000 if insist else 1):
        try:
            make(path, list(range(30)), **options).close()
            return
        except SpecMismatchError:
            sys.exit(4)
        except CacheError as error:
            if "Another process is extracting" not in str(error):
                raise
    sys.exit(3)


@pytest.mark.parametrize(("insist", "rivals"), [(False, False), (True, False), (True, True)])
def test_of_many_writers_at_once_one_file_results(
    tmp_path: Path, insist: bool, rivals: bool
) -> None:
    for number in range(2):
        path = tmp_path / str(number) / "f.h5"
        codes = apart(_all_at_once, path, insist, rivals)
        assert set(codes) <= {0, 3, 4} - ({3} if insist else set()) - (set() if rivals else {4})
        assert 0 in codes
        with FeatureCache.open(path) as cache:
            assert cache.features()[:, 0].tolist() == list(range(30))
            assert cache.spec in (SPEC, NEW)
        assert names(path.parent) == ["f.h5"]


def test_who_comes_while_another_clears_up_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, unlink, late = tmp_path / "f.h5", Path.unlink, []

    def come_in_between(file: Path, missing_ok: bool = False) -> None:
        unlink(file, missing_ok)
        if file.name == "lock" and not late:
            late.append(None)
            late[0] = builder(path, [1, 2, 3])

    first = builder(path, [1])
    monkeypatch.setattr(Path, "unlink", come_in_between)
    first.close()
    assert names(tmp_path / "f.h5.parts") == ["build.json", "lock", "work.bin"]
    with pytest.raises(CacheError, match="Another process"):
        builder(path, [1])
    compute(late[0])
    with late[0].finish({}) as cache:
        assert cache.features()[:, 0].tolist() == [1, 2, 3]


def test_a_folder_that_goes_away_while_it_is_made_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mkdir, calls = os.mkdir, itertools.count()

    def gone_again(*arguments: Any) -> None:
        if next(calls) == 0:
            raise FileExistsError(17, "File exists")
        mkdir(*arguments)

    monkeypatch.setattr(os, "mkdir", gone_again)
    make(tmp_path / "f.h5", [1]).close()


def test_what_a_killed_run_was_writing_gives_its_space_back(tmp_path: Path) -> None:
    begin(tmp_path / "f.h5", list(range(9)))
    left = tmp_path / "f.h5.parts" / ".f.h5.123.tmp"
    left.write_bytes(b"half of it")
    builder(tmp_path / "f.h5", list(range(9))).close()
    assert not left.exists()
    assert len(names(tmp_path / "f.h5.parts")) == 4


# ---- kills -------------------------------------------------------------------------------


class Job:
    """A state, and a command that is killed in it again and again."""

    def __init__(self, numbers: range, **options: Any) -> None:
        self.numbers, self.options = list(numbers), options

    def before(self, path: Path) -> None:
        """Make what is there beforehand."""

    def table(self) -> ImageTable | None:
        return None

    def run(self, path: Path) -> set[bytes]:
        """The command; returns the digests of what it computes."""
        build = builder(path, self.numbers, table=self.table(), **self.options)
        items = [item for batch in build.batches() for item in batch]
        digests = {build.work[item].tobytes() for item in items}
        compute(build)
        build.finish({}).close()
        return digests


class Repair(Job):
    def before(self, path: Path) -> None:
        self.run(path)
        flip(path, 2)
        flip(path, 6)


class Add(Job):
    def before(self, path: Path) -> None:
        make(path, self.numbers[3:7]).close()


class Overwrite(Job):
    def before(self, path: Path) -> None:
        make(path, self.numbers).close()


class Relabel(Add):
    def before(self, path: Path) -> None:
        make(path, self.numbers).close()

    def table(self) -> ImageTable | None:
        return make_table([f"{n}.png" for n in self.numbers], ["x"] * len(self.numbers))


JOBS = {
    "new": Job(range(7)),
    "repair": Repair(range(7)),
    "add": Add(range(9)),
    "overwrite": Overwrite(range(7), of=NEW, overwrite=True),
    "relabel": Relabel(range(7)),
}
POINTS: list[tuple[Any, str]] = [
    (os, "replace"), (os, "fsync"), (os, "unlink"), (os, "mkdir"), (os, "rmdir"),
    (Path, "write_bytes"), (LayerWriter, "write"), (LayerWriter, "close"),
    (cache_parts, "write_columns"), (cache_assemble, "write_columns"),
]  # fmt: skip


def _in_small_pieces() -> None:
    cache_build.PART_ROWS, cache_rows.CHUNK_BYTES, cache_assemble.BLOCK_BYTES = 4, 60, 60


def _counted(patch: pytest.MonkeyPatch, stop: int) -> list[int]:
    """Count the points that are passed; at one of them, end by SIGKILL.

    Whatever changes the disk is such a point, so that none after them need be tried.
    """
    passed = [0]
    for owner, name in POINTS:

        def point(*args: Any, _call: Any = getattr(owner, name), **kwargs: Any) -> Any:
            number, passed[0] = passed[0], passed[0] + 1
            if number == stop:
                os.kill(os.getpid(), signal.SIGKILL)
            return _call(*args, **kwargs)

        patch.setattr(owner, name, point)
    return passed


def _killed(job: Job, path: Path, stop: int) -> int:
    def run() -> None:
        _counted(pytest.MonkeyPatch(), stop)
        job.run(path)

    return forked(run)


def _durable(folder: Path) -> set[bytes]:
    if not (folder / "build.json").exists():
        return set()
    parts = [Part.read(path) for path in folder.glob("part-*.h5")]
    return {row.tobytes() for part in parts for row in part.digests if row.any()}


def _prepared(folder: Path, name: str) -> tuple[Job, dict[str, bytes], dict[str, bytes], int]:
    """The job, what is there before, what is afterwards, and how many points are passed."""
    _in_small_pieces()
    job, path = JOBS[name], folder / "before" / "f.h5"
    path.parent.mkdir()
    job.before(path)
    shutil.copytree(path.parent, folder / "reference")
    with pytest.MonkeyPatch.context() as patch:
        passed = _counted(patch, -1)
        job.run(folder / "reference" / "f.h5")
    before = {"f.h5": path.read_bytes()} if path.exists() else {}
    return job, before, contents(folder / "reference" / "f.h5"), passed[0]


def _kill_everywhere(folder: Path, name: str) -> int:
    job, before, after, points = _prepared(folder, name)

    def kill(stop: int) -> None:
        at = shutil.copytree(folder / "before", folder / str(stop)) / "f.h5"
        assert _killed(job, at, stop) == -signal.SIGKILL, f"{name} not killed at {stop}"
        _check_and_finish(job, at, before, after, f"{name} killed at {stop}")

    by_two(kill, list(range(points)))
    return points


def _check_and_finish(
    job: Job, path: Path, before: dict[str, bytes], after: dict[str, bytes], when: str
) -> None:
    if path.exists():
        assert path.read_bytes() == before.get("f.h5") or contents(path) == after, when
    else:
        assert not before, when
    durable = _durable(path.with_name("f.h5.parts"))
    assert not durable & job.run(path), when
    assert contents(path) == after, when
    assert names(path.parent) == ["f.h5"], when


@pytest.mark.parametrize("name", JOBS)
def test_killed_before_or_after_any_step_the_same_command_ends_the_same(
    tmp_path: Path, name: str
) -> None:
    assert apart(_kill_everywhere, tmp_path, name) > 15


def _kill_again_and_again(folder: Path, name: str) -> None:
    job, before, after, points = _prepared(folder, name)

    def kill(seed: int) -> None:
        chance, at = random.Random(seed), shutil.copytree(folder / "before", folder / str(seed))
        for _ in range(4):
            _killed(job, at / "f.h5", chance.randrange(points))
        _check_and_finish(job, at / "f.h5", before, after, f"{name}, seed {seed}")

    by_two(kill, list(range(6)))


@pytest.mark.parametrize("name", ["repair", "add"])
def test_killed_again_and_again_the_same_command_ends_the_same(tmp_path: Path, name: str) -> None:
    apart(_kill_again_and_again, tmp_path, name)


def _extract(images: Path, out: Path, settings: ExtractSettings, to: Connection) -> None:
    cache_build.PART_ROWS = 4
    to.send(0)
    extract.extract_features(
        images, "squeezenet1_1", out, settings, on_progress=lambda done, total: to.send(done)
    ).close()
    to.send(-1)


@pytest.mark.parametrize("state", ["nothing", "damaged", "fewer", "other"])
def test_a_real_network_killed_at_any_time_ends_with_the_same_bytes(
    shapes_cache: FeatureCache, tmp_path: Path, state: str
) -> None:
    out, settings, chance = tmp_path / "f.h5", RANDOM, random.Random(state)
    if state == "damaged":
        shutil.copy(shapes_cache.path, out)
        flip(out, 20)  # alone in its batch, which must be filled up for the same bytes
    elif state == "fewer":
        extract.extract_features(SHAPES / "square", "squeezenet1_1", out, settings).close()
    elif state == "other":
        shutil.copy(shapes_cache.path, out)
        settings = replace(settings, dtype="float16", overwrite=True)
    shutil.copytree(tmp_path, tmp_path / "uninterrupted")
    uninterrupted = tmp_path / "uninterrupted" / "f.h5"
    extract.extract_features(SHAPES, "squeezenet1_1", uninterrupted, settings).close()
    for _ in range(2):
        mine, theirs = PROCESSES.Pipe()
        process = PROCESSES.Process(target=_extract, args=(SHAPES, out, settings, theirs))
        process.start()
        assert mine.poll(SECONDS)
        batches = chance.randint(0, 6)
        while mine.recv() != -1 and batches and mine.poll(SECONDS):
            batches -= 1
        process.kill()
        process.join()
        if out.exists():
            FeatureCache.open(out).close()
    extract.extract_features(SHAPES, "squeezenet1_1", out, settings).close()
    assert contents(out) == contents(uninterrupted)
    if state in ("nothing", "damaged"):
        assert contents(out) == contents(shapes_cache.path)
    assert names(tmp_path) == ["f.h5", "uninterrupted"]


# ---- damage ------------------------------------------------------------------------------


def _sample(path: Path) -> Path:
    """A file with every kind of column, several layers, several chunks."""
    _in_small_pieces()
    count = 23
    table = make_table(
        [f"{'ab'[n % 2]}/ü{n}.png" for n in range(count)],
        ["ab"[n % 2] for n in range(count)],
        ["train", "val", ""] * 7 + ["test"] * 2,
        [f"g{n // 3}" for n in range(count)],
    )
    make(path, list(range(count)), of=TWO, table=table).close()
    return path


def _everything(path: Path) -> list[Any]:
    with FeatureCache.open(path) as cache:
        rows = np.arange(len(cache))[::-2]
        read = [
            (cache.features(layer).tobytes(), cache.features(layer, rows).tobytes())
            for layer in cache.layers
        ]
        return [cache.columns(), cache.table.classes, cache.spec, cache.conditions, read]


def _flip_anywhere(path: Path, count: int) -> dict[str, int]:
    _sample(path)
    good, content, chance = _everything(path), path.read_bytes(), random.Random(3)
    found = {"refused": 0, "right": 0}
    offsets = [*range(96), *chance.sample(range(96, len(content)), count)]
    for offset in offsets:
        flipped = bytearray(content)
        flipped[offset] ^= chance.choice([1 << chance.randrange(8), chance.randrange(1, 256)])
        path.write_bytes(flipped)
        signal.alarm(10)  # a hang within HDF5 is the end of this process
        try:
            assert _everything(path) == good, f"byte {offset} flipped gives wrong data"
            found["right"] += 1
        except CacheDamagedError:
            found["refused"] += 1
        except AssertionError:
            raise
        except Exception as error:
            raise AssertionError(f"byte {offset} flipped raises {error!r}") from error
    return found


def test_a_flipped_byte_anywhere_is_refused_or_harmless(tmp_path: Path) -> None:
    found = apart(_flip_anywhere, tmp_path / "f.h5", 300)
    # HDF5's heap of texts has no checksums, and one byte of it can have HDF5 read for ever.
    assert b"GCOL" not in (tmp_path / "f.h5").read_bytes()
    assert found["refused"] > 100
    assert found["right"] > 5  # HDF5's spare space


def test_damaged_rows_are_named_exactly_and_only_they_are_computed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache_rows, "CHUNK_BYTES", 60)
    path, chance, numbers = tmp_path / "f.h5", random.Random(5), list(range(23))
    make(path, numbers, of=TWO).close()
    good = contents(path)
    for _ in range(15):
        bad = {layer: sorted(chance.sample(numbers, chance.randint(0, 4))) for layer in "ab"}
        for layer, rows in bad.items():
            for row in rows:
                flip(path, row, layer)
        with FeatureCache.open(path) as cache:
            for layer, rows in bad.items():
                assert cache.inspect(layer).rows.tolist() == rows
                sound = np.setdiff1d(numbers, rows)
                assert cache.features(layer, sound)[:, 0].tolist() == sound.tolist()
        build = builder(path, numbers, TWO)
        assert compute(build) == build.pending == len({*bad["a"], *bad["b"]})
        build.finish({}).close()
        assert contents(path) == good


def test_a_damaged_row_of_a_missing_image_is_mended_too(tmp_path: Path) -> None:
    shutil.copytree(SHAPES / "circle", tmp_path / "c")
    (tmp_path / "c" / "gone.jpg").symlink_to(tmp_path / "nowhere")
    with extract.extract_features(tmp_path / "c", "pixels", tmp_path / "f.h5") as cache:
        row = int(np.flatnonzero(~cache.ok)[0])
    flip(tmp_path / "f.h5", row)
    with pytest.raises(CacheDamagedError), FeatureCache.open(tmp_path / "f.h5") as cache:
        cache.features()
    with extract.extract_features(tmp_path / "c", "pixels", tmp_path / "f.h5") as cache:
        assert np.isnan(cache.features()[row]).all()


@pytest.mark.parametrize("change", ["cut", "cut short", "zeros", "emptied"])
def test_a_file_that_is_cut_or_wiped_is_refused_and_made_anew_on_request(
    tmp_path: Path, change: str
) -> None:
    path = _sample_here(tmp_path)
    content = path.read_bytes()
    size = len(content)
    changed = {
        "cut": content[: size - 1], "cut short": content[: size // 3], "zeros": bytes(size),
        "emptied": b"",
    }  # fmt: skip
    path.write_bytes(changed[change])
    with pytest.raises(CacheDamagedError):
        _everything(path)
    with pytest.raises(CacheDamagedError, match="--overwrite"):
        builder(path, list(range(23)), TWO)
    assert path.read_bytes() == changed[change]
    with make(path, list(range(23)), of=TWO, overwrite=True) as cache:
        assert cache.features("b")[:, 0].tolist() == list(range(23))
    assert names(tmp_path) == ["f.h5"]


def _sample_here(folder: Path) -> Path:
    make(folder / "f.h5", list(range(23)), of=TWO).close()
    return folder / "f.h5"


def test_what_is_appended_to_a_file_does_no_harm(tmp_path: Path) -> None:
    path = _sample_here(tmp_path)
    good = contents(path)
    with path.open("ab") as file:
        file.write(b"\x89HDF\r\n\x1a\n" * 500)
    assert contents(path) == good


def _flip_parts(folder: Path) -> None:
    """Whatever becomes of the files of an interrupted run, no row is wrong in the end."""
    _in_small_pieces()
    build = builder(folder / "f.h5", list(range(14)), TWO)
    compute(build, 12)
    build.flush()
    build.close()
    begun, chance = folder / "f.h5.parts", random.Random(11)
    work = (begun / "work.bin").read_bytes()
    swapped = work[16:32] + work[:16] + work[32:]
    changes = [("work.bin", new) for new in (b"", work[:-5], work[5:], swapped, bytes(len(work)))]
    for name in ("work.bin", "part-000001-000000000000-000000000003.h5"):
        content = (begun / name).read_bytes()
        for offset in chance.sample(range(len(content)), 12):
            changed = bytearray(content)
            changed[offset] ^= 1 << chance.randrange(8)
            changes.append((name, bytes(changed)))

    def go_on(number: int) -> None:
        (name, content), at = changes[number], folder / str(number) / "f.h5"
        shutil.copytree(begun, at.with_name("f.h5.parts"))
        (at.with_name("f.h5.parts") / name).write_bytes(content)
        signal.alarm(20)
        build = builder(at, list(range(14)), TWO)
        assert build.pending <= (6 if name.startswith("part") else 2), (number, name)
        compute(build)
        build.finish({}).close()
        with FeatureCache.open(at) as cache:
            for layer in "ab":
                assert cache.features(layer)[:, 0].tolist() == list(range(14)), (number, name)
        assert names(at.parent) == ["f.h5"]

    by_two(go_on, list(range(len(changes))))


def test_damaged_parts_and_work_lists_cost_at_most_their_rows(tmp_path: Path) -> None:
    apart(_flip_parts, tmp_path)


@pytest.mark.parametrize(
    "content",
    [b"", b"null", b"[]", b"\xff\xfe", b"[" * 50_000, b'{"spec": {}}', "batch size", "layers"],
)
def test_a_damaged_build_file_is_an_error_with_two_ways_out(
    tmp_path: Path, content: bytes | str
) -> None:
    begin(tmp_path / "f.h5", list(range(9)))
    state = tmp_path / "f.h5.parts" / "build.json"
    if isinstance(content, str):
        document = json.loads(state.read_text())
        document["batch_size"] = 0 if content == "batch size" else 4
        document["spec"]["layers"] = ["a"] if content == "layers" else {"a": "flatten"}
        content = json.dumps(document).encode()
    state.write_bytes(content)
    with pytest.raises(CacheDamagedError, match=r"Remove .*f\.h5\.parts .* --overwrite"):
        builder(tmp_path / "f.h5", list(range(9)))
    assert state.read_bytes() == content
    with make(tmp_path / "f.h5", list(range(9)), overwrite=True) as cache:
        assert cache.features()[:, 0].tolist() == list(range(9))


# ---- hostile files -----------------------------------------------------------------------


def _put(file: h5py.File, name: str, data: Any, **options: Any) -> None:
    if name in file:
        del file[name]
    file.create_dataset(name, data=data, **options)


def _make_layer(file: h5py.File, shape: tuple[int, ...], chunks: tuple[int, ...]) -> None:
    del file["features/a"]
    file["features"].create_dataset(
        "a", shape, "f4", chunks=chunks, maxshape=(None, *shape[1:]), fletcher32=True
    )


def _change_spec(file: h5py.File, **changes: Any) -> None:
    values = json.loads(read_attribute(file, "spec")) | changes
    kept = {name: value for name, value in values.items() if value is not None}
    file.attrs["spec"] = as_attribute(json.dumps(kept))


def _bombs(file: h5py.File) -> None:
    """2^40 paths through forty groups."""
    group = file.create_group("d")
    for _ in range(40):
        inner = group.create_group("a")
        group["b"] = inner
        group = inner


def _outside(file: h5py.File) -> None:
    del file["status"]
    file.create_dataset("status", (8,), "u1", external=[("/etc/passwd", 0, 8)])


def _virtual(file: h5py.File) -> None:
    layout = h5py.VirtualLayout((8,), "u1")
    layout[:] = h5py.VirtualSource("elsewhere.h5", "status", (8,))
    del file["status"]
    file.create_virtual_dataset("status", layout)


def _without(name: str) -> Callable[[h5py.File], None]:
    return lambda file: file.__delitem__(name)


def _as(name: str, data: Any, **options: Any) -> Callable[[h5py.File], None]:
    return lambda file: _put(file, name, data, **options)


def _attribute(name: str, value: Any) -> Callable[[h5py.File], None]:
    return lambda file: file.attrs.__setitem__(name, value)


def _repeat(file: h5py.File) -> None:
    """A million texts of a megabyte each, all of them the same place of the file."""
    del file["reasons"]
    data = file.create_dataset("reasons", (10**6,), h5py.string_dtype())
    data[0] = "x" * 10**6
    file.flush()
    offset, name = data.id.get_offset(), file.filename
    with open(name, "rb+") as raw:
        raw.seek(offset)
        reference = raw.read(16)
        raw.seek(offset)
        raw.write(reference * 10**6)


def _group(file: h5py.File) -> None:
    del file["features/a"]
    file["features"].create_group("a")


def _link(name: str, target: Any) -> Callable[[h5py.File], None]:
    return lambda file: file.__setitem__(name, target)


def _circle(file: h5py.File) -> None:
    file["features/again"] = file["/"]


def _empty(name: str, shape: Any, dtype: Any) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        if name in file:
            del file[name]
        file.create_dataset(name, shape, dtype, chunks=None if len(shape) != 1 else (8,))

    return change


HOSTILE: dict[str, Callable[[h5py.File], None]] = {
    "external link": _link("x", h5py.ExternalLink("/etc/passwd", "/")),
    "soft link": _link("x", h5py.SoftLink("/status")),
    "dangling soft link": _link("x", h5py.SoftLink("/nowhere")),
    "external storage": _outside,
    "virtual dataset": _virtual,
    "committed type": _link("x", np.dtype("f4")),
    "circle": _circle,
    "bomb of groups": _bombs,
    "4 TB claimed": _empty("x", (10**12,), "f4"),
    "2^66 bytes claimed": _empty("labels", (2**40,), "S67108864"),
    "32 TB of features": lambda file: _make_layer(file, (8, 10**12), (1, 10**6)),
    "chunk of 3 GB": lambda file: _make_layer(file, (8, 3), (2**28, 3)),
    "no chunk there": lambda file: _make_layer(file, (8, 3), (8, 3)),
    "compressed features": _as("features/a", np.zeros((8, 3), "f4"), compression="gzip"),
    "plain features": _as("features/a", np.zeros((8, 3), "f4")),
    "features of another type": _as("features/a", np.zeros((8, 3), "f8"), fletcher32=True),
    "big-endian features": _as("features/a", np.zeros((8, 3), ">f4"), fletcher32=True),
    "features are a group": _group,
    "no features": _without("features"),
    "compound": _as("status", np.zeros(8, [("a", "u1"), ("b", "u1")])),
    "references": _empty("labels", (8,), h5py.ref_dtype),
    "lists": _empty("labels", (8,), h5py.vlen_dtype(np.int64)),
    "texts of any length": _as("reasons", np.array([b""] * 8, object), dtype=h5py.string_dtype()),
    "one text many times": _repeat,
    "an attribute of any length": _attribute("conditions", "{}"),
    "opaque": _as("status", np.zeros(8, "V3")),
    "arrays": _empty("labels", (8,), np.dtype(("i8", (3,)))),
    "null": _as("status", h5py.Empty("u1")),
    "scalar": _as("status", np.uint8(0)),
    "two columns in one": _as("status", np.zeros((8, 2), "u1")),
    "too few labels": _as("labels", np.zeros(7, "i8")),
    "labels are floats": _as("labels", np.zeros(8)),
    "label below -1": _as("labels", np.full(8, -2)),
    "label without a class": _as("labels", np.full(8, 2)),
    "no classes": _without("classes"),
    "one class twice": _as("classes", np.array([b"x", b"x"])),
    "classes are numbers": _as("classes", np.arange(2)),
    "ids are numbers": _as("ids", np.arange(8)),
    "one id twice": _as("ids", np.array([b"x"] * 8)),
    "unknown status": _as("status", np.full(8, 5, "u1")),
    "short digests": _as("digests", np.zeros((8, 8), "u1")),
    "row checksums of another shape": _as("row_checksums/a", np.zeros((8, 2), "u8")),
    "row checksums are floats": _as("row_checksums/a", np.zeros(8)),
    "NaN in the spec": lambda file: _change_spec(file, preprocessing={"mean": float("nan")}),
    "key missing": lambda file: _change_spec(file, dtype=None),
    "key unknown": lambda file: _change_spec(file, more=1),
    "layers are a list": lambda file: _change_spec(file, layers=["a"]),
    "digests are numbers": lambda file: _change_spec(file, weights_digests={"a": 1}),
    "other dtype": lambda file: _change_spec(file, dtype="float16"),
    "nested JSON": _attribute("spec", np.bytes_("[" * 50_000)),
    "spec is a list": _attribute("spec", np.bytes_("[]")),
    "spec is an array": _attribute("spec", np.zeros((4, 4))),
    "spec is nothing": _attribute("spec", h5py.Empty("f4")),
    "spec is many texts": _attribute("spec", ["x"] * 1000),
    "infinite version": _attribute("format_version", np.inf),
    "no algorithm": lambda file: file.attrs.__delitem__("digest_algorithm"),
    "conditions are a list": _attribute("conditions", np.bytes_("[1]")),
}
PROOFS: dict[str, Any] = {"missing": None, "no JSON": b"{", "a list": b"[1]", "nested": b"[" * 9**5}


def _prove(file: h5py.File) -> None:
    """Give a changed file the checksums that belong to it."""
    proofs = {}
    for name in ("", f"{CHUNK_SUMS}/", f"{ROW_SUMS}/"):
        for key, item in file[f"/{name}"].items() if f"/{name}" in file else ():
            if isinstance(item, h5py.Dataset) and item.shape and item.size < 1000:
                values = item[:]
                if h5py.check_string_dtype(item.dtype):
                    values = text_column(value.decode() for value in values)
                if values.dtype != object or h5py.check_string_dtype(item.dtype):
                    proofs[f"{name}{key}"] = digest_column(values)
    for name in file.attrs:
        if name != "checksums" and file.attrs.get_id(name).shape == ():
            proofs[f"@{name}"] = digest_column(text_column([read_attribute(file, name)]))
    file.attrs["checksums"] = as_attribute(json.dumps(proofs))


def _open_hostile(folder: Path) -> dict[str, str]:
    table = make_table([f"{n}.png" for n in range(8)], ["a", "b"] * 4)
    make(folder / "f.h5", list(range(8)), table=table).close()
    outcomes = {}
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + (256 << 20), resource.RLIM_INFINITY))
    for name, change in [*HOSTILE.items(), *PROOFS.items()]:
        path = Path(shutil.copy(folder / "f.h5", folder / "hostile.h5"))
        with h5py.File(path, "r+", libver="latest") as file:
            if callable(change):
                change(file)
                _prove(file)
            elif change is None:
                del file.attrs["checksums"]
            else:
                file.attrs["checksums"] = np.bytes_(change)
        signal.alarm(10)
        try:
            with FeatureCache.open(path) as cache:
                cache.features()
            outcomes[name] = "opened"
        except CacheDamagedError as error:
            outcomes[name] = "refused" if "no chunk" in name or "opened" not in str(error) else ""
        except BaseException as error:
            outcomes[name] = repr(error)
    return outcomes


def test_hostile_files_are_refused_in_bounded_memory(tmp_path: Path) -> None:
    outcomes = apart(_open_hostile, tmp_path)
    assert len(outcomes) == len(HOSTILE) + len(PROOFS)
    assert {name: said for name, said in outcomes.items() if said != "refused"} == {}


# ---- full disks --------------------------------------------------------------------------


def _full(folder: Path, place: str, limited: bool) -> None:
    """Patch this process so that the disk becomes full as it comes to some place."""
    cache_build.PART_ROWS = 8

    def fill() -> None:
        if limited:
            resource.setrlimit(resource.RLIMIT_FSIZE, (100, resource.RLIM_INFINITY))
            return
        with (folder / "filler").open("wb", buffering=0) as file:
            for size in (1 << 16, 1):
                try:
                    while file.write(bytes(size)):
                        pass
                except OSError:
                    pass

    put, write, assemble = cache_build.put, Part.write, cache_assemble.Assembly.write
    parts = itertools.count()

    def put_full(path: Path, content: bytes) -> None:
        if path.name == place:
            fill()
        put(path, content)

    def write_full(*arguments: Any) -> Part:
        if place == "part" and next(parts) == 2:
            fill()
        return write(*arguments)

    def assemble_full(*arguments: Any) -> None:
        if place == "finish":
            fill()
        assemble(*arguments)

    cache_build.put = put_full
    cache_build.Part.write = write_full  # type: ignore[method-assign, assignment]
    cache_build.Assembly.write = assemble_full  # type: ignore[method-assign, assignment]


def _fill_disk(folder: Path, limited: bool) -> None:
    for place, saved in (("build.json", 0), ("work.bin", 0), ("part", 16), ("finish", 24)):
        out = folder / place / "f.h5"
        out.parent.mkdir()
        assert computed_by(SHAPES / "square", out) == 12
        old = contents(out)
        code, said = command_line(
            *pixels(SHAPES, out), before=lambda place=place: _full(folder, place, limited)
        )
        assert (code, "Traceback" in said) == (1, False), said
        assert ("File too large" if limited else "No space left") in said, said
        assert str(out.parent) in said, said
        flat = " ".join(said.split())
        told = f"{saved} computed images are saved in {out}.parts; the same command computes only"
        assert (told in flat) == bool(saved), said
        assert contents(out) == old
        (folder / "filler").unlink(missing_ok=True)
        assert not [name for name in names(out.parent) if name not in ("f.h5", "f.h5.parts")]
        assert computed_by(SHAPES, out) == 24 - saved
        with FeatureCache.open(out) as cache:
            assert cache.status_counts() == {"ok": 36}
        assert names(out.parent) == ["f.h5"]
        shutil.rmtree(out.parent)


def test_a_file_that_may_not_grow_is_like_a_full_disk(tmp_path: Path) -> None:
    apart(_fill_disk, tmp_path, True)


def test_a_full_disk_is_an_error_that_says_what_is_saved_and_the_old_file_stays(
    tmp_path: Path,
) -> None:
    mount = ["unshare", "--map-root-user", "--mount", "sh", "-c"]
    script = 'mount -t tmpfs -o size=4m tmpfs "$0" && exec "$@"'
    code = (
        "import pathlib, sys; sys.path[:0] = sys.argv[2:]; "
        "import featpipe.cli.extract, featpipe.cli._text, test_survival; "
        "test_survival._fill_disk(pathlib.Path(sys.argv[1]), False)"
    )
    try:
        tried = subprocess.run([*mount, script, str(tmp_path), "true"], capture_output=True)
    except OSError as error:
        pytest.skip(f"no small disk can be mounted here: {error}")
    if tried.returncode:
        pytest.skip(f"no small disk can be mounted here: {tried.stderr.decode().strip()}")
    arguments = [str(tmp_path), sys.executable, "-c", code, str(tmp_path), *sys.path]
    done = subprocess.run([*mount, script, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_file_on_a_full_disk_reads_back_as_it_was_written(tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with Deferred(tmp_path / "x", "w+") as file:
        file.write(b"0123456789")
        resource.setrlimit(resource.RLIMIT_FSIZE, (13, limits[1]))
        try:
            file.write(b"abcdef")
            file.seek(20)
            file.write(b"XYZ")
            file.seek(22)
            file.write(b"zz")
            file.seek(8)
            assert file.read(20) == b"89abcdef\0\0\0\0XYzz\0\0\0\0"
            file.seek(5)
            assert file.read(5) == b"56789"
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        with pytest.raises(OSError, match="too large"):
            file.check()


def _crowd(folder: Path, limits: int) -> int:
    """Let finished files stop growing at many sizes; HDF5 must never crash on it."""
    layers = {f"layer{n}": "flatten" for n in range(8)}
    of, numbers = spec(layers=layers, weights_digests=dict.fromkeys(layers, "d")), list(range(300))
    make(folder / "whole" / "f.h5", numbers, of=of).close()
    size = (folder / "whole" / "f.h5").stat().st_size
    path = folder / "begun" / "f.h5"
    build = builder(path, numbers, of)
    compute(build)
    build.flush()
    build.close()

    def finish(limit: int) -> None:
        at = shutil.copytree(path.parent, folder / str(limit)) / "f.h5"
        build = builder(at, numbers, of)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        with pytest.raises(OSError, match="too large"):
            build.finish({})
        build.close()
        assert names(at.parent) == ["f.h5.parts"]

    def check(limit: int) -> None:
        assert forked(lambda: finish(limit)) == 0, f"limit {limit}"

    by_two(check, [size * number // limits for number in range(limits)])
    build = builder(path, numbers, of)
    assert build.pending == 0
    build.finish({}).close()
    assert contents(path) == contents(folder / "whole" / "f.h5")
    return size


def test_a_finished_file_may_meet_its_limit_anywhere(tmp_path: Path) -> None:
    assert apart(_crowd, tmp_path, 24) > 50_000


# ---- where nothing may be written --------------------------------------------------------


def _try_places(folder: Path) -> dict[str, tuple[int, str]]:
    """Exit code and message for outputs that cannot be."""
    (folder / "file").write_text("x")
    (folder / "taken.h5.parts").write_text("x")
    (folder / "dangling.h5.parts").symlink_to(folder / "nowhere")
    (folder / "closed").mkdir()
    (folder / "left.h5.parts").mkdir()
    (folder / "folder.h5").mkdir()
    for name in ("closed", "left.h5.parts"):
        (folder / name).chmod(0o555)
    places = ["closed/f.h5", "left.h5", "file/f.h5", "taken.h5", "dangling.h5", "folder.h5"]
    return {
        **{place: _refused(folder / place, as_nobody=True) for place in places},
        "/proc/f.h5": _refused(Path("/proc/f.h5")),
    }


def test_where_nothing_can_be_written_is_said_before_any_image_is_read() -> None:
    with tempfile.TemporaryDirectory() as name:  # pytest's own lets only its owner in
        folder = Path(name)
        folder.chmod(0o777)
        for place, (code, said) in apart(_try_places, folder).items():
            flat = " ".join(said.split())
            assert (code, "Traceback" in said) == (1, False), said
            assert str(folder / place) in flat, said
            assert "--out" in flat, said
        assert names(folder / "closed") == []


def test_a_folder_that_is_not_there_is_made(tmp_path: Path) -> None:
    make(tmp_path / "a" / "b" / "f.h5", [1, 2]).close()
    assert names(tmp_path / "a" / "b") == ["f.h5"]


# ---- Ctrl-C ------------------------------------------------------------------------------


def _interrupt(owner: Any, name: str, number: int) -> None:
    """Patch this process to interrupt itself at some call of a function."""
    cache_build.PART_ROWS, cache_assemble.BLOCK_BYTES = 8, 1 << 17
    calls, call = itertools.count(), getattr(owner, name)

    def point(*arguments: Any, **options: Any) -> Any:
        if next(calls) == number:
            os.kill(os.getpid(), signal.SIGINT)
        return call(*arguments, **options)

    setattr(owner, name, point)


def _interrupt_everywhere(folder: Path) -> None:
    computed_by(SHAPES, folder / "reference.h5")
    good = contents(folder / "reference.h5")
    points: list[tuple[Any, str, int]] = [
        (ImageSource, "digest", 20),
        (ImageLoader, "_read", 20),
        (cache_assemble.Assembly, "write", 0),
        *((Deferred, "write", number) for number in (0, 1, 5, 9, 12, 15, 20)),
        (cache_rows.LayerReader, "inspect", 5),
    ]
    for number, point in enumerate(points):
        out = folder / str(number) / "f.h5"
        code, said = command_line(
            *pixels(SHAPES, out),
            before=lambda point=point: _interrupt(*point),  # type: ignore[misc]
        )
        assert (code, "Traceback" in said) == (130, False), (point, code, said)
        parts = [Part.read(file) for file in out.with_name("f.h5.parts").glob("part-*")]
        saved = sum(int(part.digests.any(axis=1).sum()) for part in parts)
        assert saved > 0 or point[0] in (ImageSource, ImageLoader), point
        assert (f"{saved} computed images are saved" in " ".join(said.split())) == (saved > 0)
        assert not out.exists()
        assert computed_by(SHAPES, out) == 36 - saved
        assert contents(out) == good
        assert names(out.parent) == ["f.h5"]


def test_after_ctrl_c_at_any_time_the_next_run_goes_on(tmp_path: Path) -> None:
    apart(_interrupt_everywhere, tmp_path)


# ---- loaders -----------------------------------------------------------------------------


@pytest.fixture
def loaded(shapes_cache: FeatureCache) -> Iterator[FeatureCache]:
    with FeatureCache.open(shapes_cache.path) as cache:
        yield cache


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_loaders_with_workers_give_what_those_without_give(
    loaded: FeatureCache, method: str
) -> None:
    data = loaded.dataset(rows=np.arange(35, -1, -1))
    assert data[0][1] == loaded.table.labels[35]  # the file is open in this process already
    plain = list(DataLoader(data, batch_size=5))
    workers = DataLoader(data, batch_size=5, num_workers=2, multiprocessing_context=method)
    for (features, labels), (theirs, their_labels) in zip(plain, workers, strict=True):
        assert features.numpy().tobytes() == theirs.numpy().tobytes()
        assert labels.tolist() == their_labels.tolist()
    assert np.concatenate([f for f, _ in plain]).tobytes() == loaded.features()[::-1].tobytes()


def test_a_data_set_is_pickled_without_its_file_and_reads_a_batch_at_once(
    loaded: FeatureCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = loaded.dataset()
    data[0]
    again = pickle.loads(pickle.dumps(data))
    assert again[3][0].tolist() == data[3][0].tolist()
    reads = []
    read = FeatureCache.features

    def count(self: FeatureCache, layer: str, rows: np.ndarray) -> np.ndarray:
        reads.append(len(rows))
        return read(self, layer, rows)

    monkeypatch.setattr(FeatureCache, "features", count)
    list(DataLoader(again, batch_size=16))
    assert reads == [16, 16, 4]


def test_a_data_set_never_mixes_an_old_table_with_a_new_file(tmp_path: Path) -> None:
    path = tmp_path / "f.h5"
    with make(path, [1, 2, 3]) as cache:
        used, unused = cache.dataset(), cache.dataset()
        used[0]
        make(path, [7, 3, 2]).close()
        late = cache.dataset()
        assert used[0][0].tolist() == [1, 1, 1]
        for data in (unused, late, pickle.loads(pickle.dumps(used))):
            with pytest.raises(CacheDamagedError, match="make it anew"):
                data[0]
        path.unlink()
        with pytest.raises(CacheError, match="There is no feature cache"):
            unused[0]


def test_a_hostile_spec_is_no_type_error() -> None:
    for name, value in {"layers": [], "seed": "x", "weights_digests": {"a": None}}.items():
        with pytest.raises(TypeError, match=name):
            Spec.from_dict({**SPEC.to_dict(), name: value})


def test_names_with_a_nul_are_refused_before_anything_is_computed(tmp_path: Path) -> None:
    with pytest.raises(CacheError, match="NUL"):
        builder(tmp_path / "f.h5", [1], table=make_table(["a\0"]))
    assert names(tmp_path) == []


def test_the_command_line_refuses_a_folder_as_output(tmp_path: Path) -> None:
    result = CliRunner().invoke(cli, ["extract", str(SHAPES), "-b", "pixels", "-o", str(tmp_path)])
    assert result.exit_code == 1
    assert "--out names a file" in result.output
