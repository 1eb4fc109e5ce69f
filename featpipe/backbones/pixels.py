"""The sanity baseline: the resized picture itself, 32 x 32 pixels scaled to [0, 1]."""

from torch import nn

from featpipe.backbones import Backbone
from featpipe.decode import Preprocessing
from featpipe.errors import UnknownNameError, WeightsError


def names() -> list[str]:
    """The one name there is."""
    return ["pixels"]


def load(name: str, weights: str, seed: int) -> Backbone:
    """A network of one layer, ``flatten``, that computes nothing."""
    if name != "pixels":
        raise UnknownNameError(f"There is only 'pixels', no {name!r}; --input-size sets its side.")
    if weights != "DEFAULT":
        raise WeightsError(f"pixels has no weights; {weights!r} means nothing to it.")
    plain = Preprocessing((32, 32), (32, 32), mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    model = nn.Sequential()
    model.add_module("flatten", nn.Flatten())
    return Backbone("pixels", "pixels", "DEFAULT", model, plain)
