"""What this machine can do: each stage alone, in every way there is, and which way is best."""

import io
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from featpipe.backbones import Backbone, load_backbone
from featpipe.cache_parts import Part
from featpipe.ceilings import forward_rate, rate
from featpipe.choice import Trial, sample_rows
from featpipe.device import available_cores, machine_facts, precisions
from featpipe.errors import ImagesError, RuntimeUnavailableError
from featpipe.extractor import Execution, Extractor, decoders, prepare
from featpipe.fidelity import Fidelity
from featpipe.images import ImageSource, open_images
from featpipe.loading import ImageLoader
from featpipe.runtimes import fastest
from featpipe.settings import ExtractSettings, ImageSettings
from featpipe.table import make_table
from featpipe.throughput import Ceilings

DECODED = 16  # pictures
WRITTEN = 256  # rows


@dataclass(frozen=True)
class ForwardBench:
    """One way to run the network: how fast alone, how soon, how true.

    Attributes
    ----------
    runtime, precision : str
    images_per_second, start_seconds : float or None
        None if it cannot run this network; `reason` says why. The seconds are those from the
        loaded network to the first features.
    fidelity : Fidelity or None
    true : bool
        Whether it is true enough to be chosen.
    reason : str
    """

    runtime: str
    precision: str
    images_per_second: float | None = None
    start_seconds: float | None = None
    fidelity: Fidelity | None = None
    true: bool = False
    reason: str = ""


@dataclass(frozen=True)
class Bench:
    """What was measured; every rate is images a second of one stage alone.

    Attributes
    ----------
    backbone, device : str
    layers : dict
        Layer to the shape of one row.
    images : str
        What was decoded.
    decode : dict
        Of each decoder, by all workers.
    forward : tuple of ForwardBench
    write : float
        Made durable in a part file.
    choice : dict
        The fastest way that is true, and what its stages together allow.
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

    Returns
    -------
    Bench

    Raises
    ------
    ImagesError
        If no image can be decoded.
    """
    settings = settings or ExtractSettings()
    source = _pictures() if images is None else open_images(images, image_settings)
    loaded = load_backbone(backbone, settings.weights, settings.seed, settings.input_size)
    first = prepare(loaded, settings)
    device, workers = first.forward.device, settings.workers or available_cores()
    rows = sample_rows(source, loaded.preprocessing, DECODED)
    if not rows:
        raise ImagesError(f"No image of {source.location} that was tried can be decoded.")
    ways = [
        Execution(runtime, precision, "exact")
        for precision in precisions(device)
        for runtime in fastest(device, precision)
    ]
    total, done = len(decoders(device)) + len(ways) + 1, 0

    def step() -> None:
        nonlocal done
        done += 1
        if on_progress:
            on_progress(done, total)

    decode: dict[str, float] = {}
    for mode, decoder in decoders(device).items():
        load = ImageLoader(source, loaded.preprocessing, decoder)
        decode[mode] = rate(lambda load=load: load(rows), workers, len(rows))  # type: ignore[misc]
        step()
    trial, forward = Trial(first, source), []
    for way in ways:
        forward.append(_forward(first.at(way), trial))
        step()
    write = _write_rate(first, Path(folder))
    step()
    return Bench(
        first.spec.backbone, device, first.shapes, source.location, decode, tuple(forward), write,
        _choice(decode, forward, device), machine_facts(device),
    )  # fmt: skip


def _pictures() -> ImageSource:
    """Made-up photographs: soft shapes and some noise, so that a JPEG has its usual size."""
    random, encoded = np.random.default_rng(0), []
    for _ in range(DECODED):
        soft = Image.fromarray(random.integers(0, 256, (12, 16, 3), np.uint8))
        picture = np.asarray(soft.resize((500, 375), Image.Resampling.BICUBIC), np.int16)
        noisy = np.clip(picture + random.normal(0, 12, picture.shape), 0, 255).astype(np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(noisy).save(buffer, "JPEG", quality=85)
        encoded.append(buffer.getvalue())
    table = make_table([f"{row}.jpg" for row in range(DECODED)])
    return ImageSource("made-up JPEGs of 500 x 375", table, encoded.__getitem__)


def _forward(extractor: Extractor, trial: Trial) -> ForwardBench:
    way, begun = extractor.execution, time.perf_counter()
    try:
        with extractor.forward as forward:
            forward(np.zeros((1, *extractor.network.size, 3), np.uint8))
            started = time.perf_counter() - begun
            speed = forward_rate(extractor)
        measured, true = trial.measure(extractor)
    except (RuntimeUnavailableError, RuntimeError) as error:
        return ForwardBench(way.runtime, way.precision, reason=str(error).splitlines()[0])
    return ForwardBench(way.runtime, way.precision, speed, started, measured, true)


def _write_rate(extractor: Extractor, folder: Path) -> float:
    """Rows a second, made durable as a part file."""
    random = np.random.default_rng(0)
    rows = {
        layer: random.random((WRITTEN, *shape)).astype(extractor.spec.dtype)
        for layer, shape in extractor.shapes.items()
    }
    digests, status = np.zeros((WRITTEN, 16), np.uint8), np.zeros(WRITTEN, np.uint8)
    reasons = np.full(WRITTEN, "", object)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".featpipe-bench-") as place:
        begun = time.perf_counter()
        for number in range(3):
            path = Path(place) / f"part-{number:06d}-0-0.h5"
            Part.write(path, np.arange(WRITTEN), digests, status, reasons, rows, 0.0)
        return 3 * WRITTEN / (time.perf_counter() - begun)


def _choice(decode: dict[str, float], forward: list[ForwardBench], device: str) -> dict[str, Any]:
    """The fastest decoder, and the fastest forward pass that is true to float32."""
    mode = max(decode, key=lambda name: decode[name])
    true = [way for way in forward if way.true]
    if not true:  # its features are not finite, whatever runs it
        true = [way for way in forward if (way.runtime, way.precision) == ("torch", "float32")]
    best = max(true, key=lambda way: way.images_per_second or 0.0)
    together = Ceilings(decode[mode], best.images_per_second or 0.0, shared=device == "cpu")
    return {
        "runtime": best.runtime,
        "precision": best.precision,
        "decode": mode,
        "images_per_second": together.together,
    }
