"""The opponent: a network trained from pixels, beginning with random weights."""

import logging
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from featpipe import checkpoint
from featpipe.calibration import calibrate
from featpipe.cnn import DROPOUT, WIDTHS, Architecture, own_size
from featpipe.decode import Preprocessing
from featpipe.descent import Augment, Descent, descend, logits_of, seeded
from featpipe.device import choose_device, machine_facts, precisions
from featpipe.errors import BackboneError, ImagesError, SettingsError
from featpipe.images import ImageSource
from featpipe.metrics import MultilabelScores, Scores, score, score_multilabel
from featpipe.network_file import TrainedNetwork
from featpipe.pixel_rows import CropFlip, Decoded, PixelRows, decoding
from featpipe.preparation import check_classes, check_rows
from featpipe.result import Result
from featpipe.settings import ScratchSettings, TrainSettings
from featpipe.split import Split, split_rows
from featpipe.targets import Targets, targets_of

log = logging.getLogger(__name__)

AS_PUBLISHED: dict[str, Any] = {
    "epochs": 15, "batch_size": 128, "lr": 1e-3, "optimizer": "adam", "schedule": "constant",
    "weight_decay": 0.0, "label_smoothing": 0.0, "patience": 0, "augment": False,
    "precision": "float32",
}  # fmt: skip
FAIR: dict[str, Any] = {
    "epochs": 100, "batch_size": 32, "lr": 2e-3, "optimizer": "adamw", "schedule": "one-cycle",
    "weight_decay": 0.05, "label_smoothing": 0.1, "patience": 30, "augment": True,
    "precision": "auto",
}  # fmt: skip


def options_of(settings: ScratchSettings) -> dict[str, Any]:
    """The settings, with the network's own defaults where they leave something open."""
    given = {name: value for name, value in asdict(settings).items() if value not in (None, ())}
    own = AS_PUBLISHED if settings.network == "two-layer" else FAIR
    own = {**own, "class_weight": None, "input_size": 0, "widths": (), "dropout": None}
    if settings.network == "small":
        own |= {"widths": WIDTHS, "dropout": DROPOUT}
    made = own | given
    return made | {"input_size": made["input_size"] or own_size(settings.network)}


