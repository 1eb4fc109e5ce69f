"""Finds plug-ins: a file in one of the plug-in folders, or an installed entry point.

A plug-in's name is its file's stem with ``_`` written as ``-``. Another package adds one by
declaring an entry point in the group ``featpipe.<folder>``; its name wins over nothing: a
file of the same name is taken first.
"""

import difflib
import importlib
from collections.abc import Iterable
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType

from featpipe.errors import UnknownNameError

FOLDERS = ("images", "backbones", "runtimes", "engines", "heads", "recipes")


def _files(folder: str) -> list[str]:
    here = Path(__file__).parent / folder
    return sorted(
        path.stem.replace("_", "-") for path in here.glob("*.py") if not path.stem.startswith("_")
    )


def plugin_names(folder: str) -> list[str]:
    """Names of all plug-ins of a folder, without importing any of them."""
    installed = {point.name for point in entry_points(group=f"featpipe.{folder}")}
    return sorted(installed.union(_files(folder)))


def load_plugin(folder: str, name: str) -> ModuleType:
    """Import the plug-in `name` of `folder`.

    Raises
    ------
    UnknownNameError
        If there is none; the message lists the nearest names.
    """
    if name in _files(folder):
        return importlib.import_module(f"featpipe.{folder}.{name.replace('-', '_')}")
    for point in entry_points(group=f"featpipe.{folder}", name=name):
        plugin: ModuleType = point.load()
        return plugin
    raise UnknownNameError(no_such(f"{folder} plug-in", name, plugin_names(folder)))


def no_such(kind: str, name: str, known: Iterable[str]) -> str:
    """One sentence for an unknown name, with the nearest known ones."""
    known = list(known)
    by_lower = {item.lower(): item for item in known}
    found = difflib.get_close_matches(name.lower(), by_lower, n=5, cutoff=0.5)
    nearest = [by_lower[item] for item in found]
    if nearest:
        return f"There is no {kind} {name!r}. Did you mean {' or '.join(nearest)}?"
    if len(known) <= 30:
        return f"There is no {kind} {name!r}. There are: {', '.join(known) or 'none'}."
    return f"There is no {kind} {name!r} among the {len(known)} known ones."
