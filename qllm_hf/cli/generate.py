"""qllm-hf generate: let a model write, quantized or not."""

from __future__ import annotations

import contextlib
import sys
import time
from typing import Annotated, Any

import typer

from . import options
from .output import answer, answering, note, one_answer


def generate(
    model: options.Model,
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="What the text begins with.")] = "Once upon a time",
    scheme: options.SchemeText = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Tokens to write at most.")] = 64,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 always takes the likeliest token.")] = 0.0,
    seed: Annotated[int, typer.Option(help="For temperatures above 0.")] = 0,
    chat: Annotated[bool, typer.Option("--chat", help="PROMPT is a message: use the model's chat template.")] = False,
    check_finite: Annotated[
        bool, typer.Option("--check-finite", help="Stop at the first NaN or infinity, and say which layer made it.")
    ] = False,
    keep: options.Keep = None,
    override: options.Override = None,
    quantize_head: options.QuantizeHead = False,
    dtype: options.DtypeOption = options.Dtype.auto,
    device_map: options.DeviceMap = None,
    max_memory: options.MaxMemory = None,
    offload_folder: options.OffloadFolder = None,
    tensor_parallel: options.TensorParallel = False,
    trust_remote_code: options.TrustRemoteCode = False,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Let a model write.

    The text goes to stdout; speed, bytes of the weights and of the KV cache to stderr. Without --scheme the model
    runs as it is stored; with it, a float model is quantized while it is loaded.

    \b
    Examples:
      qllm-hf generate model-w4kv8 "Once upon a time"
      qllm-hf generate path/to/model "Once upon a time" --scheme W4KV4 --max-new-tokens 128
      qllm-hf generate model-w4kv8 --device-map auto --max-memory cpu=2GB --offload-folder offload
      torchrun --nproc-per-node 2 -m qllm_hf generate model-w4kv8 "Once upon a time" --tensor-parallel
    """
    with one_answer(tensor_parallel), answering(as_json=as_json, quiet=quiet, debug=debug):
        size = options.processes(tensor_parallel)
        where = options.placing(device_map, max_memory, offload_folder)
        config = options.make_config(scheme, keep, override, quantize_head=quantize_head)

        from transformers import LogitsProcessorList, set_seed

        from .. import finite
        from ..cache import cache_nbytes
        from ..loading import load_model, load_tokenizer
        from ..reporting.model import scheme_of
        from ..reporting.tensors import parameter_bytes
        from ..reporting.text import bytes_text
        from .streaming import TerminalStreamer

        tokenizer = load_tokenizer(model, trust_remote_code=trust_remote_code)
        encoded = _encode(tokenizer, prompt, chat)
        loaded: Any = load_model(
            model, config, dtype=dtype.value, tensor_parallel=size, trust_remote_code=trust_remote_code, **where
        )
        inputs = {key: encoded[key].to(loaded.device) for key in ("input_ids", "attention_mask")}
        set_seed(seed)
        streamed = sys.stdout.isatty() and not as_json
        begin = time.perf_counter()
        sampling = (
            {"temperature": temperature} if temperature > 0 else {"temperature": None, "top_p": None, "top_k": None}
        )
        with finite.check_finite(loaded) if check_finite else contextlib.nullcontext():
            output: Any = loaded.generate(
                **inputs,
                max_new_tokens=max_new_tokens,
                do_sample=temperature > 0,
                return_dict_in_generate=True,
                streamer=TerminalStreamer(tokenizer, skip_prompt=chat, skip_special_tokens=True) if streamed else None,
                logits_processor=LogitsProcessorList([finite.FiniteLogits()]),
                **sampling,
            )
        seconds = time.perf_counter() - begin
        tokens = output.sequences[0]
        start = inputs["input_ids"].shape[1]
        new_tokens = len(tokens) - start
        cache = getattr(output, "past_key_values", None)
        data = {
            "scheme": scheme_of(loaded),
            "prompt": prompt,
            "text": tokenizer.decode(tokens[start:], skip_special_tokens=True),
            "new_tokens": new_tokens,
            "seconds": round(seconds, 4),
            "tokens_per_second": round(new_tokens / seconds, 2),
            "processes": size,
            "weight_bytes": parameter_bytes(loaded),
            "weight_bytes_here": parameter_bytes(loaded, here=True),
            "cache_bytes": 0 if cache is None else cache_nbytes(cache),
            "cache_tokens": 0 if cache is None else cache.get_seq_length(),
        }
        if as_json or not streamed:
            shown = tokens[start:] if chat else tokens
            answer(data, tokenizer.decode(shown, skip_special_tokens=True), as_json=as_json)
        if not as_json and not quiet:
            note(
                f"{data['scheme']}: {new_tokens} tokens in {seconds:.2f} s ({data['tokens_per_second']} tokens/s), "
                f"weights {bytes_text(data['weight_bytes'])}, "
                f"KV cache {bytes_text(data['cache_bytes'])} for {data['cache_tokens']} tokens"
            )
            if size > 1:
                note(
                    f"{size} processes; in each: {bytes_text(data['weight_bytes_here'])} of the weights, and this cache"
                )


def _encode(tokenizer: Any, prompt: str, chat: bool) -> Any:
    """Token ids [1, T] and attention mask of the prompt.

    Raises:
        CheckpointError: --chat, and the tokenizer has no chat template.
    """
    if not chat:
        return tokenizer(prompt, return_tensors="pt")
    if not tokenizer.chat_template:
        from ..errors import CheckpointError

        raise CheckpointError("this tokenizer has no chat template, so --chat cannot work. Leave it out.")
    messages = [{"role": "user", "content": prompt}]
    return tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
