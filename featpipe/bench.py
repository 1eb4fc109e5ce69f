"""What this machine can do: each stage alone, in every way there is, and which way is best."""

import contextlib
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from featpipe.backbones import Backbone, load_backbone
from featpipe.cache_parts import Part
from featpipe.ceilings import forward_rate, rate
from featpipe.decode import encode_jpeg
from featpipe.device import available_cores, machine_facts, precisions
from featpipe.errors import ImagesError, RuntimeUnavailableError
from featpipe.extractor import REFERENCE, Execution, Extractor, decoders, features_of, prepare
from featpipe.fidelity import COSINE, IMAGES, compare_features
from featpipe.images import ImageSource, open_images
from featpipe.runtimes import fastest
from featpipe.settings import ExtractSettings, ImageSettings
from featpipe.table import make_table
from featpipe.throughput import Ceilings

SYNTHETIC = 16  # pictures, where none are given
ROWS = 256  # written


@dataclass(frozen=True)
class ForwardBench:
    """One way to run the network: images a second alone, and how true it is."""

    runtime: str
    precision: str
    images_per_second: float | None
    start_seconds: float | None
    cosine: float | None
    error: float | None
    reason: str = ""


@dataclass(frozen=True)
class Bench:
    """What was measured.

    Attributes
    ----------
    backbone, device : str
    layers : dict
    images : str
        What was decoded.
    decode : dict
        Decoder to images a second of all workers.
    forward : tuple of ForwardBench
    write : float
        Images a second, made durable in a part file.
    choice : dict
        The fastest execution that is true, and the images a second that its stages allow.
    machine : dict
    """

    backbone: str
    device: str
    layers: dict[str, tuple[int, ...]]
    images: str
    decode: dict[str, float]
    forward: tuple[ForwardBench, ...]
    write: float
    choice: dict[str, Any]
    machine: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


def bench(
    backbone: str | Backbone,
    images: str | Path | ImageSource | None = None,
    settings: ExtractSettings | None = None,
    image_settings: ImageSettings | None = None,
    folder: str | Path = ".",
    on_progress: Callable[[int, int], None] | None = None,
) -> Bench:
    """Measure decoding, forward passes and writing, each alone.

    Parameters
    ----------
    backbone : str or Backbone
    images : str, Path or ImageSource
        What to decode; by default made-up pictures of 500 x 375 pixels, as JPEG.
    settings : ExtractSettings
    image_settings : ImageSettings
    folder : str or Path
        Where to write, as the cache would.
    on_progress : callable
        Called with (measurements done, measurements to do).
    """
    settings = settings or ExtractSettings()
    source = _pictures() if images is None else open_images(images, image_settings)
    if not len(source):
        raise ImagesError(f"There are no images in {source.location}.")
    loaded = load_backbone(backbone, settings.weights, settings.seed, settings.input_size)
    first = prepare(loaded, settings)
    device, workers = first.forward.device, settings.workers or available_cores()
    rows = [int(row) for row in np.linspace(0, len(source) - 1, min(len(source), SYNTHETIC))]
    rows = [row for row in dict.fromkeys(rows) if _usable(source, row, first)]
    if not rows:
        raise ImagesError(f"No image of {source.location} that was tried can be decoded.")
    ways = [
        Execution(runtime, precision, "exact")
        for precision in precisions(device)
        for runtime in fastest(device, precision)
    ]
    modes = decoders(device)
    total, done = len(modes) + len(ways) + 1, 0

    def step() -> None:
        nonlocal done
        done += 1
        if on_progress:
            on_progress(done, total)

    decode = {}
    for mode in modes:
        decode[mode] = _decode_rate(first.at(Execution("torch", "float32", mode)), source, rows, workers)
        step()
    some = rows[:IMAGES]
    reference = features_of(first.at(REFERENCE), source, some)
    forward = []
    for way in ways:
        forward.append(_measure(first.at(way), source, some, reference))
        step()
    write = _write_rate(first, Path(folder))
    step()
    return Bench(
        f"{loaded.source}:{loaded.name}", device, first.shapes, source.location, decode,
        tuple(forward), write, _choice(decode, forward, write, device),
        machine_facts(device),
    )  # fmt: skip
