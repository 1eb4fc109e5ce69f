"""Models of the timm library, by its own names (the ``timm`` extra)."""

import contextlib
import math
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from featpipe.backbones import Backbone
from featpipe.decode import Preprocessing
from featpipe.errors import MissingExtraError, UnknownNameError, WeightsError
from featpipe.registry import no_such
from featpipe.weights import (
    Loaded,
    Uninitialised,
    apply_state_dict,
    is_weights_file,
    read_state_dict,
)


def names() -> list[str]:
    """Names of all models and pretrained tags; empty where timm is not installed."""
    try:
        timm = _timm()
    except MissingExtraError:
        return []
    return [*timm.list_models(), *timm.list_pretrained()]


def load(name: str, weights: str, seed: int) -> Backbone:
    """Build `name` with its pretrained weights, those of a local file, or random ones."""
    timm = _timm()
    plain = name.removeprefix("hf_hub:")
    if plain == name and not timm.is_model(name.split(".")[0]):
        raise UnknownNameError(no_such("timm model", name, timm.list_models()))
    loaded, random = Loaded(), weights == "random"
    if random:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = timm.create_model(name, pretrained=False)
    elif is_weights_file(weights) or Path(weights).exists():
        state = read_state_dict(weights)
        with Uninitialised():
            model = timm.create_model(name, pretrained=False)
        loaded = apply_state_dict(model, state, weights)
    elif weights == "DEFAULT":
        try:
            with contextlib.redirect_stdout(sys.stderr), Uninitialised():
                model = timm.create_model(name, pretrained=True)
        except Exception as error:  # the hub client has many ways to fail
            raise WeightsError(
                f"timm could not fetch the weights of {name}: {error}.\n"
                "  Download the model's .safetensors by other means and pass --weights PATH,\n"
                "  or --weights random to see the pipeline run without anything learnt."
            ) from error
        tag = model.pretrained_cfg.get("tag")
        if tag and "." not in name:
            name = f"{name}.{tag}"  # the default tag may be another one tomorrow
    else:
        raise WeightsError(
            f"timm names its weights in the model: timm:{name.split('.')[0]}.{weights}. "
            "--weights takes a file, or random."
        )
    return Backbone("timm", name, weights, model, _preprocessing(timm, model), seed, loaded, random)


def _timm() -> ModuleType:
    try:
        import timm
        import timm.data
    except ImportError as error:
        raise MissingExtraError(
            "timm: backbones need timm: pip install 'featpipe[timm]'."
        ) from error
    return timm


def _preprocessing(timm: ModuleType, model: Any) -> Preprocessing:
    """timm's own evaluation transform: resize to the crop divided by its share, then crop."""
    config = timm.data.resolve_model_data_config(model)
    _, height, width = config["input_size"]
    resize: int | tuple[int, int] = math.floor(min(height, width) / config["crop_pct"])
    if config["crop_mode"] == "squash" or height != width:
        resize = (math.floor(height / config["crop_pct"]), math.floor(width / config["crop_pct"]))
    return Preprocessing(
        resize,
        (height, width),
        config["interpolation"],
        tuple(config["mean"]),
        tuple(config["std"]),
    )
