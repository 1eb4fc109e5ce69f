"""How fast decoding and forward passes would each be alone on this machine."""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from featpipe.extractor import Extractor
from featpipe.loading import ImageLoader
from featpipe.throughput import Ceilings

IMAGES = 16  # decoded at least, if there are as many
SECONDS = 0.4  # and for so long, each, where nothing has been measured yet
SHARE = 0.005  # of a run's seconds, each, where something has


def measure_ceilings(
    extractor: Extractor,
    load: ImageLoader,
    items: np.ndarray,
    workers: int,
    after: float,
) -> Ceilings:
    """Decode some images, then run some forward passes, with nothing beside either.

    For the end of a run: what is measured has just been at work, and costs a few percent more.

    Parameters
    ----------
    extractor : Extractor
        Entered.
    load : ImageLoader
    items : int array
        Of which some are loaded, again and again if they are few.
    workers : int
        Threads that decode.
    after : float
        Seconds that the run took.
    """
    forward, seconds = extractor.forward, min(SHARE * after, SECONDS)
    together = extractor.batch_size if load.whole else IMAGES
    some = [int(item) for item in items[:: max(1, len(items) // together)]]
    decode = rate(lambda: load(some), workers, len(some), seconds, warm=True)
    alone = forward_rate(extractor, seconds, warm=True) / extractor.spec.view_count
    return Ceilings(decode, alone, shared=forward.device == "cpu")


def forward_rate(extractor: Extractor, seconds: float = SECONDS, warm: bool = False) -> float:
    """Images a second of the forward passes of an extractor that is entered."""
    forward = extractor.forward
    pixels = np.zeros((extractor.batch_size, *extractor.network.size, 3), np.uint8)
    return rate(lambda: forward(pixels), forward.lanes, extractor.batch_size, seconds, warm)


def rate(
    work: Callable[[], object],
    threads: int,
    images: int,
    seconds: float = SECONDS,
    warm: bool = False,
) -> float:
    """Images a second of some threads that each do the work, over and over, for a while."""
    with ThreadPoolExecutor(threads) as pool:
        if not warm:
            list(pool.map(lambda _: work(), range(threads)))  # the first time is no measure

        def repeat(_: int) -> float:
            done, begun = 0, time.perf_counter()
            while not done or time.perf_counter() - begun < seconds:
                work()
                done += images
            return done / (time.perf_counter() - begun)

        return sum(pool.map(repeat, range(threads)))
