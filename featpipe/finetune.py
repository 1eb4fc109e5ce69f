"""Fine-tuning from a cut: what is before it runs once, what is behind it is trained from the cache.

An ordinary epoch of fine-tuning decodes every image and runs the frozen part of the network on it,
only to get the numbers of the epoch before. Here they are computed once, stored, and read.
"""

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from featpipe.backbones import load_backbone
from featpipe.checkpoint import Checkpoints
from featpipe.classifier import Classifier
from featpipe.errors import SettingsError
from featpipe.extract import Progress, extract_features
from featpipe.heads import build_head
from featpipe.images import ImageSource, open_images
from featpipe.preparation import check_table
from featpipe.result import Result, save_run
from featpipe.settings import ExtractSettings, ImageSettings, TrainSettings
from featpipe.tails import cut_off
from featpipe.train import OnEpoch, train_head

log = logging.getLogger(__name__)

FEATURES, UNFINISHED = "features.h5", "unfinished"  # in the folder


def finetune(
    images: str | Path | ImageSource,
    backbone: str,
    cut: str,
    out: str | Path,
    settings: TrainSettings | None = None,
    extract: ExtractSettings | None = None,
    image_settings: ImageSettings | None = None,
    on_progress: Progress | None = None,
    on_epoch: OnEpoch | None = None,
    **options: Any,
) -> tuple[Classifier, Result]:
    """Train all of a network that lies behind one of its layers.

    Interrupted at any time it goes on where it was, when it is called again: neither a computed
    image nor more than seconds of training are lost, and the result is the same.

    Parameters
    ----------
    images : str, Path or ImageSource
        What `open_images` takes.
    backbone : str
        ``[source:]name[@weights]``.
    cut : str
        The last layer that stays as it is; a module's name means its last node.
    out : str or Path
        Folder for the activations, ``features.h5``, which are used again by the next call, and for
        ``classifier.safetensors``, ``result.json`` and ``split.csv``.
    settings : TrainSettings
        Split, seed, device and memory. Activations that memory does not hold are read block by
        block.
    extract : ExtractSettings
        How activations are computed; layer and pooling are decided by `cut`. Left out, they are
        stored as float16.
    image_settings : ImageSettings
        For manifests.
    on_progress : callable
        Is given images done and images to do.
    on_epoch : callable
        Is given each row of the curves.
    **options
        Of the head `tail`: ``lr``, ``epochs``, ``optimizer``, ``freeze_norm``, ...

    Returns
    -------
    classifier : Classifier
    result : Result

    Raises
    ------
    LayerError
        If the network cannot be cut there.
    SplitError
        If the labels do not allow the split; told before anything is computed.
    HeadError
        If the head does not take an option, or cannot be trained.
    DiskSpaceError
        If the activations would not fit.
    """
    settings = settings or TrainSettings()
    extract = extract or ExtractSettings(dtype="float16")
    if settings.layer is not None or extract.layer:
        raise SettingsError("Fine-tuning is from its cut: leave the layer out.")
    options = {"train": "all", **options}
    unfitted = build_head("tail", settings, options)  # or refuse before anything is computed
    loaded = load_backbone(backbone, extract.weights, extract.seed, extract.input_size)
    stump = cut_off(loaded, cut, unfitted.train == "last" or unfitted.freeze_norm)
    unfitted.check_stump(stump)
    source = open_images(images, image_settings)
    check_table(source.table, settings)
    row = extract.views * int(np.prod(stump.shape)) * np.dtype(extract.dtype).itemsize
    log.info(
        "%d images%s, %s values of %s each: %.2f GB of %s to be stored in %s.",
        len(source), f" in {extract.views} views" if extract.views > 1 else "",
        "x".join(map(str, stump.shape)), cut, len(source) * row / 1e9, extract.dtype, out,
    )  # fmt: skip
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    wanted = replace(extract, layer=(cut,), pool="flatten")
    with extract_features(
        source, loaded, folder / FEATURES, wanted, image_settings, on_progress
    ) as cache:
        # Named by whoever calls this, so it may be run again.
        own = {"trust_code": True, "weights": extract.weights, **options}
        classifier, result = train_head(
            cache, "tail", settings, unfinished=folder / UNFINISHED, on_epoch=on_epoch, **own
        )
        save_run(folder, classifier, result, cache.table)
    Checkpoints(folder / UNFINISHED).clear()
    return classifier, result
