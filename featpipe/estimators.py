"""Fitted scikit-learn estimators as bytes and back, without pickle.

The bytes are a skops archive. skops says which types it makes, but not that what is in them
is sound: compiled trees follow the numbers in them wherever they point. So trees travel as
plain arrays, and are made again from numbers that were checked.
"""

import copy
import io
import re
import zipfile
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.ensemble import GradientBoostingClassifier, GradientBoostingRegressor
from sklearn.ensemble._hist_gradient_boosting.common import PREDICTOR_RECORD_DTYPE
from sklearn.ensemble._hist_gradient_boosting.predictor import TreePredictor
from sklearn.tree._tree import Tree

from featpipe.errors import HeadError, MissingExtraError

# Python objects of scikit-learn's own that hold arrays and numbers and compute nothing when
# they are made; skops trusts the rest, such as the classifiers themselves, of its own accord.
TRUSTED = [
    "sklearn.calibration._CalibratedClassifier",
    "sklearn.calibration._SigmoidCalibration",
    "sklearn.neural_network._stochastic_optimizers.AdamOptimizer",
    "sklearn.neural_network._stochastic_optimizers.SGDOptimizer",
]
# They follow tables of trees, and tables are harder to check than trees.
REFUSED = (GradientBoostingClassifier, GradientBoostingRegressor)
PACKED = "featpipe packed"  # key of what stands for a tree
LEAF = -1  # in place of a child


def estimator_to_bytes(estimator: BaseEstimator) -> bytes:
    """A fitted estimator as bytes; equal ones give equal bytes.

    Raises
    ------
    HeadError
        If it holds what cannot be read again safely.
    MissingExtraError
        Without skops.
    """
    skops = _skops()
    packed = copy.deepcopy(estimator)
    try:
        _replace(packed, _pack)
        content = skops.dumps(packed)
        unknown = skops.get_untrusted_types(data=content)
    except Exception as error:  # whatever a type that skops does not know leads to
        raise HeadError(f"{_title(estimator)} cannot be saved without pickle: {error}") from error
    if others := sorted(set(unknown) - set(TRUSTED)):
        raise HeadError(
            f"{_title(estimator)} cannot be saved without pickle: it holds {', '.join(others)}. "
            "Other options of it may do without, or take another classifier."
        )
    return _canonical(content)


def estimator_from_bytes(
    content: bytes, kind: type[BaseEstimator], n_features: int
) -> BaseEstimator:
    """The inverse of `estimator_to_bytes`; runs no code but scikit-learn's.

    Parameters
    ----------
    content : bytes
    kind : type
        What it has to be.
    n_features : int
        What it has to have been fitted on.

    Raises
    ------
    HeadError
        If it is anything else, or would need a type that is not trusted.
    """
    skops = _skops()
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            if any(one.compress_type != zipfile.ZIP_STORED for one in archive.infolist()):
                raise ValueError("it is compressed")  # into whatever size
        unknown = sorted(set(skops.get_untrusted_types(data=content)) - set(TRUSTED))
        if unknown:
            raise ValueError(f"it holds {', '.join(unknown)}, which are not trusted")
        estimator = skops.loads(content, trusted=TRUSTED)
        if type(estimator) is not kind:
            raise ValueError(f"it is a {type(estimator).__name__}, not a {kind.__name__}")
        if estimator.n_features_in_ != n_features:
            raise ValueError(f"it was fitted on {estimator.n_features_in_} features")
        _replace(estimator, _unpack, n_features)
    except Exception as error:  # nobody knows all that a strange file can lead to
        raise HeadError(f"The saved {kind.__name__} cannot be used: {error}.") from error
    return estimator


def _skops() -> Any:
    try:
        import skops.io
    except ImportError as error:
        raise MissingExtraError(
            "Saving or loading a scikit-learn classifier needs skops: "
            "pip install 'featpipe[sklearn]'."
        ) from error
    return skops.io


def _title(estimator: BaseEstimator) -> str:
    return type(estimator).__name__


