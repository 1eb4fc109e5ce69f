"""One process: threads read and decode ahead of the forward pass."""

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace

import numpy as np

from featpipe.engines import Batch, Forward, Load, LoadedImage

AHEAD = 3  # batches being decoded while one is in the network; bounds the memory


def run(
    batches: Iterable[list[int]], load: Load, forward: Forward, workers: int
) -> Iterator[Batch]:
    """Yield each batch's features, in order.

    An image that could not be loaded keeps its place in its batch as zeros, so that every
    other row is computed in the same company whatever happened to it; its features are never
    handed on as its own, since its status says so.
    """
    waiting: deque[tuple[list[int], list[Future[LoadedImage]]]] = deque()
    with ThreadPoolExecutor(workers, thread_name_prefix="featpipe-decode") as pool:
        try:
            for items in batches:
                waiting.append((items, [pool.submit(load, item) for item in items]))
                if len(waiting) > AHEAD:
                    yield _compute(*waiting.popleft(), forward)
            while waiting:
                yield _compute(*waiting.popleft(), forward)
        finally:
            for _, futures in waiting:
                for future in futures:
                    future.cancel()


def _compute(items: list[int], futures: list[Future[LoadedImage]], forward: Forward) -> Batch:
    images = [future.result() for future in futures]
    decoded = [image.pixels for image in images if image.pixels is not None]
    if not decoded:
        return Batch(items, images, {})
    zeros = np.zeros_like(decoded[0])
    features = forward(
        np.stack([zeros if image.pixels is None else image.pixels for image in images])
    )
    return Batch(items, [replace(image, pixels=None) for image in images], features)
