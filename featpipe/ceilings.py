"""How fast decoding and forward passes would each be alone on this machine."""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from featpipe.engines import Load
from featpipe.extractor import Extractor
from featpipe.throughput import Ceilings

IMAGES = 16  # decoded at least, if there are as many
SECONDS = 0.4  # and for so long, each


def measure_ceilings(
    extractor: Extractor, load: Load, items: Sequence[int] | np.ndarray, workers: int
) -> Ceilings:
    """Decode some images, then run some forward passes, with nothing beside either.

    Parameters
    ----------
    extractor : Extractor
        Entered.
    load : callable
        Of an item.
    items : sequence of int
        Of which some are loaded, again and again if they are few.
    workers : int
        Threads that decode.
    """
    forward = extractor.forward
    some = [int(item) for item in items[:: max(1, len(items) // IMAGES)]]
    decode = rate(lambda: [load(item) for item in some], workers, len(some))
    return Ceilings(decode, forward_rate(extractor), shared=forward.device == "cpu")


def forward_rate(extractor: Extractor) -> float:
    """Images a second of the forward passes of an extractor that is entered."""
    forward = extractor.forward
    pixels = np.zeros((extractor.batch_size, *extractor.network.size, 3), np.uint8)
    return rate(lambda: forward(pixels), forward.lanes, extractor.batch_size)


def rate(work: Callable[[], object], threads: int, images: int) -> float:
    """Images a second of some threads that each do the work, over and over, for a while."""
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(lambda _: work(), range(threads)))  # the first time is no measure

        def repeat(_: int) -> float:
            done, begun = 0, time.perf_counter()
            while not done or time.perf_counter() - begun < SECONDS:
                work()
                done += images
            return done / (time.perf_counter() - begun)

        return sum(pool.map(repeat, range(threads)))
