"""llama.cpp on a checkpoint of a Llama: the same weights as GGUF, quantized by llama.cpp, run by llama-cpp-python."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor
from transformers import AutoConfig

from .interleaved import Sample, timed
from .method import need

BATCH = 512
ROOM = 512  # tokens that a context can hold beyond what it is filled with
LAYER_NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
NAMES = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}


def gguf_name(name: str) -> str:
    """llama.cpp's name of a parameter of transformers' Llama."""
    stem = name.removesuffix(".weight")
    if stem in NAMES:
        return f"{NAMES[stem]}.weight"
    _, _, number, layer = stem.split(".", 3)
    return f"blk.{number}.{LAYER_NAMES[layer]}.weight"


def rotary_order(weight: Tensor, heads: int) -> Tensor:
    """Rows of q or k in the order of llama.cpp, which rotates neighbours where transformers rotates halves."""
    return weight.view(heads, 2, -1, weight.shape[-1]).transpose(1, 2).reshape_as(weight)


def write_gguf(folder: Path, target: Path) -> None:
    """The checkpoint as GGUF in float16, norms in float32, without a vocabulary."""
    gguf = need("gguf")
    config = AutoConfig.from_pretrained(folder)
    writer = gguf.GGUFWriter(target, "llama")
    writer.add_context_length(1 << 16)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("no_vocab")
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118 (it is no mapping)
                weight = file.get_tensor(name)
                layer = name.split(".")[-2]
                if layer in heads:
                    weight = rotary_order(weight, heads[layer])
                dtype = np.float32 if weight.dim() == 1 else np.float16
                writer.add_tensor(gguf_name(name), weight.float().numpy().astype(dtype))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


class LlamaCpp:
    """A model of llama.cpp, on as many threads as torch has."""

    detail = "head and embeddings quantized too; a GGUF of the same weights"

    def __init__(self, folder: Path, work: Path, file_type: str) -> None:
        self.library = need("llama_cpp")
        self._silence()
        path = work / f"{folder.name}-{file_type}.gguf"
        if not path.exists():
            self._quantize(folder, path, getattr(self.library, f"LLAMA_FTYPE_MOSTLY_{file_type}"))
        self.vocabulary = AutoConfig.from_pretrained(folder).vocab_size
        self.model = self.library.llama_model_load_from_file(
            str(path).encode(), self.library.llama_model_default_params()
        )
        if not self.model:
            raise RuntimeError(f"llama.cpp cannot load {path.name}")
        self.context: Any = None
        self.last = 1

    def _silence(self) -> None:
        kind = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
        self.callback = kind(lambda level, text, data: None)
        self.library.llama_log_set(self.callback, None)

    def _quantize(self, folder: Path, path: Path, file_type: int) -> None:
        floats, partial = path.with_suffix(".f16"), path.with_suffix(".partial")
        write_gguf(folder, floats)
        options = self.library.llama_model_quantize_default_params()
        options.ftype, options.nthread = file_type, torch.get_num_threads()
        status = self.library.llama_model_quantize(str(floats).encode(), str(partial).encode(), ctypes.byref(options))
        floats.unlink()
        if status:
            raise RuntimeError(f"llama_model_quantize returned {status}")
        partial.replace(path)

    def _start(self, tokens: int) -> None:
        if self.context is not None:
            self.library.llama_free(self.context)
        options = self.library.llama_context_default_params()
        options.n_ctx, options.n_batch = tokens + ROOM, BATCH
        options.n_threads = options.n_threads_batch = torch.get_num_threads()
        self.context = self.library.llama_init_from_model(self.model, options)
        if not self.context:
            raise RuntimeError(f"llama.cpp has no context of {tokens + ROOM} tokens")

    def _feed(self, ids: list[int]) -> Tensor:
        """Logits float32 [V] after these tokens, in memory that the next call writes again."""
        for start in range(0, len(ids), BATCH):
            part = ids[start : start + BATCH]
            tokens = (ctypes.c_int32 * len(part))(*part)  # the batch only points at them
            batch = self.library.llama_batch_get_one(tokens, len(part))
            status = self.library.llama_decode(self.context, batch)
            if status:
                raise RuntimeError(f"llama_decode returned {status}")
        found = self.library.llama_get_logits_ith(self.context, -1)
        view = (ctypes.c_float * self.vocabulary).from_address(ctypes.addressof(found.contents))
        return torch.frombuffer(view, dtype=torch.float32)

    def logits(self, prompt: list[int], forced: list[int]) -> Tensor:
        self._start(len(prompt) + len(forced))
        self._feed(prompt)
        return torch.stack([self._feed([token]).clone() for token in forced])

    def prefill(self, tokens: int) -> float:
        self._start(tokens)
        ids = torch.randint(self.vocabulary, (tokens,)).tolist()
        return timed(lambda: self._feed(ids)).seconds

    def fill(self, tokens: int) -> None:
        self.prefill(tokens)  # its cache cannot be written otherwise

    def decode(self, tokens: int) -> list[Sample]:
        return [timed(self._step) for _ in range(tokens)]

    def _step(self) -> None:
        self.last = int(self._feed([self.last]).argmax())