def train_from_scratch(
    images: ImageSource,
    split: Split | None = None,
    settings: ScratchSettings | None = None,
    train: TrainSettings | None = None,
    on_epoch: Callable[[dict[str, float]], None] | None = None,
    augment: Augment | None = None,
    preprocessing: Preprocessing | None = None,
    decoded: Decoded | None = None,
) -> tuple[TrainedNetwork, Result]:
    """Train a network on the pixels of the training rows.

    With validation rows, the epoch of the lowest validation loss is kept, as for heads. Within
    `featpipe.checkpoint.checkpointing` it goes on where it was interrupted; pixels are decoded
    again.

    Parameters
    ----------
    images : ImageSource
        With labels.
    split : Split or None
        Rows to train on, to select with, and to score; all of them must be decodable. None makes
        one of all that can be decoded, as `train` says.
    settings : ScratchSettings
    train : TrainSettings
        ``seed``, ``device``, ``separator`` and ``min_precision`` are used, and, to make a split,
        whatever is about it.
    on_epoch : callable
        Is given each epoch's row of the curves.
    augment : callable
        In place of `CropFlip`: is given normalised batches, shape (batch, 3, side, side), on the
        device, and draws from torch's global generator.
    preprocessing : Preprocessing
        In place of the network's own, at its input size. A file of the network would not know it.
    decoded : Decoded
        Pixels that are there already, by this preprocessing, of all rows of the split; see
        `featpipe.pixel_rows.decoding`.

    Returns
    -------
    network : TrainedNetwork
        For `featpipe.network_file.save_network`.
    result : Result
        Its ``seconds`` leave decoding out, its conditions' ``decode_seconds`` are that; where
        ``resumed`` is true, the former count what was done before, too.

    Raises
    ------
    UnknownNameError
        If there is no such network.
    SettingsError
        If it does not take one of the settings.
    SplitError
        If the labels do not allow the split.
    ImagesError
        If a row of the split cannot be decoded.
    DiskSpaceError
        If the disk of temporary files would not hold the pixels.
    HeadError
        If the loss stops being finite.
    """
    settings, train = settings or ScratchSettings(), train or TrainSettings()
    if train.folds or train.leave_one_group_out:
        raise SettingsError("A network from scratch takes one split: leave the folds out.")
    if train.leaks and split is None:
        raise SettingsError(
            f"leaks is {train.leaks}, and a network from scratch has no features to find copies "
            "by: make a split with featpipe split --leaks, of features, and give it as --split."
        )
    options, kept = options_of(settings), checkpoint.present()
    targets = targets_of(images.table, train.separator)
    architecture = Architecture(
        settings.network, len(targets.classes), options["input_size"], tuple(options["widths"]),
        options["dropout"],
    )  # fmt: skip
    device = torch.device(choose_device(train.device))
    network = _runnable(seeded(train.seed, architecture.build), architecture).to(device)
    network = network.to(memory_format=torch.channels_last)
    plain = preprocessing or architecture.preprocessing()
    with ExitStack() as stack:
        if decoded is None:
            decoded = stack.enter_context(decoding(images, _rows(split, targets), plain))
        rows, reasons = decoded.rows, decoded.reasons
        decode_seconds, begun = decoded.seconds, checkpoint.clock()
        split = split or _make_split(images, rows, reasons, targets, train)
        check_classes(targets, split)
        check_rows(targets, split, train, (), ())
        wanted = np.concatenate(list(split.parts().values()))
        for place in np.flatnonzero(np.isin(rows, wanted)):
            if reasons[place]:
                raise ImagesError(
                    f"{images.table.ids[rows[place]]} cannot be used: {reasons[place]}."
                )
        X = PixelRows(torch.from_numpy(decoded.pixels), plain, device)
        places = {name: np.searchsorted(rows, some) for name, some in split.parts().items()}
        recipe = _recipe(options, device, train.seed)
        chosen = augment or (CropFlip() if options["augment"] else None)
        with checkpoint.about(rows):
            curves = descend(
                network,
                X,
                torch.tensor(targets.values[rows]).to(device),
                torch.from_numpy(places["train"]),
                torch.from_numpy(places.get("val", rows[:0])),
                recipe,
                class_weight=_class_weight(options, targets, split, device),
                augment=chosen,
                on_epoch=on_epoch,
            )
        predicting = time.perf_counter()
        logits = {
            name: logits_of(network, X, torch.from_numpy(some), recipe.precision).double()
            for name, some in places.items()
        }
        predict_seconds = (time.perf_counter() - predicting) / len(wanted)
        del X  # with the file of its pixels, which could not be taken away else
    scores, calibration, proba = _scored(logits, targets, split, train)
    seconds = checkpoint.clock() - begun
    options |= {"widths": list(options["widths"]), "precision": recipe.precision}
    options |= {"augment": repr(chosen) if chosen else None}
    conditions = {
        "route": f"{settings.network} from scratch",
        "images": images.location,
        "options": {**options, "seed": train.seed},
        "split": {
            "origin": split.origin, **{name: len(some) for name, some in split.parts().items()},
        },
        "train_counts": _counts(targets, split),
        "decode_seconds": decode_seconds,
        "predict_seconds": predict_seconds,
        "resumed": bool(kept and kept.resumed),
        "machine": machine_facts(str(device)),
    }  # fmt: skip
    parameters = sum(parameter.numel() for parameter in network.parameters())
    result = Result(
        scores, curves, seconds, parameters, conditions, calibration=calibration, split=split,
        proba=proba,
    )  # fmt: skip
    return TrainedNetwork(network, architecture, targets.classes, result.to_dict()), result


def epoch_seconds(settings: ScratchSettings, classes: int, device: str = "auto") -> float:
    """Of an image in one epoch, by two batches of noise."""
    options, where = options_of(settings), torch.device(choose_device(device))
    architecture = Architecture(
        settings.network, classes, options["input_size"], tuple(options["widths"]),
        options["dropout"],
    )  # fmt: skip
    network = _runnable(seeded(0, architecture.build), architecture).to(where)
    network = network.to(memory_format=torch.channels_last)
    count, side = int(options["batch_size"]), architecture.input_size
    noise = torch.randint(0, 256, (count, side, side, 3), dtype=torch.uint8)
    X = PixelRows(noise, architecture.preprocessing(), where)
    targets = (torch.arange(count) % classes).to(where)
    recipe = replace(_recipe(options, where, 0), epochs=1)
    rows, spent = torch.arange(count), 0.0
    for _ in range(2):  # the first is slow for reasons of its own
        begun = time.perf_counter()
        descend(
            network, X, targets, rows, rows[:0], recipe,
            augment=CropFlip() if options["augment"] else None,
        )  # fmt: skip
        spent = time.perf_counter() - begun
    return spent / count


