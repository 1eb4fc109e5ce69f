"""Networks trained here, as ``featpipe train-scratch`` leaves them: ``checkpoint:PATH``."""

from pathlib import Path

from featpipe.backbones import Backbone
from featpipe.errors import WeightsError
from featpipe.network_file import load_network


def names() -> list[str]:
    """None: what the user has cannot be listed."""
    return []


def load(name: str, weights: str, seed: int) -> Backbone:
    """Rebuild the network of a file, with its weights and its preprocessing.

    Its name becomes that of the architecture, its weights the file: where that lies now is said
    with ``--weights``.
    """
    if weights == "random":
        raise WeightsError(
            f"checkpoint:{name} has the weights it was trained to. For random ones, name its "
            "architecture, such as resnet18@random."
        )
    whole = f"{name}@{weights}"  # a path may have an @ in it
    path = name if weights == "DEFAULT" else whole if Path(whole).is_file() else weights
    network = load_network(path)
    return Backbone(
        "checkpoint", network.architecture.name, path, network.model, network.preprocessing
    )
