"""The library of C++ kernels for processors, reached with ctypes.

It is opened on first use and has no Python and no torch in it, so one file serves all versions of both. The environment
variable QLLM_HF_CPU, read at that moment, names the level of instructions to use instead of the best one, or turns the
kernels `off`.

Threads are those of the OpenMP that torch brings: two pools on the same cores would hinder each other. Where torch has
none, the kernels run on the thread that calls them.
"""

from __future__ import annotations

import ctypes
import functools
import json
import os
import struct
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent
LIBRARY, RECORD = "libqllm_cpu.so", "build.json"
SETTING, OFF = "QLLM_HF_CPU", "off"
ABI = 1

FLOAT32, BFLOAT16, FLOAT16 = 0, 1, 2  # qllm_type
_FAILURES = {1: "an argument that no kernel takes", 2: "not enough memory"}


class KernelError(ValueError):
    """A level that does not exist, a call that cannot be done, or a library that is not there."""


@dataclass(frozen=True)
class Status:
    """What there is of the library.

    Attributes:
        reason: why it cannot be used, or None.
        levels: instruction set levels that it has and this processor runs, best first.
        level: the one that is used.
        threads: where its threads come from, or why it has only one.
        build: compiler, levels and what was left out, as build.json says; empty without that file.
    """

    reason: str | None
    path: Path
    levels: tuple[str, ...] = ()
    level: str | None = None
    threads: str = ""
    build: dict[str, Any] = field(default_factory=dict)


class Library:
    """An open library.

    Raises:
        KernelError: it is not there, cannot be loaded, or has another interface than this file expects.
    """

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise KernelError(f"not built: {build_record(path.parent).get('reason', 'kernels/build.py never ran')}")
        try:
            self._library = library = ctypes.CDLL(str(path))
            found = library.qllm_abi()
        except (OSError, AttributeError) as error:
            raise KernelError(f"cannot be loaded: {error}") from None
        if found != ABI:
            raise KernelError(
                f"{path.name} has interface {found} and this version needs {ABI}: install or build it again"
            )
        library.qllm_levels.restype = library.qllm_level.restype = ctypes.c_char_p
        library.qllm_set_level.argtypes = [ctypes.c_char_p]
        library.qllm_set_parallel.argtypes = [ctypes.c_void_p]
        library.qllm_read_bandwidth.argtypes = [ctypes.c_void_p, ctypes.c_int64, ctypes.c_int]
        library.qllm_read_bandwidth.restype = ctypes.c_double
        # Takes the bytes of a call as they are. No declared arguments: checking them would take longer than the call.
        self.linear_call: Callable[[bytes], int] = library.qllm_linear_call
        self.path = path
        run, self.threads = _torch_threads()
        library.qllm_set_parallel(run)

    @property
    def levels(self) -> tuple[str, ...]:
        """Names of the levels that this build has and this processor runs, best first."""
        names: bytes = self._library.qllm_levels()
        return tuple(names.decode().split())

    @property
    def level(self) -> str:
        """The level that is used."""
        name: bytes = self._library.qllm_level()
        return name.decode()

    def set_level(self, name: str | None) -> None:
        """Use the named level from now on, or the best one again.

        Raises:
            KernelError: there is no such level here.
        """
        if self._library.qllm_set_level(None if name is None else name.encode()):
            raise KernelError(f"no level {name!r} here: allowed are {', '.join(self.levels)}")

    def read_bandwidth(self, address: int, size: int, threads: int) -> float:
        """Bytes per second at which so many threads read the memory at `address`: the limit of every kernel."""
        gigabytes: float = self._library.qllm_read_bandwidth(address, size, threads)
        return gigabytes * 1e9


