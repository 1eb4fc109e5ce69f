"""What a cache survives, and what proving it costs.

    python benchmarks/reliability.py SHARED WORK [--only kills flips images adding scanning reading]

SHARED holds `data/` and `weights/`; WORK is a folder to work in. Each section does what its
docstring says, for real: processes are killed, bytes flipped, images broken. Results go to
benchmarks/results/reliability.json, section by section; times are medians of interleaved runs.
The tests run every section in a short form (`tests/test_reliability.py`).
"""

import argparse
import contextlib
import json
import multiprocessing
import os
import shutil
import signal
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from mutate import mutate
from PIL import Image

from featpipe import cache_build, decode, decode_fast, extract_features, open_images, verify
from featpipe.cache import FeatureCache, parts_folder
from featpipe.cache_assemble import table_columns, write_cache
from featpipe.cache_parts import Part
from featpipe.device import available_cores, machine_facts
from featpipe.errors import CacheDamagedError
from featpipe.extractor import prepare
from featpipe.loading import SCAN_TASK, load_image, scan
from featpipe.settings import ExtractSettings
from featpipe.spec import Spec
from featpipe.table import Status, make_table

# Forked from a process that has imported everything and started no thread.
PROCESSES = multiprocessing.get_context("forkserver" if os.name == "posix" else "spawn")
PROCESSES.set_forkserver_preload(["featpipe.extract", "torch", "torchvision", "reliability"])
HANG_SECONDS = 5.0


# ---- kills -------------------------------------------------------------------------------


def _extract(
    images: str, backbone: str, out: str, settings: ExtractSettings, to: Connection
) -> None:
    """In a process of its own: extract, and say when the finished file is begun."""
    cache_build.PART_ROWS = 16
    finish = cache_build.CacheBuilder.finish
    first: list[int] = []

    def told(self: Any, conditions: dict[str, Any]) -> FeatureCache:
        to.send(("finish", 0))
        return finish(self, conditions)

    def count(done: int, total: int) -> None:
        if not first:
            first.append(total)
            to.send(("computing", 0))

    cache_build.CacheBuilder.finish = told  # type: ignore[method-assign]
    to.send(("begin", 0))
    extract_features(images, backbone, out, settings, on_progress=count).close()
    to.send(("end", first[0] if first else 0))


@contextlib.contextmanager
def _running(*arguments: Any) -> Iterator[tuple[Any, Connection]]:
    mine, theirs = PROCESSES.Pipe()
    process = PROCESSES.Process(target=_extract, args=(*arguments, theirs))
    process.start()
    theirs.close()
    try:
        yield process, mine
    finally:
        process.join()
        mine.close()


def _whole(*arguments: Any) -> tuple[dict[str, float], int]:
    """Run to the end; return when each thing happened, and how many images were computed."""
    times: dict[str, float] = {}
    with _running(*arguments) as (process, events):
        while "end" not in times:
            event, computed = events.recv()
            times[event] = time.perf_counter()
    assert process.exitcode == 0
    return times, computed


def _content(path: Path) -> tuple[bytes, ...]:
    with FeatureCache.open(path) as cache:
        features = [cache.features(layer).tobytes() for layer in cache.layers]
        table = json.dumps(cache.columns()).encode()
        return (*features, table, cache.digests.tobytes(), cache.status.tobytes())


