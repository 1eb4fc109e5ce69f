"""One process: threads read and decode ahead of the forward passes.

Threads suffice, since Pillow, TorchCodec and the runtimes let go of the interpreter while they
work.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace

import numpy as np

from featpipe.engines import Batch, Batches, Forward, LoadedImage, Loader, Read
from featpipe.errors import LayerError
from featpipe.throughput import Meter

AHEAD = 2  # batches being decoded while every lane is busy; bounds the memory
READERS = 4  # threads a worker: a disk that is slow to answer is asked for several files at once


def run(
    batches: Iterable[list[int]],
    load: Loader,
    forward: Forward,
    workers: int,
    lanes: int = 1,
    meter: Meter | None = None,
) -> Batches:
    """Yield each batch's features, in order.

    `workers` threads decode images, others read them, `lanes` threads run forward passes. An
    image that could not be loaded keeps its place in its batch as zeros, so that every other
    row is computed in the same company whatever happened to it; its features are never handed
    on as its own, since its status says so.
    """
    measured = meter or Meter()
    measured.begin(workers, lanes)

    def decode(reading: list[Future[list[Read]]]) -> list[LoadedImage]:
        with measured.working("decode"):  # whose work is late if the disk is
            return load.decode([one for future in reading for one in future.result()])

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
                read = [reading.submit(load.read, some) for some in _shares(items, workers)]
                shares = [read] if load.whole else [[future] for future in read]
                tasks = [decoding.submit(decode, share) for share in shares]
                waiting.append(computing.submit(compute, items, tasks))
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
