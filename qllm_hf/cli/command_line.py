"""A command as a user would type it: from the values of its options, whichever door they came in by."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Iterable, Mapping
from enum import Enum
from pathlib import Path
from typing import Any

from typer.models import ArgumentInfo

from ..builtin import BUILTIN


def words_of(
    verb: str, command: Callable[..., None], values: Mapping[str, Any], leave_out: Iterable[str] = ()
) -> list[str]:
    """The words of `qllm-hf VERB ...`, with every option that is not at its default.

    Of a folder or file only the name is said: the words are published with the model, and whole paths are nobody's
    business.
    """
    words = ["qllm-hf", verb]
    for parameter in inspect.signature(command, eval_str=True).parameters.values():
        value = values[parameter.name]
        if parameter.name in leave_out or value == parameter.default or value is None:
            continue
        _, info = typing.get_args(parameter.annotation)
        if isinstance(info, ArgumentInfo):
            words.append(_word(value))
            continue
        # in Annotated, typer keeps the first name where a default would be
        names = [name for name in (info.default, *(info.param_decls or ())) if isinstance(name, str)]
        option = next((name for name in names if name.startswith("--")), "--" + parameter.name.replace("_", "-"))
        if value is True:
            words.append(option)
        else:
            for each in value if isinstance(value, list) else [value]:
                words += [option, _word(each)]
    return words


def _word(value: Any) -> str:
    if isinstance(value, Enum):
        return str(value.value)
    if isinstance(value, Path):
        return value.name
    name, equals, right = str(value).partition("=")
    if equals:
        return f"{name}={_word(right)}"
    path = Path(str(value)).expanduser()
    return path.resolve().name if value not in BUILTIN and _exists(path) else str(value)


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # a text that can be no path, such as one that is too long
        return False