def kills(
    images: Path, backbone: str, settings: ExtractSettings, work: Path, count: int, seed: int = 0
) -> dict[str, Any]:
    """SIGKILL at random instants, then the same command: does it end with the same bytes?

    A fifth each of a fresh extraction from its start, and from its first batch; of putting its
    finished file together; of the repair of a finished file with damaged rows; and of adding a
    tenth more images to one.
    """
    random = np.random.default_rng(seed)
    shutil.rmtree(work, ignore_errors=True)
    names = open_images(images).table.ids
    fresh, some, damaged = (work / f"{name}.h5" for name in ("fresh", "some", "damaged"))
    for name in np.delete(names, np.arange(0, len(names), 10)):
        (work / "some" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(images / name, work / "some" / name)
    _whole(str(work / "some"), backbone, str(some), settings)
    _whole(str(images), backbone, str(fresh), settings)
    shutil.copy(fresh, damaged)
    for row in random.permutation(len(names))[: len(names) // 8]:
        _flip_row(damaged, int(row))
    starts = {"start": None, "compute": None, "finalise": None, "repair": damaged, "add": some}
    since = {"compute": "computing", "finalise": "finish", "repair": "computing"}
    expected, windows = {}, {}
    for kind, start in starts.items():
        out = _trial(work, start)
        times, _ = _whole(str(images), backbone, str(out), settings)
        expected[kind] = _content(out)
        windows[kind] = times["end"] - times[since.get(kind, "begin")]
    outcomes: Counter[str] = Counter()
    states: Counter[str] = Counter()
    lost = 0
    while outcomes.total() < count:
        kind = list(starts)[outcomes.total() % len(starts)]
        start = starts[kind]
        out = _trial(work, start)
        before = out.read_bytes() if start else b""
        arguments = (str(images), backbone, str(out), settings)
        with _running(*arguments) as (process, events):
            while events.recv()[0] != since.get(kind, "begin"):
                pass
            time.sleep(float(random.uniform(0, windows[kind])))
            process.kill()
        if process.exitcode != -signal.SIGKILL:
            continue  # it had ended before
        replaced = out.exists() and out.read_bytes() != before
        parts = [Part.read(path) for path in parts_folder(out).glob("part-*.h5")]
        held = sum(int((part.status == Status.OK).sum()) for part in parts)
        states["replaced" if replaced else "some parts" if held else "nothing durable"] += 1
        left = max(0, _missing(out, expected[kind]) - held)
        _, computed = _whole(*arguments)
        lost += max(0, computed - left)
        same = _content(out) == expected[kind] and not parts_folder(out).exists()
        outcomes["identical" if same else "different"] += 1
    return {
        "kills": outcomes.total(),
        "resumed_bit_identical": outcomes["identical"],
        "rows_of_parts_lost": lost,
        "when_killed": dict(states),
        "seconds_in_which_it_was_killed": {name: round(s, 3) for name, s in windows.items()},
        "images": len(names),
    }


def _trial(work: Path, start: Path | None) -> Path:
    """An output in a folder of its own, there already or not."""
    out = work / "trial" / "f.h5"
    shutil.rmtree(out.parent, ignore_errors=True)
    out.parent.mkdir()
    if start:
        shutil.copy(start, out)
    return out


def _missing(out: Path, expected: tuple[bytes, ...]) -> int:
    """Distinct images that the file that lies there has no sound features of."""
    digests = np.frombuffer(expected[-2], np.uint8).reshape(-1, 16)
    wanted = {digest.tobytes() for digest in digests}
    if not out.exists():
        return len(wanted)
    with FeatureCache.open(out) as cache:
        good = np.ones(len(cache), bool)
        for layer in cache.layers:
            good[cache.inspect(layer).rows] = False
        return len(wanted - {digest.tobytes() for digest in cache.digests[good]})


# ---- flips -------------------------------------------------------------------------------


def _chunks(path: Path) -> list[tuple[int, int]]:
    """Offset and size of every stored chunk of features."""
    found: list[tuple[int, int]] = []
    with h5py.File(path) as file:
        for data in file["features"].values():
            for number in range(data.id.get_num_chunks()):
                info = data.id.get_chunk_info(number)
                found.append((info.byte_offset, info.size))
    return found


def _flip_row(path: Path, row: int) -> None:
    with h5py.File(path) as file:
        data = next(iter(file["features"].values()))
        size = int(np.prod(data.shape[1:])) * data.dtype.itemsize
        offset = data.id.get_chunk_info(row // data.chunks[0]).byte_offset
        offset += row % data.chunks[0] * size
    _flip(path, offset, 1)


def _flip(path: Path, offset: int, mask: int) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ mask]))


