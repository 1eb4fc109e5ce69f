"""Every torchvision classification model, by its own name."""

import contextlib
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import torch
from torch import nn

from featpipe.backbones import Backbone
from featpipe.decode import Preprocessing
from featpipe.errors import UnknownNameError, WeightsError
from featpipe.registry import no_such
from featpipe.weights import Uninitialised, apply_state_dict, is_weights_file, read_state_dict


def names() -> list[str]:
    """Names of all classification models."""
    from torchvision import models

    return list(models.list_models(module=models))


def load(name: str, weights: str, seed: int) -> Backbone:
    """Build `name` with downloaded weights, those of a local file, or random ones."""
    from torchvision import models

    if name not in names():
        raise UnknownNameError(
            no_such("torchvision classification model", name, names())
            + " `featpipe backbones` lists them; others are timm:NAME or python:MODULE:FACTORY."
        )
    enum = models.get_model_weights(name)
    preprocessing = _preprocessing(enum.DEFAULT)
    if weights == "random":
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = models.get_model(name, weights=None, **_keywords(name, preprocessing))
        return Backbone("torchvision", name, "random", model, preprocessing, seed, random=True)
    if is_weights_file(weights) or Path(weights).exists():
        state = read_state_dict(weights)
        with Uninitialised():
            model = models.get_model(name, weights=None, **_keywords(name, preprocessing))
        loaded = apply_state_dict(model, state, weights)
        return Backbone("torchvision", name, weights, model, preprocessing, loaded=loaded)
    if weights != "DEFAULT" and weights not in enum.__members__:
        raise WeightsError(
            f"{name} has no weights {weights!r}. There are: DEFAULT, "
            f"{', '.join(enum.__members__)}, random, or a .pth or .safetensors file."
        )
    chosen = enum[weights] if weights in enum.__members__ else enum.DEFAULT
    return Backbone(
        "torchvision", name, chosen.name, _download(name, chosen), _preprocessing(chosen)
    )


def weights_file(name: str) -> tuple[str, Path]:
    """Where the default weights of `name` come from, and the file torch keeps them in."""
    from torchvision import models

    url = models.get_model_weights(name).DEFAULT.url
    return url, Path(torch.hub.get_dir(), "checkpoints", Path(urlparse(url).path).name)


def _keywords(name: str, preprocessing: Preprocessing) -> dict[str, Any]:
    """What torchvision itself would pass for its own weights, where that is not the default."""
    if name in ("googlenet", "inception_v3"):
        return {"transform_input": True, "init_weights": True}
    if name.startswith("vit_"):
        return {"image_size": preprocessing.crop[0]}
    return {}


def _download(name: str, weights: Any) -> nn.Module:
    from torchvision import models

    file = Path(urlparse(weights.url).path).name
    folder = Path(torch.hub.get_dir(), "checkpoints")
    try:
        # torch announces downloads on stdout
        with contextlib.redirect_stdout(sys.stderr), Uninitialised():
            model: nn.Module = models.get_model(name, weights=weights)
    except Exception as error:  # urllib, ssl, the disk, a wrong hash: all end the same way
        raise WeightsError(
            f"The weights of {name} ({weights.name}) could not be downloaded: {error}.\n"
            f"  Fetch {weights.url} by other means and put it at {folder / file},\n"
            f"  or pass --weights PATH/TO/{file},\n"
            "  or --weights random to see the pipeline run without anything learnt."
        ) from error
    return model


def _preprocessing(weights: Any) -> Preprocessing:
    preset = weights.transforms()
    side = preset.resize_size
    height, width = (preset.crop_size * 2)[:2]
    return Preprocessing(
        resize=side[0] if len(side) == 1 else tuple(side),
        crop=(height, width),
        interpolation=preset.interpolation.value,
        mean=tuple(preset.mean),
        std=tuple(preset.std),
    )
