"""What JSON holds, compared with the fields of a dataclass: a number is a number and no word, and a list no table."""

from __future__ import annotations

import types
from collections.abc import Mapping
from dataclasses import fields
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from .shown import short

_Made = TypeVar("_Made")


def made_of(cls: type[_Made], values: Mapping[str, Any]) -> _Made:
    """The object of a dataclass with these fields, each of the type that its annotation says.

    Raises:
        ValueError: a field is missing, is not known, or is of another type; the message names it.
    """
    hints, known = get_type_hints(cls), {each.name: each for each in fields(cls)}  # type: ignore[arg-type]
    if unknown := sorted(values.keys() - known.keys()):
        raise ValueError(f"it has {short(unknown[0])}, which is not known")
    for name, value in values.items():
        if not fits(value, hints[name]):
            raise ValueError(f"{name} is {short(value)}")
    try:
        return cls(**values)
    except TypeError as error:
        raise ValueError(str(error).partition(" ")[2]) from None


def fits(value: Any, hint: Any) -> bool:
    """Whether a value is of an annotated type. An int is a float too; a bool is neither."""
    origin, inner = get_origin(hint), get_args(hint)
    if hint is Any:
        return True
    if origin in (Union, types.UnionType):
        return any(fits(value, each) for each in inner)
    if origin is Literal:
        return value in inner
    if hint in (int, float):
        return isinstance(value, int if hint is int else int | float) and not isinstance(value, bool)
    if hint in (None, type(None)):
        return value is None
    if origin is tuple:
        if not isinstance(value, tuple):
            return False
        if inner[-1] is Ellipsis:
            return all(fits(each, inner[0]) for each in value)
        return len(value) == len(inner) and all(map(fits, value, inner))
    if origin is not None and issubclass(origin, Mapping):
        return isinstance(value, Mapping) and all(
            fits(key, inner[0]) and fits(each, inner[1]) for key, each in value.items()
        )
    return isinstance(hint, type) and isinstance(value, hint)