def flips(finished: Path, work: Path, count: int, seed: int = 0) -> dict[str, Any]:
    """Change single bytes of the features of a finished file: is each found, is any read?"""
    random = np.random.default_rng(seed)
    work.mkdir(parents=True, exist_ok=True)
    path = work / "flipped.h5"
    shutil.copy(finished, path)
    with FeatureCache.open(path) as cache:
        truth = {layer: cache.features(layer) for layer in cache.layers}
    chunks = _chunks(path)
    sizes = np.array([size for _, size in chunks], float)
    found = returned = 0
    for _ in range(count):
        offset, size = chunks[random.choice(len(chunks), p=sizes / sizes.sum())]
        place, mask = offset + int(random.integers(size)), int(random.integers(1, 256))
        _flip(path, place, mask)
        found += _is_found(path)
        with FeatureCache.open(path) as cache:
            for layer, right in truth.items():
                for rows in (None, random.permutation(len(cache))[:50]):
                    try:
                        read = cache.features(layer, rows)
                    except CacheDamagedError:
                        continue
                    wanted = right if rows is None else right[rows]
                    returned += read.tobytes() != wanted.tobytes()
        _flip(path, place, mask)
    return {
        "flips": count,
        "found": found,
        "returned_as_features": returned,
        "false_alarms": int(_is_found(path)),
    }


def _is_found(path: Path) -> bool:
    return not verify(path, sample=0).ok


# ---- broken images -----------------------------------------------------------------------


def _load_all(folder: str, to: Connection) -> None:
    """In a process of its own: load every image both ways, and say how long that took."""
    source = open_images(folder)
    preprocessing = prepare("pixels", ExtractSettings()).backbone.preprocessing
    for row in range(len(source)):
        to.send(("begin", row, 0.0, ""))
        begun = time.perf_counter()
        load_image(source, row, preprocessing, decode.EXACT)
        image = load_image(source, row, preprocessing, decode_fast.FAST)
        to.send(("end", row, time.perf_counter() - begun, image.status.name))


def _originals(data: Path, count: int, random: np.random.Generator) -> list[tuple[str, bytes]]:
    """Real pictures in each of six formats."""
    paths = sorted(p for p in data.rglob("*") if p.suffix.lower() in (".jpg", ".png"))
    originals = []
    for path in random.permutation(np.array(paths, object))[:count]:
        with Image.open(path) as picture:
            small = picture.convert("RGB")
            small.thumbnail((256, 256))
        for form, suffix in (("JPEG", "jpg"), ("PNG", "png"), ("WEBP", "webp"), ("TIFF", "tif"),
                             ("GIF", "gif"), ("BMP", "bmp")):  # fmt: skip
            if form == "JPEG" and path.suffix.lower() == ".jpg":
                originals.append((suffix, path.read_bytes()))
                continue
            buffer = BytesIO()
            options = {"compression": "tiff_lzw"} if form == "TIFF" and len(originals) % 2 else {}
            small.save(buffer, form, **options)
            originals.append((suffix, buffer.getvalue()))
    return originals


