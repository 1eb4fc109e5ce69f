"""torchvision, imported without torch's compiler.

At import its RoIAlign asks the compiler for one function, and the compiler takes a second to
load, of every command. Here the compiler is loaded when that function is called. Modules that
need torchvision from the start import it from here.
"""

import importlib
import sys
from types import ModuleType
from typing import Any

COMPILER = "torch._dynamo"
UTILS = f"{COMPILER}.utils"


class _NotYet(ModuleType):
    """Stands for a module that is loaded once anything of it is asked for."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(_really(self.__name__), name)


def _really(name: str) -> ModuleType:
    _forget()
    return importlib.import_module(name)


def _forget() -> None:
    for name in (COMPILER, UTILS):
        if isinstance(sys.modules.get(name), _NotYet):
            del sys.modules[name]


def _is_compile_supported(device: Any) -> Any:
    return _really(UTILS).is_compile_supported(device)


def _import_torchvision() -> None:
    importlib.import_module("torch")
    if "torchvision" in sys.modules or COMPILER in sys.modules:
        return
    sys.modules[COMPILER], sys.modules[UTILS] = _NotYet(COMPILER), _NotYet(UTILS)
    sys.modules[UTILS].is_compile_supported = _is_compile_supported  # type: ignore[attr-defined]
    try:
        importlib.import_module("torchvision")
    finally:
        _forget()


_import_torchvision()

from torchvision.models import feature_extraction  # noqa: E402
from torchvision.transforms import InterpolationMode  # noqa: E402
from torchvision.transforms import functional as transforms  # noqa: E402

__all__ = ["InterpolationMode", "feature_extraction", "transforms"]