def _canonical(content: bytes) -> bytes:
    """The same archive without addresses of memory, chance names and the time of day."""
    target = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as source, zipfile.ZipFile(target, "w") as made:
        schema = source.read("schema.json").decode()
        numbers: dict[str, int] = {}
        files: dict[str, str] = {}

        def renumber(found: re.Match[str]) -> str:
            return f'"__id__": {numbers.setdefault(found[1], len(numbers) + 1)}'

        def rename(found: re.Match[str]) -> str:
            suffix = found[1].rpartition(".")[2]
            return f'"file": "{files.setdefault(found[1], f"{len(files)}.{suffix}")}"'

        schema = re.sub(r'"__id__": (\d+)', renumber, schema)
        schema = re.sub(r'"file": "([^"]+)"', rename, schema)
        for old, new in files.items():
            made.writestr(zipfile.ZipInfo(new), source.read(old))
        made.writestr(zipfile.ZipInfo("schema.json"), schema)
    return target.getvalue()


# ---- trees -------------------------------------------------------------------------------

Exchange = Callable[[Any, int, Any], Any]


def _replace(owner: Any, exchange: Exchange, most: int = 0) -> None:
    """Exchange whatever `exchange` gives another thing for, in an estimator and all it holds.

    `most` is how many features reach it at least.
    """
    if isinstance(owner, REFUSED):
        raise ValueError("take ensemble.HistGradientBoostingClassifier")
    if isinstance(owner, BaseEstimator) and hasattr(owner, "n_features_in_"):
        most = min(most, owner.n_features_in_)
    for key, value in _parts(owner):
        other = exchange(value, most, owner)
        if other is not value:
            if isinstance(owner, list | np.ndarray):
                owner[key] = other
            else:
                vars(owner)[key] = other
        else:
            _replace(value, exchange, most)


def _parts(owner: Any) -> Iterator[tuple[Any, Any]]:
    if isinstance(owner, list):
        yield from enumerate(owner)
    elif isinstance(owner, np.ndarray):
        if owner.dtype == object:
            yield from ((at, owner[at]) for at in np.ndindex(owner.shape))
    elif type(owner).__module__.startswith("sklearn.") and hasattr(owner, "__dict__"):
        yield from list(vars(owner).items())


def _pack(value: Any, most: int, owner: Any) -> Any:
    if type(value) is Tree:
        state = value.__getstate__()
        state["nodes"] = _clean(state["nodes"])
        return {PACKED: "tree", "classes": int(value.n_classes[0]), **state}
    if type(value) is TreePredictor:
        if value.nodes["is_categorical"].any():
            raise ValueError("a tree of it has categories")
        return {PACKED: "predictor", "nodes": _clean(value.nodes)}
    return value


def _clean(nodes: np.ndarray) -> np.ndarray:
    """The same records, with zeros between their fields in place of whatever was in memory."""
    clean = np.zeros(nodes.shape, nodes.dtype)
    for name in nodes.dtype.names or ():
        clean[name] = nodes[name]
    return clean


def _unpack(value: Any, most: int, owner: Any) -> Any:
    if not isinstance(value, dict) or PACKED not in value:
        return value
    nodes = value["nodes"]
    if value[PACKED] == "predictor":
        _check(nodes, nodes["is_leaf"] == 0, ("left", "right"), "feature_idx", most)
        if nodes.dtype != PREDICTOR_RECORD_DTYPE or nodes["is_categorical"].any():
            raise ValueError("a tree of it has categories")
        none = np.zeros((0, 8), np.uint32)
        return TreePredictor(nodes, none, none)
    children = ("left_child", "right_child")
    if len(nodes) != value["node_count"] or owner.n_features_in_ > most or value["classes"] < 1:
        raise ValueError("a tree of it contradicts itself")
    _check(nodes, nodes["left_child"] != LEAF, children, "feature", owner.n_features_in_)
    tree = Tree(owner.n_features_in_, np.array([value["classes"]], np.intp), 1)
    tree.__setstate__(value)
    return tree


def _check(
    nodes: np.ndarray, inner: np.ndarray, children: tuple[str, str], feature: str, most: int
) -> None:
    """Raise ValueError if following a tree leads out of it, or in a circle."""
    own = np.flatnonzero(inner)
    ahead = all((nodes[name][own] > own).all() for name in children)
    within = all((nodes[name][own] < len(nodes)).all() for name in children)
    used = nodes[feature][own]
    if nodes.ndim != 1 or not len(nodes) or not (ahead and within):
        raise ValueError("a tree of it leads nowhere")
    if (used < 0).any() or (used >= most).any():
        raise ValueError(f"a tree of it looks at more than {most} features")
