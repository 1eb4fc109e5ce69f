"""Stage one: images to cached features."""

import contextlib
import logging
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from featpipe.backbones import Backbone
from featpipe.cache import FeatureCache
from featpipe.cache_build import CacheBuilder
from featpipe.ceilings import measure_ceilings
from featpipe.choice import choose
from featpipe.device import available_cores, machine_facts
from featpipe.engines import Batch
from featpipe.errors import DecodeError, FeatpipeError
from featpipe.extractor import Extractor, prepare
from featpipe.fidelity import Fidelity
from featpipe.images import ImageSource, open_images
from featpipe.loading import scan
from featpipe.registry import load_plugin
from featpipe.settings import ExtractSettings, ImageSettings
from featpipe.table import Status
from featpipe.throughput import Meter, describe

log = logging.getLogger(__name__)

Progress = Callable[[int, int], None]
QUEUED = 8  # batches that wait for the writer at most
WORTH_MEASURING = 20  # batches a lane, from which on the ceilings are measured: 5 % of the time


def extract_features(
    images: str | Path | ImageSource,
    backbone: str | Backbone,
    out: str | Path,
    settings: ExtractSettings | None = None,
    image_settings: ImageSettings | None = None,
    on_progress: Progress | None = None,
    meter: Meter | None = None,
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
        With ``views`` and ``augment`` each image has several views, see `featpipe.augment`. The
        same bytes and seed have the same views, whatever the workers, order and batches.
    image_settings : ImageSettings
        For manifests.
    on_progress : callable
        Called with (images done, images to do) after each batch.
    meter : Meter
        Tells, while it runs, who keeps whom waiting.

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
    settings, meter = settings or ExtractSettings(), meter or Meter()
    begun = time.perf_counter()
    source = open_images(images, image_settings)
    workers = settings.workers or available_cores()
    reuse = [Path(other) for other in settings.reuse]
    builder = CacheBuilder(Path(out), settings.overwrite, reuse, begun)
    try:
        extractor = prepare(backbone, settings, builder.precedent)
        measured: Fidelity | None = None
        if builder.precedent is None:  # nothing there decides in what precision to go on
            extractor, measured = choose(extractor, source)
        builder.begin(
            extractor.spec, extractor.stored, extractor.batch_size, extractor.execution.runtime
        )
        digests, status, reasons = scan(source, workers)
        if settings.on_error == "raise":
            _raise_first(source, status, reasons, np.arange(len(source)))
        builder.take(source.table, digests, status, reasons)
        if builder.reused:
            log.info("%d of %d rows are already computed.", builder.reused, len(source))
        if builder.pending and builder.precedent is not None:
            extractor, measured = choose(extractor, source)
        with _saying_what_is_saved(builder):
            if builder.pending:
                _compute(builder, source, extractor, workers, settings.on_error, on_progress, meter)
            facts = machine_facts(extractor.forward.device)
            facts["finished"] = datetime.now(UTC).isoformat(timespec="seconds")
            facts["images"] = {
                "location": source.location,
                **asdict(image_settings or ImageSettings()),
            }
            before = builder.precedent.conditions if builder.precedent is not None else {}
            facts |= _execution_facts(extractor, measured, meter, before)
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
    if meter.ceilings is not None:
        log.info("%s.", describe(meter.report()))
    return cache


def _compute(
    builder: CacheBuilder,
    source: ImageSource,
    extractor: Extractor,
    workers: int,
    on_error: str,
    on_progress: Progress | None,
    meter: Meter,
) -> None:
    """Fill the builder; whatever stops this, what was computed is kept."""
    rows = builder.rows_of_work()
    load = extractor.loader(source, rows, builder.work)
    engine = load_plugin("engines", "local")
    done = 0
    with contextlib.ExitStack() as stack:
        forward = stack.enter_context(extractor.forward)
        # One thread writes while the next batches are in the network.
        writer = stack.enter_context(ThreadPoolExecutor(1, thread_name_prefix="featpipe-write"))
        results = engine.run(
            builder.batches(), load, extractor.features, workers, forward.lanes, meter
        )
        stack.enter_context(contextlib.closing(results))
        writing: deque[Future[None]] = deque()
        try:
            for batch in results:
                while writing and (writing[0].done() or len(writing) >= QUEUED):
                    with meter.waiting_for("write"):
                        writing.popleft().result()
                writing.append(writer.submit(_write, builder, batch, meter))
                if on_error == "raise":
                    found = [image.status for image in batch.images]
                    why = [image.reason for image in batch.images]
                    _raise_first(source, np.array(found), np.array(why), rows[batch.items])
                real = int((rows[batch.items] >= 0).sum())
                meter.add(real)
                done += real
                if on_progress:
                    on_progress(min(done, builder.pending), builder.pending)
            with meter.waiting_for("write"):
                for written in writing:
                    written.result()
        except BaseException:
            for written in writing:
                written.exception()
            with contextlib.suppress(OSError, FeatpipeError):  # the first error is the one to tell
                builder.flush()
            raise
        meter.end()
        results.close()
        if meter.images >= WORTH_MEASURING * forward.lanes * builder.batch_size:
            items = np.flatnonzero(rows >= 0)
            meter.ceilings = measure_ceilings(extractor, load, items, workers, meter.seconds)


def _write(builder: CacheBuilder, batch: Batch, meter: Meter) -> None:
    with meter.working("write"):
        builder.write(batch)


def _execution_facts(
    extractor: Extractor, measured: Fidelity | None, meter: Meter, before: Mapping[str, Any]
) -> dict[str, Any]:
    """How the features were computed, what its shortcuts cost, and what limited its speed.

    Where nothing was computed it is as `before`; of rows of several runs the worst counts.
    """
    if not meter.images:
        told = ("execution", "fidelity", "throughput")
        return {name: before[name] for name in told if name in before}
    facts: dict[str, Any] = {
        "execution": {**asdict(extractor.execution), "batch_size": extractor.batch_size},
        "throughput": meter.report(),
    }
    known = Fidelity.from_dict(before.get("fidelity"))
    if measured is not None:
        facts["fidelity"] = measured.worse(known).to_dict()
    elif known is not None:
        facts["fidelity"] = known.to_dict()
    return facts


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
    if len(bad) and len(bad) == len(cache):
        views = cache.views > 1 and any(reason.startswith("view ") for reason in cache.reasons)
        log.warning(
            "NONE of the %d images has features, so nothing can be trained on %s. %s",
            len(cache),
            cache.path,
            "An image needs all of its views: give --augment what every image is large enough "
            "for, such as a Resize before a crop."
            if views
            else "Mend or replace the images, or name others.",
        )
