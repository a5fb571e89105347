"""The options of a typer command, given to an argparse parser: for programs whose plug-ins are argparse classes."""

from __future__ import annotations

import argparse
import inspect
import typing
from collections.abc import Callable
from enum import Enum
from types import NoneType
from typing import Any

from typer.models import ArgumentInfo

Command = Callable[..., None]


def describe(parser: argparse.ArgumentParser, command: Command, program: str) -> None:
    """Give a parser the help text and all options of a command; `program` replaces `qllm-hf` in it."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    text = inspect.getdoc(command) or ""
    parser.description = text.replace("\b\n", "").replace("qllm-hf", program)
    for parameter in _parameters(command):
        _add(parser, parameter, program)


def call(command: Command, values: argparse.Namespace) -> None:
    """Run the command with what a parser of `describe` has read."""
    command(**{parameter.name: getattr(values, parameter.name) for parameter in _parameters(command)})


def _parameters(command: Command) -> list[inspect.Parameter]:
    return list(inspect.signature(command, eval_str=True).parameters.values())


def _add(parser: argparse.ArgumentParser, parameter: inspect.Parameter, program: str) -> None:
    kind, info = typing.get_args(parameter.annotation)
    kind = next((part for part in typing.get_args(kind) if part is not NoneType), kind)
    options: dict[str, Any] = {"help": (info.help or "").replace("%", "%%").replace("qllm-hf", program)}
    if info.metavar:
        options["metavar"] = info.metavar
    if isinstance(info, ArgumentInfo):
        parser.add_argument(parameter.name, **options)
        return
    if kind is bool:
        options["action"] = "store_true"
    elif typing.get_origin(kind) is list:
        options["action"] = "append"
    else:
        options["type"] = kind
        if issubclass(kind, Enum):
            options["choices"] = list(kind)
            options["metavar"] = "|".join(each.value for each in kind)
    # in Annotated, typer keeps the first name where a default would be
    names = [name for name in (info.default, *(info.param_decls or ())) if isinstance(name, str)]
    names = names or ["--" + parameter.name.replace("_", "-")]
    if parameter.default is inspect.Parameter.empty:
        options["required"] = True
    else:
        options["default"] = parameter.default
    parser.add_argument(*names, dest=parameter.name, **options)
