"""The Spec: everything that decides a feature's value."""

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Spec:
    """Two caches with equal Specs and equal image bytes hold equal rows, up to rounding.

    Attributes
    ----------
    backbone : str
        ``source:name``.
    weights : str
        What the weights were called; `weights_digest` is what counts.
    weights_digest : str
        BLAKE2b-128, hex, of the tensors that the layers need and of no others.
    random_weights : bool
        True if nothing was ever learnt.
    layers : dict
        Layer name to pooling.
    preprocessing : dict
        `Preprocessing.to_dict()`.
    decoder : str
        How bytes become pixels.
    precision : str
        Of the forward pass.
    dtype : str
        Of the stored features.
    """

    backbone: str
    weights: str
    weights_digest: str
    random_weights: bool
    layers: dict[str, str]
    preprocessing: dict[str, Any]
    decoder: str
    precision: str
    dtype: str

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Spec":
        """The inverse of `to_dict`."""
        return cls(**values)

    def differences(self, asked: "Spec") -> list[str]:
        """One line for each thing that differs: what this Spec has, what is asked for."""
        mine, theirs = _flat(self.to_dict()), _flat(asked.to_dict())
        # The same bytes under another name are the same weights.
        mine.pop("weights"), theirs.pop("weights")
        return [
            f"{key.replace('_', ' ')}: cached {mine.get(key, 'none')}, "
            f"requested {theirs.get(key, 'none')}"
            for key in sorted({*mine, *theirs})
            if mine.get(key) != theirs.get(key)
        ]


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat.update(_flat(value, f"{prefix}{key} "))
        else:
            flat[prefix + key] = value
    return flat
