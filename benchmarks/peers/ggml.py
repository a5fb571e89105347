"""llama.cpp's matrix products: ggml's CPU backend inside this process, through the library of llama-cpp-python.

ggml takes activations in float32, quantizes them to 8 bits on its own where weights have few bits, and can lay
weights out anew for the processor ("repack"), each of which is a buffer type of its CPU device.
"""

from __future__ import annotations

import ctypes
import importlib.util
import weakref
from ctypes import c_bool, c_char_p, c_float, c_int, c_int64, c_size_t, c_void_p
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .method import Method, NotHere

F32 = 0
TYPES = {"q8_0": (8, 8, 32), "q4_0": (2, 4, 32), "q4_1": (3, 4, 32), "q4_K": (12, 4, 32), "q3_K": (11, 3, 16),
         "q2_K": (10, 2, 16)}  # fmt: skip
"""Number in ggml's enum, bits of a code, weights per scale."""
SUCCESS = 0
NODES = 8
ROOM = 1 << 16  # bytes for the descriptions of a few tensors and a graph


_SILENT = ctypes.CFUNCTYPE(None, c_int, c_char_p, c_void_p)(lambda level, text, data: None)


class _InitParams(ctypes.Structure):
    _fields_ = (("mem_size", c_size_t), ("mem_buffer", c_void_p), ("no_alloc", c_bool))


class _Traits(ctypes.Structure):
    """The beginning of ggml_type_traits."""

    _fields_ = (
        ("type_name", c_char_p),
        ("blck_size", c_int64),
        ("blck_size_interleave", c_int64),
        ("type_size", c_size_t),
        ("is_quantized", c_bool),
        ("to_float", ctypes.CFUNCTYPE(None, c_void_p, c_void_p, c_int64)),
    )


SIGNATURES: dict[str, tuple[Any, ...]] = {
    "ggml_log_set": (None, c_void_p, c_void_p),
    "ggml_init": (c_void_p, _InitParams),
    "ggml_free": (None, c_void_p),
    "ggml_new_tensor_2d": (c_void_p, c_void_p, c_int, c_int64, c_int64),
    "ggml_mul_mat": (c_void_p, c_void_p, c_void_p, c_void_p),
    "ggml_new_graph_custom": (c_void_p, c_void_p, c_size_t, c_bool),
    "ggml_build_forward_expand": (None, c_void_p, c_void_p),
    "ggml_get_data": (c_void_p, c_void_p),
    "ggml_nbytes": (c_size_t, c_void_p),
    "ggml_quantize_chunk": (c_size_t, c_int, c_void_p, c_void_p, c_int64, c_int64, c_int64, c_void_p),
    "ggml_get_type_traits": (ctypes.POINTER(_Traits), c_int),
    "ggml_row_size": (c_size_t, c_int, c_int64),
    "ggml_backend_alloc_ctx_tensors_from_buft": (c_void_p, c_void_p, c_void_p),
    "ggml_backend_buffer_free": (None, c_void_p),
    "ggml_backend_tensor_set": (None, c_void_p, c_void_p, c_size_t, c_size_t),
    "ggml_backend_graph_compute": (c_int, c_void_p, c_void_p),
    "ggml_backend_cpu_buffer_type": (c_void_p,),
    "ggml_backend_buft_name": (c_char_p, c_void_p),
    "ggml_backend_reg_dev_get": (c_void_p, c_void_p, c_size_t),
    "ggml_backend_reg_get_proc_address": (c_void_p, c_void_p, c_char_p),
    "ggml_backend_dev_supports_op": (c_bool, c_void_p, c_void_p),
    "ggml_backend_cpu_init": (c_void_p,),
    "ggml_backend_cpu_reg": (c_void_p,),
    "ggml_backend_cpu_set_n_threads": (None, c_void_p, c_int),
}


