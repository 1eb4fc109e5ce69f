"""The user's own network: ``python:package.module:factory``."""

import importlib
import os
import sys

import torch
from torch import nn

from featpipe.backbones import Backbone
from featpipe.decode import Preprocessing
from featpipe.errors import BackboneError
from featpipe.weights import Loaded, apply_state_dict, is_weights_file, read_state_dict


def names() -> list[str]:
    """None: what the user has cannot be listed."""
    return []


def load(name: str, weights: str, seed: int) -> Backbone:
    """Call the factory; it returns a network, or a network and its `Preprocessing`.

    Without a `Preprocessing`, ImageNet's usual one at 224 pixels is taken. The folder the
    command runs in can be imported from.
    """
    module_name, colon, factory_name = name.partition(":")
    if not (colon and module_name and factory_name) or module_name.startswith("."):
        raise BackboneError(f"Write python:package.module:factory, not python:{name}.")
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        factory = getattr(importlib.import_module(module_name), factory_name)
    except Exception as error:  # importing runs the user's code
        raise BackboneError(
            f"{name} cannot be imported: {type(error).__name__}: {error}."
        ) from error
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            made = factory()
        except Exception as error:
            raise BackboneError(f"{name}() failed: {type(error).__name__}: {error}") from error
    pair = made if isinstance(made, tuple) and len(made) == 2 else (made, Preprocessing())
    model, preprocessing = pair
    if not isinstance(model, nn.Module) or not isinstance(preprocessing, Preprocessing):
        raise BackboneError(
            f"{name}() returned {type(model).__name__}; it must return a torch nn.Module, or a "
            "pair of one and a featpipe.Preprocessing."
        )
    loaded = Loaded()
    if is_weights_file(weights):
        loaded = apply_state_dict(model, read_state_dict(weights), weights, copy=True)
    elif weights not in ("DEFAULT", "random"):
        raise BackboneError(f"{name} takes a weights file, random, or nothing, not {weights!r}.")
    return Backbone(
        "python", name, weights, model, preprocessing, seed, loaded, random=weights == "random",
    )  # fmt: skip