def _recipe(options: dict[str, Any], device: torch.device, seed: int) -> Descent:
    precision = options["precision"]
    if precision == "auto":
        fastest = precisions(str(device))[0]
        precision = fastest if fastest == "bfloat16" else "float32"
    names = ("epochs", "batch_size", "lr", "optimizer", "schedule", "weight_decay", "patience")
    given = {name: options[name] for name in (*names, "label_smoothing")}
    return Descent(**given, precision=precision, seed=seed)


def _runnable(network: nn.Module, architecture: Architecture) -> nn.Module:
    """The network, tried on an input of its size before any image is decoded."""
    side = architecture.input_size
    try:
        with torch.no_grad():
            network.eval()(torch.zeros(2, 3, side, side))
    except Exception as error:  # each architecture fails in its own way
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise BackboneError(
            f"{architecture.name} does not run on inputs of {side} x {side} pixels: {reason}. "
            "Try another --input-size."
        ) from error
    return network


def _rows(split: Split | None, targets: Targets) -> np.ndarray:
    """Rows to decode, ascending."""
    if split is not None:
        return np.unique(np.concatenate(list(split.parts().values())))
    if targets.multilabel:
        return np.arange(len(targets.values))
    return np.flatnonzero(targets.values >= 0)


def _make_split(
    images: ImageSource,
    rows: np.ndarray,
    reasons: list[str],
    targets: Targets,
    train: TrainSettings,
) -> Split:
    """A split of the rows that could be decoded; says which are left out."""
    usable = np.zeros(len(images), bool)
    usable[rows] = [not reason for reason in reasons]
    bad = [place for place, reason in enumerate(reasons) if reason]
    if bad:
        log.warning(
            "%d labelled images cannot be used and are left out, such as %s: %s.",
            len(bad),
            images.table.ids[rows[bad[0]]],
            reasons[bad[0]],
        )
    return split_rows(images.table, train, usable, strata=targets.strata)


def _counts(targets: Targets, split: Split) -> dict[str, int]:
    """Training images of each class."""
    values = targets.values[split.train]
    classes = len(targets.classes)
    counts = values.sum(0) if targets.multilabel else np.bincount(values, minlength=classes)
    return {name: int(n) for name, n in zip(targets.classes, counts, strict=True)}


def _class_weight(
    options: dict[str, Any], targets: Targets, split: Split, device: torch.device
) -> Tensor | None:
    """Of each class, such that all weigh the same and the mean row weighs 1."""
    if options["class_weight"] is None:
        return None
    counts = np.array([*_counts(targets, split).values()], np.float64).clip(1)
    rows = len(split.train)
    weights = (rows - counts).clip(1) / counts if targets.multilabel else rows / counts
    if not targets.multilabel:
        weights /= len(weights)
    return torch.tensor(weights, dtype=torch.float32, device=device)


def _scored(
    logits: dict[str, Tensor], targets: Targets, split: Split, train: TrainSettings
) -> tuple[dict[str, Scores | MultilabelScores], dict[str, Any], dict[str, np.ndarray]]:
    """Scores of each part, the calibration, and calibrated probabilities; as heads have them."""
    truth = {name: targets.values[rows] for name, rows in split.parts().items()}
    scores: dict[str, Scores | MultilabelScores] = {}
    if targets.multilabel:
        raw = {name: found.sigmoid().numpy() for name, found in logits.items() if name != "train"}
    else:
        predicted = logits["train"].argmax(1).numpy()
        scores["train"] = score(truth["train"], predicted, targets.classes)
        raw = {name: found.softmax(1).numpy() for name, found in logits.items() if name != "train"}
    fitted_on = "val" if "val" in raw else None
    calibration, proba = calibrate(raw, truth, fitted_on, train.min_precision)
    for name, found in proba.items():
        if targets.multilabel:
            scores[name] = score_multilabel(truth[name], found, targets.classes)
        else:
            scores[name] = score(truth[name], found.argmax(1), targets.classes, found)
    return scores, calibration, proba