@dataclass(frozen=True)
class Library:
    """ggml, loaded: its functions, its CPU backend and device, and its buffer types by name."""

    call: dict[str, Any]
    backend: int
    device: int
    buffers: dict[str, int]


@cache
def library() -> Library:
    """The libraries that llama-cpp-python ships, with as many threads as torch has.

    Raises:
        NotHere: it is not installed, or its libraries lack a function.
    """
    found = importlib.util.find_spec("llama_cpp")
    if found is None or found.origin is None:
        raise NotHere("not installed: llama-cpp-python")
    folder = Path(found.origin).parent / "lib"
    handles = [ctypes.CDLL(str(path), ctypes.RTLD_GLOBAL) for name in ("base", "cpu") for path in
               sorted(folder.glob(f"libggml-{name}*.so"))]  # fmt: skip
    call = {}
    for name, (result, *arguments) in SIGNATURES.items():
        holders = [handle for handle in handles if hasattr(handle, name)]
        if not holders:
            raise NotHere(f"not installed: no {name} in {folder}")
        call[name] = getattr(holders[0], name)
        call[name].restype, call[name].argtypes = result, arguments
    call["ggml_log_set"](_SILENT, None)
    backend, registry = call["ggml_backend_cpu_init"](), call["ggml_backend_cpu_reg"]()
    call["ggml_backend_cpu_set_n_threads"](backend, torch.get_num_threads())
    device = call["ggml_backend_reg_dev_get"](registry, 0)
    buffers = {"CPU": call["ggml_backend_cpu_buffer_type"]()}
    address = call["ggml_backend_reg_get_proc_address"](registry, b"ggml_backend_dev_get_extra_bufts")
    if address:
        extra = ctypes.CFUNCTYPE(ctypes.POINTER(c_void_p), c_void_p)(address)(device)
        for kind in extra or ():
            if not kind:
                break
            buffers[call["ggml_backend_buft_name"](kind).decode()] = kind
    return Library(call, backend, device, buffers)


class Memory:
    """A ggml context with the buffer of its tensors, freed with this object."""

    def __init__(self) -> None:
        self.call = library().call
        self.context = self.call["ggml_init"](_InitParams(ROOM, None, True))
        self.buffer: int | None = None
        self._free = weakref.finalize(self, _free, self.call, self.context, buffers := [])
        self._buffers = buffers

    def tensor(self, kind: int, columns: int, rows: int) -> int:
        """A new tensor [rows, columns]."""
        return int(self.call["ggml_new_tensor_2d"](self.context, kind, columns, rows))

    def allocate(self, buffer_name: str) -> None:
        """Memory of that type for all tensors so far that have none."""
        kind = library().buffers[buffer_name]
        buffer = self.call["ggml_backend_alloc_ctx_tensors_from_buft"](self.context, kind)
        if not buffer:
            raise NotHere(f"refuses: no memory of type {buffer_name}")
        self._buffers.append(buffer)


def _free(call: dict[str, Any], context: int, buffers: list[int]) -> None:
    for buffer in buffers:
        call["ggml_backend_buffer_free"](buffer)
    call["ggml_free"](context)


class Input:
    """Activations [M, K] as float32 in ggml's memory."""

    def __init__(self, x: Tensor) -> None:
        self.memory, self.tokens = Memory(), len(x)
        self.tensor = self.memory.tensor(F32, x.shape[1], len(x))
        self.memory.allocate("CPU")
        _set(self.tensor, x.float().contiguous())


