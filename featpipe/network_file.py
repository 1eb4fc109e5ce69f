"""A network that was trained here, as one safetensors file that says how to build it."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from featpipe.cnn import Architecture
from featpipe.decode import Preprocessing
from featpipe.errors import WeightsError
from featpipe.weights import (
    Uninitialised,
    apply_state_dict,
    listing,
    read_tensors,
    write_tensors,
)

FORMAT = "featpipe-network"
FORMAT_VERSION = "1"


@dataclass(frozen=True, eq=False)
class TrainedNetwork:
    """A network with all that is needed to use it.

    Attributes
    ----------
    model : nn.Module
        In eval mode; gives logits of shape (batch, classes) for normalised images.
    architecture : Architecture
    classes : tuple of str
    result : dict
        `Result.to_dict()` of its training: scores, curves, conditions.
    """

    model: nn.Module
    architecture: Architecture
    classes: tuple[str, ...]
    result: dict[str, Any] = field(default_factory=dict)

    @property
    def preprocessing(self) -> Preprocessing:
        """From a decoded picture to its input."""
        return self.architecture.preprocessing()


def save_network(path: str | Path, network: TrainedNetwork) -> None:
    """Write one safetensors file: the weights, and the rest as JSON metadata."""
    metadata = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "architecture": json.dumps(network.architecture.to_dict()),
        "preprocessing": json.dumps(network.preprocessing.to_dict()),
        "classes": json.dumps(network.classes),
        "result": json.dumps(network.result, allow_nan=False),
    }
    write_tensors(path, network.model.state_dict(), metadata)


def load_network(path: str | Path) -> TrainedNetwork:
    """Read what `save_network` wrote.

    Raises
    ------
    WeightsError
        If there is no such file, it is damaged, or it is none of featpipe's networks.
    """
    state, metadata = read_tensors(path)
    if metadata.get("format") != FORMAT:
        raise WeightsError(
            f"{path} is a safetensors file, but no network that featpipe train-scratch wrote. "
            "Weights of a known architecture are given as NAME@FILE, such as "
            f"resnet50@{Path(path).name}."
        )
    version = metadata.get("format_version")
    if version != FORMAT_VERSION:
        raise WeightsError(
            f"{path} has format version {version}; this featpipe reads {FORMAT_VERSION}. Install a "
            "newer featpipe."
        )
    try:
        architecture = Architecture.from_dict(json.loads(metadata["architecture"]))
        classes = tuple(json.loads(metadata["classes"]))
        result = dict(json.loads(metadata["result"]))
        if Preprocessing.from_dict(json.loads(metadata["preprocessing"])) != (
            architecture.preprocessing()
        ):
            raise ValueError("its preprocessing is not its architecture's")
        if len(classes) != architecture.outputs or not all(isinstance(c, str) for c in classes):
            raise ValueError(f"it has {architecture.outputs} outputs and {len(classes)} classes")
        with Uninitialised():
            model = architecture.build()
        loaded = apply_state_dict(model, state, str(path))
    except WeightsError:
        raise
    except Exception as error:  # nobody knows all that a strange file can lead to
        raise WeightsError(f"{path} is not a whole network: {error}") from error
    if loaded.missing or loaded.unexpected:
        raise WeightsError(
            f"{path} is not a whole network: it lacks {listing(loaded.missing)}, and has, unused, "
            f"{listing(loaded.unexpected)}."
        )
    return TrainedNetwork(model.eval(), architecture, classes, result)
