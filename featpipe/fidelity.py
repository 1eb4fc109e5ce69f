"""How far the features of a shortcut are from the reference: float32, eager, exact decoding."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

COSINE = 0.999  # the least that a shortcut must reach, for every image


@dataclass(frozen=True)
class Fidelity:
    """What was measured on a few of the user's own images, over all layers.

    Attributes
    ----------
    images : int
    cosine : float
        The lowest between an image's features and their reference.
    error : float
        The largest difference of a value, as a share of its row's largest reference value.
    """

    images: int
    cosine: float
    error: float

    @property
    def margin(self) -> float:
        """How many times nearer to the reference than the limit."""
        return (1 - COSINE) / max(1 - self.cosine, 1e-12)

    def __str__(self) -> str:
        return (
            f"cosine to float32 and exact decoding at least {self.cosine:.5f}, largest error "
            f"{100 * self.error:.2g} % ({self.images} images)"
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Any) -> "Fidelity | None":
        """The inverse of `to_dict`; None if a file says something else there."""
        try:
            return cls(int(values["images"]), float(values["cosine"]), float(values["error"]))
        except (KeyError, TypeError, ValueError):
            return None

    def worse(self, other: "Fidelity | None") -> "Fidelity":
        """What holds for both."""
        if other is None:
            return self
        return Fidelity(
            self.images + other.images,
            min(self.cosine, other.cosine),
            max(self.error, other.error),
        )


def compare_features(
    reference: Mapping[str, np.ndarray], found: Mapping[str, np.ndarray]
) -> Fidelity:
    """Compare features of the same images, layer by layer; each of shape (images, ...)."""
    images, cosine, error = 0, 1.0, 0.0
    for layer, rows in reference.items():
        right = rows.reshape(len(rows), -1).astype(np.float64)
        other = found[layer].reshape(len(rows), -1).astype(np.float64)
        images = len(rows)
        lengths = np.linalg.norm(right, axis=1) * np.linalg.norm(other, axis=1)
        same = (right == other).all(axis=1)  # of zeros there is no angle
        with np.errstate(divide="ignore", invalid="ignore"):
            cosines = np.where(same, 1.0, (right * other).sum(axis=1) / lengths)
        scale = np.maximum(np.abs(right).max(axis=1), np.finfo(np.float32).tiny)
        gaps = np.abs(right - other).max(axis=1) / scale
        # What is not finite has no likeness at all.
        cosine = min(cosine, float(np.nan_to_num(cosines, nan=-1.0).min()))
        error = max(error, float(np.nan_to_num(gaps, nan=np.finfo(np.float64).max).max()))
    return Fidelity(images, min(cosine, 1.0), error)