class Weight:
    """A quantized weight [N, K] in a buffer of some type, and the products with it, one per input."""

    def __init__(self, raw: Tensor, kind: int, shape: tuple[int, int], buffer_name: str) -> None:
        self.raw, self.kind, self.shape, self.buffer_name = raw, kind, shape, buffer_name
        self.memory = Memory()
        self.tensor = self.memory.tensor(kind, shape[1], shape[0])
        self.memory.allocate(buffer_name)
        self.products: dict[int, tuple[Input, Memory, int, Tensor]] = {}
        probe = Input(torch.zeros(1, shape[1]))
        wanted = library().call["ggml_mul_mat"](probe.memory.context, self.tensor, probe.tensor)
        if not library().call["ggml_backend_dev_supports_op"](library().device, wanted):
            raise NotHere(f"refuses: no product of this type in memory of type {buffer_name}")
        _set(self.tensor, raw)

    def __deepcopy__(self, memo: dict[int, Any]) -> Weight:
        return Weight(self.raw, self.kind, self.shape, self.buffer_name)

    def nbytes(self) -> int:
        """Bytes of codes and scales."""
        return int(library().call["ggml_nbytes"](self.tensor))

    def product(self, x: Input) -> tuple[Input, Memory, int, Tensor]:
        """The graph of the product with that input, and its result float32 [M, N] as a tensor."""
        if id(x) not in self.products:
            call, memory = library().call, Memory()
            y = call["ggml_mul_mat"](memory.context, self.tensor, x.tensor)
            graph = call["ggml_new_graph_custom"](memory.context, NODES, False)
            call["ggml_build_forward_expand"](graph, y)
            memory.allocate("CPU")
            floats = x.tokens * self.shape[0]
            view = (c_float * floats).from_address(call["ggml_get_data"](y))
            result = torch.frombuffer(view, dtype=torch.float32).view(x.tokens, self.shape[0])
            self.products = {id(x): (x, memory, graph, result)}  # that of the last input
        return self.products[id(x)]


def _set(tensor: int, data: Tensor) -> None:
    library().call["ggml_backend_tensor_set"](tensor, data.data_ptr(), 0, data.numel() * data.element_size())


def prepare(weight: Tensor, type_name: str, buffer_name: str) -> Weight:
    """The weight, quantized by ggml without an importance matrix.

    Raises:
        NotHere: this build has no such buffer type, or K does not fit the type's blocks.
    """
    ggml, kind = library(), TYPES[type_name][0]
    if buffer_name not in ggml.buffers:
        raise NotHere(f"refuses: this build has memory of types {', '.join(ggml.buffers)}")
    rows, columns = weight.shape
    block = ggml.call["ggml_get_type_traits"](kind).contents.blck_size
    if columns % block:
        raise NotHere(f"refuses: {columns} inputs are no multiple of its block of {block}")
    raw = torch.empty(rows * ggml.call["ggml_row_size"](kind, columns), dtype=torch.uint8)
    source = weight.float().contiguous()
    ggml.call["ggml_quantize_chunk"](kind, source.data_ptr(), raw.data_ptr(), 0, rows, columns, None)
    return Weight(raw, kind, (rows, columns), buffer_name)


def meant(weight: Weight) -> Tensor:
    """The weight that its codes mean, float32 [N, K]."""
    made = torch.empty(weight.shape)
    traits = library().call["ggml_get_type_traits"](weight.kind).contents
    traits.to_float(weight.raw.data_ptr(), made.data_ptr(), made.numel())
    return made


def run(weight: Weight, x: Input) -> Tensor:
    """y float32 [M, N], in memory that the next product with the same weight writes again."""
    _, _, graph, result = weight.product(x)
    ggml = library()
    status = ggml.call["ggml_backend_graph_compute"](ggml.backend, graph)
    if status != SUCCESS:
        raise RuntimeError(f"ggml_backend_graph_compute returned {status}")
    return result


def methods() -> list[Method]:
    """All types in ordinary memory and in that of repacked weights."""
    return [
        Method(
            f"llama.cpp {name} {buffer_name}", "llama.cpp", "llama_cpp", "llama-cpp-python", bits, group_size, 8,
            partial(prepare, type_name=name, buffer_name=buffer_name), run, meant=meant, inputs=Input,
        )
        for name, (_, bits, group_size) in TYPES.items()
        for buffer_name in ("CPU", "CPU_REPACK")
    ]  # fmt: skip
