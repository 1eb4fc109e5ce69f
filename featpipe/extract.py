"""Stage one: images to cached features."""

import contextlib
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from torch import nn

from featpipe.backbones import Backbone, choose_pool, load_backbone, parse_backbone
from featpipe.cache import FeatureCache
from featpipe.cache_build import CacheBuilder
from featpipe.checksums import digest_bytes
from featpipe.decode import DECODER, Preprocessing, decode
from featpipe.device import available_cores, machine_facts
from featpipe.engines import LoadedImage
from featpipe.errors import BackboneError, DecodeError, FeatpipeError, LayerError, WeightsError
from featpipe.images import ImageSource, open_images
from featpipe.layers import Shape, needed_tensors, pooled_shape, structure_of
from featpipe.registry import load_plugin
from featpipe.runtimes import ForwardPass, PooledLayer
from featpipe.settings import ExtractSettings, ImageSettings
from featpipe.spec import Spec
from featpipe.table import Status
from featpipe.weights import digest_weights

log = logging.getLogger(__name__)

Progress = Callable[[int, int], None]
SCAN_TASK = 32  # images that one thread digests in a row
MOST_LETTERS = 160  # of a reason
SLOW_SECONDS = 3e-4  # an image that takes longer to digest was waited for


@dataclass(frozen=True, eq=False)
class Extractor:
    """A backbone made ready to turn pixels into features, and the Spec of what comes out."""

    backbone: Backbone
    forward: ForwardPass
    shapes: dict[str, Shape]
    spec: Spec
    batch_size: int


def extract_features(
    images: str | Path | ImageSource,
    backbone: str | Backbone,
    out: str | Path,
    settings: ExtractSettings | None = None,
    image_settings: ImageSettings | None = None,
    on_progress: Progress | None = None,
) -> FeatureCache:
    """Run a frozen backbone once over every image and cache what its layers give.

    Resumes an interrupted run; computes nothing that `out` already holds for the same image
    bytes under the same settings.

    Parameters
    ----------
    images : str, Path or ImageSource
        What `open_images` takes.
    backbone : str or Backbone
        ``[source:]name[@weights]``.
    out : str or Path
        The HDF5 file to make.
    settings : ExtractSettings
    image_settings : ImageSettings
        For manifests.
    on_progress : callable
        Called with (images done, images to do) after each batch.

    Returns
    -------
    FeatureCache
        One row an image, in the source's order; a row whose image could not be used has a
        status, a reason, and NaN.

    Raises
    ------
    SpecMismatchError
        If `out` was made with other settings.
    DecodeError
        If an image cannot be used and ``settings.on_error`` is ``raise``.
    """
    settings = settings or ExtractSettings()
    begun = time.perf_counter()
    source = open_images(images, image_settings)
    extractor = prepare(backbone, settings)
    workers = settings.workers or available_cores()
    builder = CacheBuilder(
        Path(out), extractor.spec, extractor.shapes, extractor.batch_size, settings.overwrite,
        [Path(other) for other in settings.reuse], begun,
    )  # fmt: skip
    try:
        digests, status, reasons = scan(source, workers)
        if settings.on_error == "raise":
            _raise_first(source, status, reasons, np.arange(len(source)))
        builder.take(source.table, digests, status, reasons)
        if builder.reused:
            log.info("%d of %d rows are already computed.", builder.reused, len(source))
        with _saying_what_is_saved(builder):
            _compute(builder, source, extractor, workers, settings.on_error, on_progress)
            facts = machine_facts(extractor.forward.device)
            facts["finished"] = datetime.now(UTC).isoformat(timespec="seconds")
            facts["images"] = {
                "location": source.location,
                **asdict(image_settings or ImageSettings()),
            }
            cache = builder.finish(facts)
    finally:
        builder.close()
    if settings.on_error == "raise":  # rows that an earlier run has recorded count as well
        try:
            _raise_first(source, cache.status, cache.reasons, np.arange(len(source)))
        except DecodeError:
            cache.close()
            raise
    _report(cache)
    return cache


