"""Heads: classifiers of features. Each file here is one, a scikit-learn classifier.

A plug-in has one class ``Head``, derived from `featpipe.head.Head`, whose constructor's
parameters are its options.
"""

import inspect
from collections.abc import Mapping
from typing import Any

from featpipe.errors import HeadError, UnknownNameError
from featpipe.head import Head
from featpipe.registry import load_plugin, no_such
from featpipe.settings import TrainSettings


def make_head(name: str, options: dict[str, Any] | None = None) -> Head:
    """Build an unfitted head by name.

    Parameters
    ----------
    name : str
        A plug-in's; or ``PLUGIN:REST``, where the plug-in has a function
        ``make(rest, options)`` that builds one of many heads.
    options : dict

    Raises
    ------
    UnknownNameError
        If there is no such head.
    HeadError
        If it does not take one of the options.
    """
    name, colon, rest = name.partition(":")
    plugin = load_plugin("heads", name)
    if hasattr(plugin, "make"):
        made: Head = plugin.make(rest, options or {})
        return made
    if colon:
        raise UnknownNameError(f"The head {name} takes nothing after a colon, such as {rest!r}.")
    kind: type[Head] = plugin.Head
    known = list(inspect.signature(kind).parameters)
    for option in options or {}:
        if option not in known:
            raise HeadError(
                f"{no_such(f'option of {name}', option, known)} It takes {', '.join(known)}."
            )
    return kind(**(options or {}))


def build_head(name: str, settings: TrainSettings, options: Mapping[str, Any]) -> Head:
    """An unfitted head, given the run's seed and device where it has a use for them.

    Raises
    ------
    HeadError
        If it does not take one of the options, or not this value.
    """
    unfitted = make_head(name, dict(options))
    shared = {"seed": settings.seed, "device": settings.device}
    own = {key: value for key, value in shared.items() if key in unfitted.get_params()}
    unfitted.set_params(**{key: value for key, value in own.items() if key not in options})
    unfitted.validate_options()
    return unfitted