def images(data: Path, work: Path, count: int, seed: int = 0) -> dict[str, Any]:
    """Mutate real pictures of six formats, load and extract them: crashes, hangs, wrong rows?"""
    random = np.random.default_rng(seed)
    folder = work / "mutated"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    originals = _originals(data, max(1, count // 24), random)
    for number in range(count):
        suffix, content = originals[number % len(originals)]
        (folder / f"{number:05d}.{suffix}").write_bytes(mutate(content, random))
    mine, theirs = PROCESSES.Pipe()
    process = PROCESSES.Process(target=_load_all, args=(str(folder), theirs))
    process.start()
    theirs.close()
    statuses: Counter[str] = Counter()
    slowest, hangs, crashes = 0.0, 0, 0
    for _ in range(2 * count):
        if not mine.poll(60 if not statuses else HANG_SECONDS):
            hangs += 1
            process.kill()
            break
        try:
            event, _, seconds, status = mine.recv()
        except EOFError:
            crashes += 1
            break
        if event == "end":
            statuses[status] += 1
            slowest = max(slowest, seconds)
    process.join()
    out = work / "mutated.h5"
    settings = ExtractSettings(overwrite=True)
    wrong = unexplained = 0
    extractor = prepare("pixels", settings)
    with extract_features(folder, "pixels", out, settings) as cache, extractor.forward as forward:
        features, source = cache.features(), open_images(folder)
        for row in range(len(cache)):
            plain = extractor.backbone.preprocessing
            alone = load_image(source, row, plain, extractor.decoder)
            if alone.pixels is None:
                unexplained += not cache.reasons[row] or not np.isnan(features[row]).all()
            else:
                (expected,) = forward(alone.pixels[None]).values()
                wrong += not np.array_equal(features[row], expected[0])
    return {
        "images": count,
        "crashes": crashes,
        f"hangs_over_{HANG_SECONDS:g}_s": hangs,
        "mis_stored_rows": wrong,
        "rows_without_a_reason": unexplained,
        "slowest_seconds": round(slowest, 3),
        "outcomes": dict(statuses),
    }


# ---- what it costs -----------------------------------------------------------------------


def adding(
    folder: Path, backbone: str, settings: ExtractSettings, work: Path, count: int
) -> dict[str, Any]:
    """Add 1 % new images to a finished cache: how many go through the network?"""
    source = open_images(folder)
    chosen, new = work / "chosen", count // 100
    shutil.rmtree(chosen, ignore_errors=True)
    totals = []
    seconds = []
    for names in (source.table.ids[:count], source.table.ids[count : count + new]):
        for name in names:
            (chosen / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(folder / name, chosen / name)
        seen = [0]
        begun = time.perf_counter()
        extract_features(
            chosen, backbone, work / "adding.h5", settings,
            on_progress=lambda done, total, seen=seen: seen.append(total),
        ).close()  # fmt: skip
        seconds.append(round(time.perf_counter() - begun, 2))
        totals.append(seen[-1])
    return {
        "images": count,
        "added": new,
        "computed_at_first": totals[0],
        "computed_when_added": totals[1],
        "seconds": seconds,
    }


def _interleaved(of: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median seconds of each, run in turns, after one round that does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in of}
    for turn in range(repeats + 1):
        for name, call in of.items():
            begun = time.perf_counter()
            call()
            if turn:
                seconds[name].append(time.perf_counter() - begun)
    return {name: statistics.median(values) for name, values in seconds.items()}


def scanning(folders: list[Path], repeats: int) -> dict[str, Any]:
    """Digest every image, against reading the same files: in a loop, and in as many threads."""
    results = {}
    workers = available_cores()
    for folder in folders:
        source = open_images(folder)
        paths = [folder / name for name in source.table.ids]

        def read(some: list[Path]) -> int:
            return sum(len(path.read_bytes()) for path in some)

        def threads(paths: list[Path] = paths) -> None:
            tasks = [paths[at : at + SCAN_TASK] for at in range(0, len(paths), SCAN_TASK)]
            with ThreadPoolExecutor(workers) as pool:
                list(pool.map(read, tasks))

        seconds = _interleaved(
            {
                "scan": lambda source=source: scan(source, workers),
                "read in a loop": lambda paths=paths: read(paths),
                "read in threads": threads,
            },
            repeats,
        )
        fastest = min(seconds["read in a loop"], seconds["read in threads"])
        results[folder.name] = {
            "images": len(paths),
            "megabytes": round(read(paths) / 1e6, 1),
            "median_seconds": seconds,
            "scan_speed_of_the_fastest_read": round(fastest / seconds["scan"], 3),
        }
    return results


def reading(work: Path, rows: int, dimensions: int, repeats: int) -> dict[str, Any]:
    """Read a whole cache, and a tenth of its rows, against the same array in plain HDF5."""
    random = np.random.default_rng(0)
    features = random.standard_normal((rows, dimensions), dtype=np.float32)
    work.mkdir(parents=True, exist_ok=True)
    cached, plain = work / "reading.h5", work / "plain.h5"
    spec = Spec("toy:toy", "none", 0, {"x": ""}, False, {"x": "none"}, {}, "", "float32", "float32")
    table = make_table([str(row) for row in range(rows)])
    nothing = np.zeros(rows, np.uint8)
    columns = table_columns(
        table, np.zeros((rows, 16), np.uint8), nothing, np.full(rows, "", object)
    )
    write_cache(
        cached, spec, {"x": (dimensions,)}, columns,
        lambda layer, start, stop: features[start:stop], {}, time.perf_counter(),
    )  # fmt: skip
    with h5py.File(plain, "w") as file:
        file["x"] = features
    tenth = random.permutation(rows)[: rows // 10]
    ascending = np.sort(tenth)
    with FeatureCache.open(cached) as cache, h5py.File(plain) as file:
        assert np.array_equal(cache.features(rows=tenth), features[tenth])
        seconds = _interleaved(
            {
                "cache": cache.features,
                "plain": lambda: file["x"][:],
                "cache, a tenth": lambda: cache.features(rows=tenth),
                "plain, a tenth in ascending order": lambda: file["x"][ascending],
                "plain, all then a tenth": lambda: file["x"][:][tenth],
                "through HDF5's own checksum": lambda: cache._layers["x"][0].data[:],
            },
            repeats,
        )
    fastest = min(seconds["plain, a tenth in ascending order"], seconds["plain, all then a tenth"])
    return {
        "rows": rows,
        "dimensions": dimensions,
        "megabytes": round(features.nbytes / 1e6),
        "median_seconds": seconds,
        "whole_against_plain": round(seconds["cache"] / seconds["plain"], 3),
        "tenth_against_the_fastest_plain": round(seconds["cache, a tenth"] / fastest, 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("shared", type=Path)
    parser.add_argument("work", type=Path)
    sections = ("kills", "flips", "images", "adding", "scanning", "reading")
    parser.add_argument("--only", nargs="+", choices=sections, default=sections)
    arguments = parser.parse_args()
    data, work = arguments.shared / "data", arguments.work
    backbone = f"squeezenet1_1@{arguments.shared / 'weights' / 'squeezenet1_1.pth'}"
    small = ExtractSettings(input_size=64)
    work.mkdir(parents=True, exist_ok=True)
    os.chdir(work)  # where the caches' images are not, so that `verify` looks at the file alone

    def kill() -> dict[str, Any]:
        return kills(data / "hymenoptera" / "train", backbone, small, work / "kills", 200)

    def flip() -> dict[str, Any]:
        finished = work / "flowers.h5"
        extract_features(data / "flowers", backbone, finished, small).close()
        return flips(finished, work / "flips", 500)

    run: dict[str, Callable[[], dict[str, Any]]] = {
        "kills": kill,
        "flips": flip,
        "images": lambda: images(data, work, 2000),
        "adding": lambda: adding(data, backbone, small, work, 5000),
        "scanning": lambda: scanning([data / "flowers", data / "hymenoptera", data / "malaria"], 9),
        "reading": lambda: reading(work, 40_000, 2048, 9),
    }
    out = Path(__file__).parent.resolve() / "results" / "reliability.json"
    results = json.loads(out.read_text()) if out.exists() else {}
    for name in arguments.only:
        results[name] = run[name]()
        results["machine"] = machine_facts()
        out.write_text(json.dumps(results, indent=1) + "\n")
        print(name, json.dumps(results[name], indent=1), flush=True)


if __name__ == "__main__":
    main()
