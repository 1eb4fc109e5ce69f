"""Trees of dataclasses from plain JSON values, checked against their types."""

import types
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, Union, get_args, get_origin, get_type_hints

from featpipe.errors import ResultsError

DEEPEST = 50  # lists and tables within one another


def read(kind: Any, value: Any, where: str = "") -> Any:
    """A plain value as a type has it; names that are not known are passed over.

    Parameters
    ----------
    kind : type
        A dataclass, or anything made of lists, tuples, dicts and plain types.
    value : plain JSON value
    where : str
        What it is called in messages.

    Raises
    ------
    ResultsError
        If something in it is missing or of another type.
    """
    origin, inner = get_origin(kind), get_args(kind)
    if kind is Any:
        _check_depth(value, where)
        return value
    if origin in (Union, types.UnionType):
        if value is None and types.NoneType in inner:
            return None
        return read(next(one for one in inner if one is not types.NoneType), value, where)
    if is_dataclass(kind):
        return _read_fields(kind, _as(dict, value, where), where)
    if origin is list:
        some = enumerate(_as(list, value, where))
        return [read(inner[0], one, f"{where}[{number}]") for number, one in some]
    if origin is tuple:
        if len(_as(list, value, where)) != len(inner):
            raise ResultsError(f"{where} has {len(value)} values, not {len(inner)}.")
        return tuple(read(one, item, where) for one, item in zip(inner, value, strict=True))
    if origin is dict:
        pairs = _as(dict, value, where).items()
        return {name: read(inner[1], one, f"{where}.{name}") for name, one in pairs}
    if kind is float and type(value) is int:
        try:
            return float(value)
        except OverflowError:
            raise ResultsError(f"{where} is an integer that no float is as large as.") from None
    return _as(kind, value, where)


def _check_depth(value: Any, where: str) -> None:
    """Refuse what is nested more deeply than anything that was ever written."""
    level, depth = [value], 0
    while level:
        depth += 1
        if depth > DEEPEST:
            raise ResultsError(f"{where or 'The document'} is nested more than {DEEPEST} deep.")
        inner = [one for one in level if isinstance(one, dict | list)]
        level = [item for one in inner for item in (one.values() if isinstance(one, dict) else one)]


def _read_fields(kind: Any, values: dict[str, Any], where: str) -> Any:
    hints, made = get_type_hints(kind), {}
    for one in fields(kind):
        place = f"{where}.{one.name}".lstrip(".")
        if one.name in values:
            made[one.name] = read(hints[one.name], values[one.name], place)
        elif one.default is MISSING and one.default_factory is MISSING:
            raise ResultsError(f"{place} is missing from the results.")
    return kind(**made)


def _as(kind: type, value: Any, where: str) -> Any:
    if type(value) is not kind:
        raise ResultsError(
            f"{where or 'The document'} is {str(value)[:40]!r}, which is no {kind.__name__}."
        )
    return value
