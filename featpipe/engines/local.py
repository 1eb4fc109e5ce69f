"""One process: threads read and decode ahead of the forward passes.

Threads suffice, since Pillow, TorchCodec and the runtimes let go of the interpreter while they
work.
"""

import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace

import numpy as np

from featpipe.engines import Batch, Batches, Forward, LoadedImage, Loader, Read
from featpipe.errors import LayerError
from featpipe.throughput import Meter

AHEAD = 2  # batches being decoded while every lane is busy; bounds the memory
READERS = 4  # threads a worker that read, where files are waited for
WAITED = 2e-3  # seconds that a file takes to read if it is not at hand


def run(
    batches: Iterable[list[int]],
    load: Loader,
    forward: Forward,
    workers: int,
    lanes: int = 1,
    meter: Meter | None = None,
) -> Batches:
    """Yield each batch's features, in order.

    `workers` threads read and decode images, `lanes` threads run forward passes. Once files are
    found to be waited for, other threads read ahead, several files at once. An image that could
    not be loaded keeps its place in its batch as zeros, so that every other row is computed in
    the same company whatever happened to it; its features are never handed on as its own, since
    its status says so.
    """
    measured = meter or Meter()
    measured.begin(workers, lanes)
    ahead = load.whole

    def read_and_decode(items: list[int]) -> list[LoadedImage]:
        nonlocal ahead
        with measured.working("decode"):
            begun = time.perf_counter()
            found = load.read(items)
            ahead = ahead or time.perf_counter() - begun > WAITED * len(items)
            return load.decode(found)

    def decode(reading: list[Future[list[Read]]]) -> list[LoadedImage]:
        with measured.working("decode"):  # whose work is late if the disk is
            return load.decode([one for future in reading for one in future.result()])

    def load_ahead(items: list[int]) -> list[Future[list[LoadedImage]]]:
        shares = list(_shares(items, workers))
        if not ahead:
            return [decoding.submit(read_and_decode, share) for share in shares]
        read = [reading.submit(load.read, share) for share in shares]
        together = [read] if load.whole else [[future] for future in read]
        return [decoding.submit(decode, some) for some in together]

    def compute(items: list[int], loading: list[Future[list[LoadedImage]]]) -> Batch:
        with measured.waiting_for("decode"):
            images = [image for future in loading for image in future.result()]
        with measured.working("forward"):
            return _forwarded(items, images, forward)

    waiting: deque[Future[Batch]] = deque()
    with (
        ThreadPoolExecutor(lanes, thread_name_prefix="featpipe-forward") as computing,
        ThreadPoolExecutor(workers, thread_name_prefix="featpipe-decode") as decoding,
        ThreadPoolExecutor(READERS * workers, thread_name_prefix="featpipe-read") as reading,
    ):
        try:
            for items in batches:
                waiting.append(computing.submit(compute, items, load_ahead(items)))
                if len(waiting) >= lanes + AHEAD:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            reading.shutdown(cancel_futures=True)
            decoding.shutdown(cancel_futures=True)
            computing.shutdown(cancel_futures=True)


def _shares(items: list[int], workers: int) -> Iterator[list[int]]:
    """A batch divided among the workers: one task for each, since tasks cost time of their own."""
    size = -(-len(items) // workers)
    for start in range(0, len(items), size):
        yield items[start : start + size]


def _forwarded(items: list[int], images: list[LoadedImage], forward: Forward) -> Batch:
    decoded = [image.pixels for image in images if image.pixels is not None]
    if not decoded:
        return Batch(items, images, {})
    zeros = np.zeros_like(decoded[0])
    features = forward(
        np.stack([zeros if image.pixels is None else image.pixels for image in images])
    )
    wrong = {name: len(rows) for name, rows in features.items() if len(rows) != len(items)}
    if wrong:
        raise LayerError(f"{len(items)} images gave {wrong} rows; the layer mixes images.")
    return Batch(items, [replace(image, pixels=None) for image in images], features)
