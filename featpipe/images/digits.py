"""scikit-learn's 1,797 scans of handwritten digits, 8 x 8 pixels, in ten classes."""

from pathlib import Path

import numpy as np

from featpipe.images import ImageSource
from featpipe.settings import ImageSettings
from featpipe.table import make_table


def accepts(location: str) -> bool:
    """Whether `location` is the word ``digits``, and no folder here has that name."""
    return location == "digits" and not Path(location).exists()


def open(location: str, settings: ImageSettings) -> ImageSource:
    """All scans as PNG bytes, 8-bit grey; ids are ``CLASS/NUMBER.png``."""
    from sklearn.datasets import load_digits

    from featpipe.decode import encode_png

    data = load_digits()
    grey = np.round(data.images * (255 / 16)).astype(np.uint8)
    order = np.lexsort((np.arange(len(grey)), data.target))
    ids = [f"{data.target[i]}/{i:04d}.png" for i in order]
    labels = [str(data.target[i]) for i in order]
    return ImageSource("digits", make_table(ids, labels), lambda row: encode_png(grey[order[row]]))
