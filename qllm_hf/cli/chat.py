"""qllm-hf chat: talk to a model in the terminal."""

from __future__ import annotations

from typing import Annotated

import typer

from . import options
from .output import answering


def chat(
    model: options.Model,
    scheme: options.SchemeText = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Tokens to write at most in each turn.")] = 256,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 always takes the likeliest token.")] = 0.0,
    system: Annotated[str | None, typer.Option(metavar="TEXT", help="What the model is told first.")] = None,
    keep: options.Keep = None,
    override: options.Override = None,
    quantize_head: options.QuantizeHead = False,
    dtype: options.DtypeOption = options.Dtype.auto,
    device_map: options.DeviceMap = None,
    trust_remote_code: options.TrustRemoteCode = False,
    debug: options.Debug = False,
) -> None:
    """Talk to a model in the terminal, with the chat of transformers. !help says what else it knows.

    \b
    Examples:
      qllm-hf chat model-w4kv8
      qllm-hf chat reference --scheme W3
    """
    with answering(quiet=True, debug=debug):
        config = options.make_config(scheme, keep, override, quantize_head=quantize_head)

        from ..serving.running import hush, load_server, serving
        from ..serving.server import address_of, listen, require_serving
        from ..serving.talk import require_talking, talk

        require_serving()
        require_talking()
        server, served = load_server(
            model, config, dtype=dtype.value, device_map=device_map, trust_remote_code=trust_remote_code
        )
        hush(server)
        flags = [f"max_new_tokens={max_new_tokens}", f"do_sample={temperature > 0}"]
        flags += [f"temperature={temperature}"] if temperature > 0 else []
        bound = listen("127.0.0.1", 0)
        with serving(server, bound):
            talk(served, address_of(bound), flags, system)
