"""The opponent: a small CNN trained from pixels."""

import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from featpipe.decode import Preprocessing
from featpipe.descent import Descent, descend, forward, seeded
from featpipe.device import available_cores, choose_device, machine_facts
from featpipe.errors import ImagesError
from featpipe.images import ImageSource
from featpipe.loading import load_image
from featpipe.metrics import score
from featpipe.settings import ScratchSettings, TrainSettings
from featpipe.split import Split
from featpipe.train import Result


class TwoLayerCNN(nn.Module):
    """Two blocks of convolution, batch norm, ReLU and max pooling, then one linear layer.

    Takes uint8 pixels, shape (batch, 3, side, side), and normalises them itself.

    Parameters
    ----------
    classes : int
    side : int
        Of the square input, in pixels; at least 4.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, classes: int, side: int) -> None:
        super().__init__()
        usual = Preprocessing()
        self.register_buffer("mean", torch.tensor(usual.mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(usual.std).view(1, 3, 1, 1))
        self.layers = nn.Sequential(
            *_block(3, 16), *_block(16, 32), nn.Flatten(), nn.Linear(32 * (side // 4) ** 2, classes)
        )

    def forward(self, pixels: Tensor) -> Tensor:
        """Logits, shape (batch, classes)."""
        logits: Tensor = self.layers((pixels.float() / 255 - self.mean) / self.std)
        return logits


def _block(inputs: int, outputs: int) -> list[nn.Module]:
    convolution = nn.Conv2d(inputs, outputs, kernel_size=3, padding=1)
    # Pooling before ReLU gives the same numbers as after it, for a quarter of the work.
    return [convolution, nn.BatchNorm2d(outputs), nn.MaxPool2d(2), nn.ReLU()]


def train_from_scratch(
    images: ImageSource,
    split: Split,
    settings: ScratchSettings | None = None,
    train: TrainSettings | None = None,
    on_epoch: Callable[[dict[str, float]], None] | None = None,
) -> tuple[TwoLayerCNN, Result]:
    """Train a two-layer CNN on the pixels of the training rows.

    With validation rows, the epoch of the lowest validation loss is kept, as for heads.

    Parameters
    ----------
    images : ImageSource
        With labels.
    split : Split
        Rows to train on, to select with, and to score; all of them must be decodable.
    settings : ScratchSettings
    train : TrainSettings
        ``seed`` and ``device`` are used.

    Returns
    -------
    network : TwoLayerCNN
    result : Result
        Its ``seconds`` leave decoding out, its conditions' ``decode_seconds`` are that.
    """
    settings, train = settings or ScratchSettings(), train or TrainSettings()
    table = images.table
    if table.labels is None:
        raise ImagesError("Training from scratch needs labels.")
    device = choose_device(train.device)
    side = settings.input_size
    parts = split.parts()
    labels = {name: torch.tensor(table.labels[rows]) for name, rows in parts.items()}
    begun = time.perf_counter()
    # Pixels live in a file that the system pages in and out, not in this process's memory.
    with tempfile.TemporaryDirectory(prefix="featpipe-", ignore_cleanup_errors=True) as folder:
        pixels = {
            name: torch.from_numpy(_decode_all(images, rows, side, Path(folder, name)))
            for name, rows in parts.items()
        }
        decode_seconds = time.perf_counter() - begun
        begun = time.perf_counter()
        built = seeded(train.seed, lambda: TwoLayerCNN(len(table.classes), side))
        network = built.to(device).to(memory_format=torch.channels_last)
        assert isinstance(network, TwoLayerCNN)
        validation = (pixels["val"], labels["val"].to(device)) if "val" in parts else None
        curves = descend(
            network,
            pixels["train"],
            labels["train"].to(device),
            Descent(settings.epochs, settings.batch_size, settings.lr, seed=train.seed),
            validation,
            on_epoch,
        )
        scores = {}
        for name in parts:
            predicted = forward(network, pixels[name], settings.batch_size).argmax(1).cpu().numpy()
            scores[name] = score(labels[name].numpy(), predicted, table.classes)
        del pixels, validation
    seconds = time.perf_counter() - begun
    conditions = {
        "route": "two-layer CNN from scratch",
        "options": {
            "epochs": settings.epochs,
            "batch_size": settings.batch_size,
            "lr": settings.lr,
            "optimizer": "adam",
            "input_size": side,
            "seed": train.seed,
        },
        "split": {"origin": split.origin, **{name: len(rows) for name, rows in parts.items()}},
        "decode_seconds": decode_seconds,
        "machine": machine_facts(device),
    }
    parameters = sum(parameter.numel() for parameter in network.parameters())
    return network, Result(scores, curves, seconds, parameters, conditions)


def _decode_all(images: ImageSource, rows: np.ndarray, side: int, file: Path) -> np.ndarray:
    """Pixels of the rows, uint8, shape (n, 3, side, side), backed by a file."""
    plain = Preprocessing(resize=(side, side), crop=(side, side))
    pixels = np.memmap(file, np.uint8, "w+", shape=(len(rows), 3, side, side))

    def decode_into(place: int) -> None:
        image = load_image(images, int(rows[place]), plain)
        if image.pixels is None:
            raise ImagesError(f"{images.table.ids[rows[place]]} cannot be used: {image.reason}.")
        pixels[place] = image.pixels.transpose(2, 0, 1)

    with ThreadPoolExecutor(available_cores()) as pool:
        for _ in pool.map(decode_into, range(len(rows))):
            pass
    return pixels
