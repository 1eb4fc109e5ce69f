"""The Spec: everything that decides a feature's value."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, get_origin


@dataclass(frozen=True)
class Spec:
    """Two caches with equal Specs and equal image bytes hold equal rows, up to rounding.

    Attributes
    ----------
    backbone : str
        ``source:name``.
    weights, seed : str, int
        What to ask the backbone's source for; `weights_digests` are what counts.
    weights_digests : dict
        Layer name to BLAKE2b-128, hex, of the tensors that this layer needs and of no others.
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
    views : dict
        ``count``, ``transforms`` and ``seed`` of an image's views; empty where there is only the
        plain one.
    """

    backbone: str
    weights: str
    seed: int
    weights_digests: dict[str, str]
    random_weights: bool
    layers: dict[str, str]
    preprocessing: dict[str, Any]
    decoder: str
    precision: str
    dtype: str
    views: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; without views it is as it was before there were any."""
        values = asdict(self)
        if not self.views:
            del values["views"]
        return values

    @property
    def view_count(self) -> int:
        """Views of each image; at least 1."""
        return int(self.views.get("count", 1))

    def plain(self) -> "Spec":
        """The Spec of the plain views alone."""
        return replace(self, views={})

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Spec":
        """The inverse of `to_dict`.

        Raises
        ------
        TypeError
            If a value is missing, unknown, or of another type.
        """
        spec = cls(**values)
        for one in fields(cls):
            value, kind = getattr(spec, one.name), get_origin(one.type) or one.type
            right = type(value) is kind
            if right and one.name in ("layers", "weights_digests"):
                right = all(isinstance(text, str) for text in value.values())
            if right and one.name == "views":
                right = not value or _are_views(value)
            if not right:
                raise TypeError(f"{one.name} of the Spec is {value!r}")
        return spec

    def only(self, layers: Iterable[str]) -> "Spec":
        """The Spec of a cache that holds just these of its layers."""
        names = list(layers)
        return replace(
            self,
            layers={name: self.layers[name] for name in names},
            weights_digests={name: self.weights_digests[name] for name in names},
        )

    def differences(self, asked: "Spec") -> list[str]:
        """One line for each thing that differs: what this Spec has, what is asked for.

        Weights are compared layer by layer, by their digest; where the bytes are the same,
        their names do not matter.
        """
        mine, theirs = _flat(self._comparable(asked)), _flat(asked._comparable(self))
        return [
            f"{key}: cached {mine.get(key, 'nothing')}, requested {theirs.get(key, 'nothing')}"
            for key in sorted({*mine, *theirs})
            if mine.get(key) != theirs.get(key)
        ]

    def _comparable(self, other: "Spec") -> dict[str, Any]:
        values = self.to_dict()
        shared = set(self.weights_digests) & set(other.weights_digests)
        if all(self.weights_digests[layer] == other.weights_digests[layer] for layer in shared):
            del values["weights"], values["seed"]
        values["weights_digests"] = {layer: self.weights_digests[layer] for layer in shared}
        return values


def _are_views(values: dict[str, Any]) -> bool:
    kinds = {"count": int, "transforms": str, "seed": int}
    right = {name: type(value) for name, value in values.items()} == kinds
    return right and values["count"] >= 2 and values["seed"] >= 0


def _flat(values: dict[str, Any]) -> dict[str, Any]:
    """Dictionaries within it spread out; their own keys, such as layers, stay as they are."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        key = name.replace("_", " ")
        if isinstance(value, dict):
            flat.update({f"{key} {inner}": held for inner, held in value.items()})
        else:
            flat[key] = value
    return flat
