"""Reading, applying and identifying a network's weights; nothing is ever unpickled."""

import hashlib
import json
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from featpipe.durable import placing
from featpipe.errors import WeightsError

FILE_SUFFIXES = (".pth", ".pt", ".bin", ".safetensors")
_WRAPPERS = ("state_dict", "model_state_dict", "model", "state_dict_ema")
_PREFIXES = ("module.", "_orig_mod.", "model.")


@dataclass(frozen=True)
class Loaded:
    """What a state dict did not have, and had too much, for a network."""

    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()


_RANDOM = {
    Tensor.normal_,
    Tensor.uniform_,
    *(
        getattr(nn.init, f"{name}_")
        for name in (
            "normal", "uniform", "trunc_normal", "orthogonal", "sparse", "xavier_normal",
            "xavier_uniform", "kaiming_normal", "kaiming_uniform",
        )
    ),
}  # fmt: skip


class Uninitialised(TorchFunctionMode):
    """Within it, new parameters get no random values: weights are about to be loaded over them.

    For a large network that is most of the time that building it takes.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Leave out what draws random numbers into a parameter."""
        target = args[0] if args else (kwargs or {}).get("tensor")
        if func in _RANDOM and isinstance(target, nn.Parameter):
            return target
        return func(*args, **(kwargs or {}))


def is_weights_file(weights: str) -> bool:
    """Whether `weights` names a file rather than an enum member."""
    return weights.lower().endswith(FILE_SUFFIXES)


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """Read a state dict from ``.safetensors``, or from a torch file with ``weights_only=True``.

    A dictionary that wraps the state dict (``{"state_dict": ...}``) and the prefixes that
    DataParallel and compile put before every name are taken off.

    Raises
    ------
    WeightsError
        If there is no such file, or it holds anything but tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise WeightsError(f"There is no weights file {path}.")
    try:
        if path.suffix.lower() == ".safetensors":
            from safetensors.torch import load

            state: object = load(path.read_bytes())  # which, unlike a path, has any name
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise WeightsError(
            f"{path} holds more than tensors and is not opened, since unpickling it could run "
            "any code. Save its state_dict() alone, best as .safetensors."
        ) from error
    except Exception as error:  # both readers raise many things on a damaged file
        raise WeightsError(f"{path} cannot be read as weights: {error}") from error
    for wrapper in _WRAPPERS:
        if isinstance(state, Mapping) and isinstance(state.get(wrapper), Mapping):
            state = state[wrapper]
    if not isinstance(state, Mapping) or not state:
        raise WeightsError(f"{path} holds no state dict.")
    found = {str(name): value for name, value in state.items() if isinstance(value, Tensor)}
    if not found:
        raise WeightsError(f"{path} holds no tensors.")
    return found


def write_tensors(
    path: str | Path, tensors: Mapping[str, Tensor], metadata: dict[str, str]
) -> None:
    """Write a safetensors file, which is there whole or not at all."""
    from safetensors.torch import save

    plain = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    with placing(Path(path)) as temporary:
        temporary.write_bytes(save(plain, metadata))


def read_tensors(path: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read a safetensors file: its tensors, and its metadata.

    Raises
    ------
    WeightsError
        If there is no such file, or it is damaged or of another format.
    """
    from safetensors.torch import load

    path = Path(path)
    if not path.is_file():
        raise WeightsError(f"There is no file {path}.")
    try:
        content = path.read_bytes()  # which, unlike a path, has any name
        tensors = load(content)
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    except Exception as error:  # its reader raises many things on a damaged file
        raise WeightsError(f"{path} is not a safetensors file, or damaged: {error}") from error
    return tensors, header.get("__metadata__", {})


def apply_state_dict(
    model: nn.Module, state: dict[str, Tensor], origin: str, copy: bool = False
) -> Loaded:
    """Load what fits into `model` and report the rest; a wrong shape counts as missing.

    The model takes the tensors over, unless it is to `copy` them: somebody else may hold its own.

    Raises
    ------
    WeightsError
        If hardly anything fits: the weights are another architecture's.
    """
    own = model.state_dict()
    for prefix in _PREFIXES:
        if all(name.startswith(prefix) for name in state) and not set(own) & set(state):
            state = {name.removeprefix(prefix): value for name, value in state.items()}
    fitting = {
        name: value
        for name, value in state.items()
        if name in own and own[name].shape == value.shape
    }
    counters = {name for name in own if name.endswith("num_batches_tracked")}
    missing = tuple(name for name in own if name not in fitting and name not in counters)
    unexpected = tuple(name for name in state if name not in fitting)
    if len(fitting) < len(own) / 2:
        raise WeightsError(
            f"{origin} does not fit {type(model).__name__}: {len(fitting)} of {len(own)} tensors "
            f"match. Missing: {listing(missing)}. Unexpected: {listing(unexpected)}."
        )
    if copy or _is_tied(model):
        model.load_state_dict(fitting, strict=False)
    else:  # saves a copy of all weights, which takes longer than reading them
        model.load_state_dict(_apart(fitting, own), strict=False, assign=True)
    return Loaded(missing, unexpected)


def _is_tied(model: nn.Module) -> bool:
    """Whether a tensor has several names, of which a file may hold only one."""
    return any(
        len([*named()]) != len([*named(remove_duplicate=False)])
        for named in (model.named_parameters, model.named_buffers)
    )


def _apart(state: dict[str, Tensor], own: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of the model's own types, each in memory of its own."""
    seen, found = set(), {}
    for name, value in state.items():
        value = value.to(own[name].dtype).contiguous()
        if value.untyped_storage().data_ptr() in seen:
            value = value.clone()
        seen.add(value.untyped_storage().data_ptr())
        found[name] = value
    return found


def listing(names: tuple[str, ...] | list[str], most: int = 6) -> str:
    """The first names of a list, and how many more there are."""
    if not names:
        return "none"
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest


def digest_weights(tensors: Mapping[str, Tensor], structure: str = "") -> str:
    """128-bit BLAKE2b digest, as hex, of tensors with their names, types and shapes.

    `structure` describes the network where its name alone does not.
    """
    digest = hashlib.blake2b(structure.encode(), digest_size=16)
    for name, value in sorted(tensors.items()):
        if name.endswith("num_batches_tracked"):
            continue  # counts training steps; no feature depends on it
        value = value.detach().cpu().contiguous()
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