@functools.cache
def _opened() -> Library | str:
    """The library, or why there is none. Asked once: it neither comes nor goes while a program runs."""
    setting = os.environ.get(SETTING) or None
    if setting == OFF:
        return f"turned off by {SETTING}={OFF}"
    try:
        library = Library(FOLDER / LIBRARY)
    except KernelError as error:
        return str(error)
    try:
        library.set_level(setting)
    except KernelError:
        allowed = ", ".join((*library.levels, OFF))
        raise KernelError(
            f"{SETTING}={setting!r} is no level of this build and processor: allowed are {allowed}"
        ) from None
    return library


def library() -> Library:
    """The library, opened on first use.

    Raises:
        KernelError: there is none (the message says why), or QLLM_HF_CPU names no level.
    """
    opened = _opened()
    if isinstance(opened, str):
        raise KernelError(opened)
    return opened


def missing() -> str | None:
    """Why there is no library, or None.

    Raises:
        KernelError: QLLM_HF_CPU names no level.
    """
    opened = _opened()
    return opened if isinstance(opened, str) else None


def status() -> Status:
    """What there is of the library. A wrong QLLM_HF_CPU is a reason here, not an error."""
    path, build = FOLDER / LIBRARY, build_record(FOLDER)
    try:
        opened = library()
    except KernelError as error:
        return Status(str(error), path, build=build)
    return Status(None, path, opened.levels, opened.level, opened.threads, build)


def build_record(folder: Path) -> dict[str, Any]:
    """What build.json in a folder says, or nothing."""
    try:
        record: dict[str, Any] = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    return record


def _torch_threads() -> tuple[int | None, str]:
    """The address of GOMP_parallel in the OpenMP that torch uses, and its name; or None, and why."""
    import torch

    name = "libtorch_cpu.dylib" if sys.platform == "darwin" else "libtorch_cpu.so"
    try:
        # A symbol is looked up in the library and then in those that it needs: that is torch's own OpenMP.
        run = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / name)).GOMP_parallel
    except (OSError, AttributeError):
        return None, "one: torch has no OpenMP that could be shared"
    address = ctypes.cast(run, ctypes.c_void_p).value
    return address, f"those of torch ({_file_of(address)})"


def _file_of(address: int | None) -> str:
    """Name of the file that a function at this address comes from."""

    class Found(ctypes.Structure):
        _fields_ = (
            ("file", ctypes.c_char_p),
            ("base", ctypes.c_void_p),
            ("name", ctypes.c_char_p),
            ("at", ctypes.c_void_p),
        )

    found = Found()
    ctypes.CDLL(None).dladdr(ctypes.c_void_p(address), ctypes.byref(found))
    return Path(os.fsdecode(found.file or b"OpenMP")).name


# The bytes of a call, as struct qllm_call in qllm_cpu.h has them: vectors, addresses of results, matrices, addresses of
# biases. Bytes, because they are made and handed over several times faster than ctypes fills a structure.

_MATRIX = struct.Struct("@PPPqqqqqqii").pack


def matrix(
    words: int,
    scale: int,
    zero_point: int,
    shape: tuple[int, int],
    strides: tuple[int, int, int],
    group_size: int,
    bits: int,
    scale_type: int,
) -> bytes:
    """A packed matrix of a call: addresses, [rows, length], strides of words, scales, zero points from row to row."""
    return _MATRIX(words, scale, zero_point, *shape, *strides, group_size, bits, scale_type)


def addresses(values: Sequence[int]) -> bytes:
    """Addresses, one after the other; 0 for nothing."""
    return struct.pack(f"@{len(values)}P", *values)


def vectors_and_results(count: int) -> Callable[..., bytes]:
    """Packs the head of a call with `count` results.

    It takes data, tokens, stride, type, bits, symmetric, 0, count, threads, and the address of each result.
    """
    return struct.Struct(f"@Pqqiiiiii{count}P").pack


def check(failure: int) -> None:
    """Raises KernelError for what a call returned, unless that is 0."""
    if failure:
        raise KernelError(f"the kernel failed: {_FAILURES.get(failure, failure)}")