def prepare(backbone: str | Backbone, settings: ExtractSettings) -> Extractor:
    """Load a backbone, cut it at the layers asked for, and put it on its device."""
    loaded = load_backbone(backbone, settings.weights, settings.seed, settings.input_size)
    if loaded.random:
        log.warning(
            "%s: random weights, nothing in them was learnt from any image. Figures say how the "
            "pipeline runs, not how good the backbone is.",
            loaded.title,
        )
    if loaded.loaded.missing or loaded.loaded.unexpected:
        log.warning(
            "%s: %d tensors of %s are missing from the file (%s), %d in it are of no use (%s).",
            loaded.weights,
            len(loaded.loaded.missing),
            loaded.title,
            ", ".join(loaded.loaded.missing[:4]) or "none",
            len(loaded.loaded.unexpected),
            ", ".join(loaded.loaded.unexpected[:4]) or "none",
        )
    graph = loaded.layers()
    names = [graph.resolve(name) for name in settings.layer] or [graph.default]
    if len(set(names)) != len(names):
        raise LayerError(f"A layer is asked for twice: {', '.join(names)}.")
    layers = []
    for name in names:
        how = choose_pool(settings.pool, bool(settings.layer), graph.shapes[name])
        layers.append(PooledLayer(name, how, graph.shapes[name]))
    cut = loaded.cut(graph, names)
    runtime = load_plugin("runtimes", "torch")
    forward = runtime.Runtime(cut, layers, loaded.preprocessing, settings.device)
    spec = Spec(
        backbone=f"{loaded.source}:{loaded.name}",
        weights=loaded.weights,
        seed=loaded.seed,
        weights_digests={name: _digest(loaded, loaded.cut(graph, [name])) for name in names},
        random_weights=loaded.random,
        layers={layer.name: layer.pool for layer in layers},
        preprocessing=loaded.preprocessing.to_dict(),
        decoder=DECODER,
        precision=forward.precision,
        dtype=settings.dtype,
    )
    shapes = {layer.name: pooled_shape(layer.pool, layer.shape) for layer in layers}
    # A CPU is fastest while a batch's activations stay in its cache.
    batch_size = settings.batch_size or (8 if forward.device == "cpu" else 64)
    return Extractor(loaded, forward, shapes, spec, batch_size)


def rebuild(
    spec: Spec, layers: Sequence[str], settings: ExtractSettings, backbone: Backbone | None = None
) -> tuple[Extractor, list[str]]:
    """Make ready what once made features of a Spec, at some of its layers.

    Parameters
    ----------
    spec : Spec
    layers : sequence of str
    settings : ExtractSettings
        ``weights`` (where their file lies now), ``device``, ``batch_size`` and ``trust_code`` are
        used; the rest is the Spec's.
    backbone : Backbone
        The network, if it is loaded already.

    Returns
    -------
    Extractor
    list of str
        What differs from the Spec, but for how features were stored; empty if nothing does.

    Raises
    ------
    BackboneError
        If the Spec names code of the user's own, and it is not said to be trusted.
    """
    names_code = backbone is None and parse_backbone(spec.backbone)[0] == "python"
    if names_code and not settings.trust_code:
        raise BackboneError(
            f"The file names {spec.backbone}, code that is looked for here and would be run. If "
            "you trust both, say --trust-code (in Python: trust_code=True, or pass the backbone)."
        )
    try:
        weights = settings.weights or spec.weights
        loaded = backbone or load_backbone(spec.backbone, weights, spec.seed)
    except WeightsError as error:
        raise WeightsError(f"{error} Say where they lie now with --weights PATH.") from error
    stored = Preprocessing.from_dict(spec.preprocessing)
    pools = {spec.layers[name] for name in layers}
    if len(pools) != 1:
        raise LayerError(f"{', '.join(layers)} are not pooled alike.")
    extractor = prepare(
        replace(loaded, preprocessing=stored),
        replace(settings, layer=tuple(layers), pool=pools.pop(), input_size=None),
    )
    wanted = replace(spec.only(layers), dtype=extractor.spec.dtype)
    return extractor, wanted.differences(extractor.spec)


def _digest(backbone: Backbone, cut: nn.Module) -> str:
    # A name stands for one architecture, but for the user's own, whose code may change.
    structure = structure_of(cut) if backbone.source == "python" else ""
    return digest_weights(needed_tensors(cut), structure)


def load_image(
    source: ImageSource, row: int, preprocessing: Preprocessing, digest: bytes = b""
) -> LoadedImage:
    """Read, decode and resize one image; what goes wrong becomes a status and a reason.

    With a `digest`, bytes that have another one are not used: the file has changed.
    """
    try:
        data = source.read(row)
        if digest and digest_bytes(data) != digest:
            return LoadedImage(None, Status.UNREADABLE, "changed while it was being extracted")
        return LoadedImage(preprocessing.pixels(decode(data, preprocessing.exif)))
    except DecodeError as error:
        return LoadedImage(None, Status.UNDECODABLE, _short(str(error)))
    except MemoryError:  # may well succeed another time, so it is no property of the image
        return LoadedImage(None, Status.UNREADABLE, "not enough memory")
    except (OSError, ValueError) as error:
        return LoadedImage(None, *_read_status(error))


