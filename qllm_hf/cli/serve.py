"""qllm-hf serve: a model behind an address that OpenAI's clients understand."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Annotated

import typer

from . import options
from .output import UsageError, answering, note
from .stopping import keeps


def serve(
    model: options.Model,
    scheme: options.SchemeText = None,
    name: Annotated[
        str | None, typer.Option(metavar="NAME", help="By which clients ask for it; else the last part of MODEL.")
    ] = None,
    host: Annotated[str, typer.Option(metavar="ADDRESS", help="0.0.0.0 lets other machines in.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes any that is free.")] = 8000,
    batched: Annotated[
        bool,
        typer.Option("--continuous-batching", help="Decode requests together; the cache is then in floating point."),
    ] = False,
    cache_tokens: Annotated[
        int | None, typer.Option(min=256, help="Room for all requests together, with --continuous-batching.")
    ] = None,
    compiled: Annotated[bool, typer.Option("--compile", help="Compile decoding steps.")] = False,
    seed: Annotated[int | None, typer.Option(help="For sampling.")] = None,
    max_requests: Annotated[int, typer.Option(min=1, help="At a time; others are told to come back.")] = 64,
    max_requests_per_client: Annotated[int | None, typer.Option(min=1, help="Of these, from one address.")] = None,
    max_new_tokens: Annotated[
        int | None, typer.Option(min=1, help="Of one answer, whatever a client asks for.")
    ] = None,
    timeout: Annotated[float, typer.Option(min=1, metavar="SECONDS", help="For a request and its answer.")] = 600.0,
    api_key_file: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Keys, one on a line: clients have to give one. Also QLLM_API_KEY."),
    ] = None,
    keep: options.Keep = None,
    override: options.Override = None,
    quantize_head: options.QuantizeHead = False,
    dtype: options.DtypeOption = options.Dtype.auto,
    device_map: options.DeviceMap = None,
    max_memory: options.MaxMemory = None,
    offload_folder: options.OffloadFolder = None,
    trust_remote_code: options.TrustRemoteCode = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Serve a model to OpenAI's clients: chat completions, completions and responses.

    The server is that of transformers, held to this one model. Without --api-key-file or QLLM_API_KEY nobody is asked
    for a key, and there is no TLS: put it behind something that has it before other machines can reach it.

    \b
    Examples:
      qllm-hf serve model-w4kv8
      qllm-hf serve path/to/model --scheme W4KV8 --name mine --port 8080
      qllm-hf serve model-w4kv8 --continuous-batching --cache-tokens 65536
    """
    with answering(quiet=quiet, debug=debug):
        where = options.placing(device_map, max_memory, offload_folder)
        config = options.make_config(scheme, keep, override, quantize_head=quantize_head)

        from ..serving.keys import read_keys
        from ..serving.limits import Limits
        from ..serving.running import hush, load_server
        from ..serving.server import Engine, address_of, listen, require_serving

        if cache_tokens is not None and not batched:
            raise UsageError("--cache-tokens is about the cache that --continuous-batching shares. Give both.")
        require_serving()
        keys = read_keys(api_key_file)
        bound = listen(host, port)
        server, served = load_server(
            model,
            config,
            name=name,
            engine=Engine(batched=batched, cache_tokens=cache_tokens, compiled=compiled, seed=seed),
            limits=Limits(
                requests=max_requests,
                per_client=max_requests_per_client,
                new_tokens=max_new_tokens,
                seconds=timeout,
            ),
            keys=keys,
            dtype=dtype.value,
            trust_remote_code=trust_remote_code,
            **where,
        )
        if quiet:
            hush(server)
        note(f"model {served!r} at {address_of(bound)}/v1 (Ctrl-C ends it)")
        keeps("clients whose answers were not done have been told")
        with contextlib.suppress(KeyboardInterrupt):  # which uvicorn raises again when everything is closed
            server.run(sockets=[bound])
