"""What a dotted name means in the libraries that are installed, as data that can be compared between versions."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
from importlib import metadata
from typing import Any, Final, NamedTuple

ABSENT: Final = "of a library that is not installed"
GONE: Final = "gone"
MISSING: Final = object()


class Seen(NamedTuple):
    """What a name is in one environment.

    Attributes:
        kind: "module", "class", "function", the type of another value, GONE, or ABSENT.
        parameters: of a class or function, as they are written: ("x", "*", "dim=None"). Without annotations, which move
            often and break nobody.
        inside: digest of the source, if that was asked for and there is one.
    """

    kind: str
    parameters: tuple[str, ...] | None = None
    inside: str | None = None

    def __str__(self) -> str:
        return self.kind if self.parameters is None else f"{self.kind} ({', '.join(self.parameters)})"


def describe(name: str, *, with_source: bool = False) -> Seen:
    """What a name is here."""
    if importlib.util.find_spec(name.split(".")[0]) is None:
        return Seen(ABSENT)
    try:
        value = _resolve(name)
    except ImportError as error:  # versions that do not go together
        return Seen(f"of a library that cannot be imported: {error}")
    if value is MISSING:
        return Seen(GONE)
    if inspect.ismodule(value):
        return Seen("module")
    kind = "class" if inspect.isclass(value) else "function" if callable(value) else f"a {type(value).__name__}"
    return Seen(kind, _parameters(value), _digest(value) if with_source else None)


def version_of(name: str) -> str:
    """`transformers 5.23.0`: the library that a dotted name begins with; without the number where it has none."""
    module = name.split(".")[0]
    for distribution in metadata.packages_distributions().get(module, [module]):
        try:
            return f"{module} {metadata.version(distribution)}"
        except metadata.PackageNotFoundError:
            continue
    return module


def _resolve(name: str) -> Any:
    """Modules are imported as far as they go, the rest are attributes."""
    parts = name.split(".")
    value: Any = importlib.import_module(parts[0])
    for number, part in enumerate(parts[1:], 2):
        found = getattr(value, part, MISSING)
        if found is MISSING and inspect.ismodule(value):
            try:
                found = importlib.import_module(".".join(parts[:number]))
            except ImportError:
                return MISSING
        if found is MISSING:
            return MISSING
        value = found
    return value


def _parameters(value: Any) -> tuple[str, ...] | None:
    try:
        signature = inspect.signature(value)
    except (TypeError, ValueError):  # no function, or one without a signature
        return None
    return tuple(
        str(parameter.replace(annotation=inspect.Parameter.empty, default=_plain(parameter.default)))
        for parameter in signature.parameters.values()
    )


def _plain(default: Any) -> Any:
    """A default without addresses in memory."""
    if default is inspect.Parameter.empty or isinstance(default, str | int | float | bool | None | tuple):
        return default
    return type(default)


def _digest(value: Any) -> str | None:
    try:
        source = inspect.getsource(value)
    except (TypeError, OSError):
        return None
    return hashlib.sha256(source.encode()).hexdigest()[:12]
