"""Networks that are trained from random weights, each built from a few plain values."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor, nn

from featpipe.decode import Preprocessing
from featpipe.errors import BackboneError, SettingsError, UnknownNameError
from featpipe.registry import no_such

OWN = ("two-layer", "small")
WIDTHS = (32, 64, 128, 256)  # of the small network's stages
DROPOUT = 0.2  # of the small network
MOST_STAGES, MOST_CHANNELS, MOST_SIDE = 8, 4096, 4096


class TwoLayerCNN(nn.Module):
    """Two blocks of convolution, batch norm, ReLU and max pooling, then one linear layer.

    Takes normalised images, shape (batch, 3, side, side).

    Parameters
    ----------
    outputs : int
    side : int
        Of the square input, in pixels; at least 4.
    """

    def __init__(self, outputs: int, side: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *_block(3, 16), *_block(16, 32), nn.Flatten(), nn.Linear(32 * (side // 4) ** 2, outputs)
        )

    def forward(self, images: Tensor) -> Tensor:
        """Logits, shape (batch, outputs)."""
        logits: Tensor = self.layers(images)
        return logits


def _block(inputs: int, outputs: int) -> list[nn.Module]:
    convolution = nn.Conv2d(inputs, outputs, kernel_size=3, padding=1)
    # Pooling before ReLU gives the same numbers as after it, for a quarter of the work.
    return [convolution, nn.BatchNorm2d(outputs), nn.MaxPool2d(2), nn.ReLU()]


class SmallCNN(nn.Module):
    """Stages of two convolutions and a max pooling, the average over space, one linear layer.

    Each convolution is 3 x 3, followed by batch norm and ReLU. Takes normalised images, shape
    (batch, 3, side, side), of any side that halves once a stage.

    Parameters
    ----------
    outputs : int
    widths : tuple of int
        Channels of each stage.
    dropout : float
        Before the linear layer.
    """

    def __init__(self, outputs: int, widths: tuple[int, ...], dropout: float) -> None:
        super().__init__()
        pairs = zip((3, *widths), widths, strict=False)
        self.stages = nn.Sequential(*(_stage(before, width) for before, width in pairs))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(widths[-1], outputs)

    def forward(self, images: Tensor) -> Tensor:
        """Logits, shape (batch, outputs)."""
        features = self.flatten(self.pool(self.stages(images)))
        logits: Tensor = self.classifier(self.dropout(features))
        return logits


def _stage(inputs: int, outputs: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for before in (inputs, outputs):
        convolution = nn.Conv2d(before, outputs, kernel_size=3, padding=1, bias=False)
        nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
        layers += [convolution, nn.BatchNorm2d(outputs), nn.ReLU()]
    return nn.Sequential(*layers, nn.MaxPool2d(2))


@dataclass(frozen=True)
class Architecture:
    """What decides a network's shape, as plain values that stand in its file.

    Attributes
    ----------
    name : str
        ``two-layer``, ``small``, or a torchvision classification model's.
    outputs : int
        One a class.
    input_size : int
        Side of the square input, in pixels.
    widths : tuple of int
        Of the stages of ``small``; empty for all others.
    dropout : float or None
        None where the network has its own, or none.

    Raises
    ------
    UnknownNameError
        If there is no network of this name.
    SettingsError
        If it does not take one of the values.
    """

    name: str
    outputs: int
    input_size: int
    widths: tuple[int, ...] = ()
    dropout: float | None = None

    def __post_init__(self) -> None:
        check_name(self.name)
        if self.widths and self.name != "small":
            raise SettingsError(f"widths are those of small; {self.name} has its own.")
        if self.dropout is not None and self.name == "two-layer":
            raise SettingsError("two-layer has no dropout; small has.")
        if self.name == "small" and not self.widths:
            raise SettingsError("small needs the widths of its stages, such as 32,64,128,256.")
        if len(self.widths) > MOST_STAGES or not all(
            1 <= width <= MOST_CHANNELS for width in self.widths
        ):
            raise SettingsError(
                f"widths are {', '.join(map(str, self.widths))}; they must be at most "
                f"{MOST_STAGES} numbers from 1 to {MOST_CHANNELS}."
            )
        halved = 2 if self.name == "two-layer" else len(self.widths)
        if not 2**halved <= self.input_size <= MOST_SIDE:
            raise SettingsError(
                f"input_size is {self.input_size}; for {self.name} it must be from {2**halved} to "
                f"{MOST_SIDE}, since each of {halved} poolings halves it."
            )

    def build(self) -> nn.Module:
        """The network, with random weights of torch's global generator, in train mode."""
        if self.name == "two-layer":
            return TwoLayerCNN(self.outputs, self.input_size)
        if self.name == "small":
            return SmallCNN(self.outputs, self.widths, self.dropout or 0.0)
        from torchvision import models

        keywords = _keywords(self.name, self.input_size)
        if self.dropout is not None:
            keywords["dropout"] = self.dropout
        try:
            made: nn.Module = models.get_model(
                self.name, weights=None, num_classes=self.outputs, **keywords
            )
        except TypeError as error:
            if self.dropout is None:
                raise
            raise self._no_dropout() from error
        except (ValueError, AssertionError) as error:
            reason = str(error).splitlines()[0].rstrip(".!")
            raise BackboneError(
                f"{self.name} cannot be built for {self.input_size} pixels: {reason}. Try another "
                "--input-size."
            ) from error
        rates = {layer.p for layer in made.modules() if isinstance(layer, nn.Dropout)}
        if self.dropout is not None and self.dropout not in rates:
            raise self._no_dropout()  # some take any keyword and heed none
        return made

    def _no_dropout(self) -> SettingsError:
        return SettingsError(f"{self.name} takes no dropout; leave it out.")

    def preprocessing(self) -> Preprocessing:
        """What makes an image its input: squeezed to a square, normalised as is usual."""
        side = (self.input_size, self.input_size)
        return Preprocessing(resize=side, crop=side)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {**asdict(self), "widths": list(self.widths)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Architecture":
        """The inverse of `to_dict`.

        Raises
        ------
        TypeError
            If a value is missing, unknown, or of another type.
        """
        made = dict(values)
        made["widths"] = tuple(made.get("widths", ()))
        whole = [made.get("outputs"), made.get("input_size"), *made["widths"]]
        fine = all(type(number) is int for number in whole) and isinstance(made["name"], str)
        if not fine or not isinstance(made.get("dropout"), float | None):
            raise TypeError(f"{made} describes no network")
        return cls(**made)


def check_name(name: str) -> None:
    """Raise UnknownNameError if no network has this name."""
    if name in OWN:
        return
    from torchvision import models

    known = [*OWN, *models.list_models(module=models)]
    if name not in known:
        raise UnknownNameError(
            no_such("network", name, known) + " There are two-layer, small, and every torchvision "
            "classification model; `featpipe backbones torchvision` lists them."
        )


def own_size(name: str) -> int:
    """Side of the input, in pixels, that a network was made for."""
    if name in OWN:
        return 224 if name == "two-layer" else 128
    check_name(name)
    from torchvision import models

    return int(models.get_model_weights(name).DEFAULT.transforms().crop_size[0])


def _keywords(name: str, side: int) -> dict[str, Any]:
    if name in ("googlenet", "inception_v3"):  # one output, in training, too
        return {"aux_logits": False, "init_weights": True}
    if name.startswith("vit_"):
        return {"image_size": side}
    if name.startswith("maxvit"):
        return {"input_size": (side, side)}
    return {}