def scan(source: ImageSource, workers: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Digest every image's bytes.

    Returns
    -------
    digests : uint8 array, shape (n, 16)
        XXH3-128; zeros where the bytes could not be read.
    status : uint8 array, shape (n,)
    reasons : object array of str, shape (n,)
    """
    digests = np.zeros((len(source), 16), np.uint8)
    status = np.zeros(len(source), np.uint8)
    reasons = np.full(len(source), "", dtype=object)

    def digest(rows: range) -> None:
        for row in rows:
            try:
                found = source.digest(row)
            except (OSError, ValueError) as error:
                status[row], reasons[row] = _read_status(error)
            else:
                digests[row] = np.frombuffer(found, np.uint8)

    # Files that are at hand are digested faster than threads take turns at it; those on a slow
    # or distant disk are waited for together.
    at_hand, start, size = True, 0, SCAN_TASK
    with ThreadPoolExecutor(workers) as pool:
        while start < len(source):
            stop, begun = min(start + size, len(source)), time.perf_counter()
            if at_hand:
                digest(range(start, stop))
            else:
                tasks = range(start, stop, SCAN_TASK)
                list(pool.map(digest, (range(at, min(at + SCAN_TASK, stop)) for at in tasks)))
            each = (time.perf_counter() - begun) / (stop - start)
            at_hand = each * (1 if at_hand else workers) < SLOW_SECONDS
            start, size = stop, SCAN_TASK * (16 if at_hand else 4 * workers)
    return digests, status, reasons


def _read_status(error: OSError | ValueError) -> tuple[Status, str]:
    if isinstance(error, FileNotFoundError):
        return Status.MISSING, "no such file"
    return Status.UNREADABLE, _short(getattr(error, "strerror", None) or str(error))


def _short(reason: str) -> str:
    """A reason of at most so many letters: all rows have room for the longest."""
    return reason if len(reason) <= MOST_LETTERS else f"{reason[: MOST_LETTERS - 3]}..."


def _compute(
    builder: CacheBuilder,
    source: ImageSource,
    extractor: Extractor,
    workers: int,
    on_error: str,
    on_progress: Progress | None,
) -> None:
    """Fill the builder; whatever stops this, what was computed is kept."""
    rows = builder.rows_of_work()
    preprocessing = extractor.backbone.preprocessing

    def load(item: int) -> LoadedImage:
        if rows[item] < 0:
            return LoadedImage(None, Status.MISSING, "no longer among the images")
        digest = builder.work[item].tobytes()
        return load_image(source, int(rows[item]), preprocessing, digest)

    engine = load_plugin("engines", "local")
    done = 0
    forward = extractor.forward
    results = engine.run(builder.batches(), load, forward, workers, forward.lanes)
    # One thread writes while the next batches are in the network.
    writers = ThreadPoolExecutor(1, thread_name_prefix="featpipe-write")
    with forward, writers as writer, contextlib.closing(results):
        writing = writer.submit(lambda: None)
        try:
            for batch in results:
                writing.result()
                writing = writer.submit(builder.write, batch)
                if on_error == "raise":
                    found = [image.status for image in batch.images]
                    why = [image.reason for image in batch.images]
                    _raise_first(source, np.array(found), np.array(why), rows[batch.items])
                done += int((rows[batch.items] >= 0).sum())
                if on_progress:
                    on_progress(min(done, builder.pending), builder.pending)
            writing.result()
        except BaseException:
            writing.exception()
            with contextlib.suppress(OSError, FeatpipeError):  # the first error is the one to tell
                builder.flush()
            raise


@contextlib.contextmanager
def _saying_what_is_saved(builder: CacheBuilder) -> Iterator[None]:
    try:
        yield
    except BaseException:
        if builder.saved:
            log.warning(
                "%d computed images are saved in %s; the same command computes only the rest.",
                builder.saved,
                builder.folder,
            )
        raise


def _raise_first(
    source: ImageSource, status: np.ndarray, reasons: np.ndarray, rows: np.ndarray
) -> None:
    """Raise for the first of these rows that cannot be used; -1 stands for no row."""
    for bad in np.flatnonzero((status != Status.OK) & (rows >= 0)):
        raise DecodeError(
            f"{source.table.ids[rows[bad]]} in {source.location}: {reasons[bad]}. "
            "Mend or remove it, or use --on-error record."
        )


def _report(cache: FeatureCache) -> None:
    bad = np.flatnonzero(~cache.ok)
    for row in bad[:5]:
        log.warning("No features for %s: %s.", cache.table.ids[row], cache.reasons[row])
    if len(bad) > 5:
        log.warning("... and for %d more; `featpipe info` lists them.", len(bad) - 5)
