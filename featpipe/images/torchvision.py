"""torchvision's built-in image classification data sets: ``torchvision:CIFAR10``."""

import contextlib
import inspect
import os
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np

from featpipe.errors import ImagesError
from featpipe.images import ImageSource
from featpipe.registry import no_such
from featpipe.settings import ImageSettings
from featpipe.table import canonical_split, make_table


def accepts(location: str) -> bool:
    """Never: a torchvision data set is asked for by its prefix."""
    return False


def open(name: str, settings: ImageSettings) -> ImageSource:
    """Open every split of a data set that torchvision ships, downloading it if need be.

    Pictures are handed on as lossless PNG; ids are ``SPLIT/NUMBER``.
    """
    from torchvision import datasets

    known = [item for item in datasets.__all__ if inspect.isclass(getattr(datasets, item))]
    if name not in known:
        raise ImagesError(no_such("torchvision data set", name, known))
    kind = getattr(datasets, name)
    parts = [(split, _build(kind, split, settings.root)) for split in _splits(kind)]
    starts = np.cumsum([0] + [len(data) for _, data in parts])
    ids, labels, splits = [], [], []
    for split, data in parts:
        ids += [f"{split or 'all'}/{row:07d}" for row in range(len(data))]
        labels += _labels(data)
        splits += [canonical_split(split.removesuffix("val") or split) or ""] * len(data)

    lock = threading.Lock()

    def read(row: int) -> bytes:
        from featpipe.decode import encode_png

        part = int(np.searchsorted(starts, row, side="right")) - 1
        with lock:  # data sets seed global generators, seek in shared files, ...
            image, *_ = parts[part][1][row - int(starts[part])]
        return encode_png(image)

    return ImageSource(f"torchvision:{name}", make_table(ids, labels, splits), read)


def _splits(kind: type) -> list[str]:
    """The splits a data set class is asked for by: those of its ``train`` or ``split``."""
    parameters = inspect.signature(kind).parameters
    if "train" in parameters:
        return ["train", "test"]
    if "split" in parameters:
        documented = kind.__doc__ or ""
        names = ["train", "val", "valid", "test"]
        if '"trainval"' in documented and '"train"' not in documented:
            names[0] = "trainval"
        given = [name for name in names if f'"{name}"' in documented]
        if not given:
            raise ImagesError(
                f"torchvision's {kind.__name__} does not say which splits it has; save it as a "
                "folder of images."
            )
        return given
    return [""]


def _build(kind: type, split: str, root: str | None) -> Any:
    parameters = inspect.signature(kind).parameters
    keywords: dict[str, Any] = {}
    if "root" in parameters:
        home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        keywords["root"] = root or str(Path(home, "featpipe", "datasets"))
    if "download" in parameters:
        keywords["download"] = True
    if "train" in parameters:
        keywords["train"] = split == "train"
    elif split:
        keywords["split"] = split
    try:
        with contextlib.redirect_stdout(sys.stderr):
            return kind(**keywords)
    except Exception as error:  # each data set fails in its own way
        raise ImagesError(
            f"torchvision's {kind.__name__} ({split or 'all'}) cannot be opened: {error}. "
            f"If it cannot be downloaded, put its files in {keywords.get('root')} or pass --root."
        ) from error


def _labels(data: Any) -> list[str]:
    """Class names of all rows, without decoding a picture where the data set allows it."""
    for name in ("targets", "labels", "_labels"):
        targets = getattr(data, name, None)
        if targets is not None and len(targets) == len(data):
            break
    else:
        targets = [data[row][1] for row in range(len(data))]
    numbers = [int(target) for target in targets]
    classes = getattr(data, "classes", None)
    return [str(classes[number]) if classes else str(number) for number in numbers]
