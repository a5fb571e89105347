"""qllm-hf demo: a page in the browser on which anyone can try schemes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from . import options
from .output import answering


def demo(
    model: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[MODEL]...",
            help="Models to offer beside 'reference': folders, or ids on the Hub.",
            show_default=False,
        ),
    ] = None,
    results: Annotated[
        list[Path] | None,
        typer.Option(metavar="DIR", help="Results to show, from `qllm-hf sweep`. Repeatable."),
    ] = None,
    memory: Annotated[
        str, typer.Option(metavar="SIZE", help="Of weights that the page may hold, such as 4GB or 16GiB.")
    ] = "4GB",
    no_hub: Annotated[
        bool, typer.Option("--no-hub", help="Visitors cannot name models on the Hub: nothing is downloaded.")
    ] = False,
    no_push: Annotated[bool, typer.Option("--no-push", help="Visitors cannot push to the Hub.")] = False,
    host: Annotated[
        str, typer.Option(metavar="ADDRESS", help="0.0.0.0 lets other machines reach the page.")
    ] = "127.0.0.1",
    port: Annotated[int | None, typer.Option(min=1, max=65535, help="By default the first free one from 7860.")] = None,
    device_map: options.DeviceMap = None,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Serve a page: compare schemes in a chat, choose one, look inside a model, publish it.

    Visitors can use the models named here and, unless --no-hub is given, any on the Hub that fits in --memory. They
    cannot read other files of this machine, and do not see each other's texts. The same can be asked through an API;
    with gradio[mcp] installed, also through an MCP server.

    \b
    Examples:
      qllm-hf demo
      qllm-hf demo path/to/model --results sweep
      qllm-hf demo --no-hub --host 0.0.0.0 --port 8080
    """
    with answering(quiet=quiet, debug=debug):
        from ..advice.quantities import parse_memory
        from ..demo.app import launch, require_gradio
        from ..demo.host import make_host
        from ..demo.limits import Limits

        require_gradio()
        limits = Limits(memory_bytes=parse_memory(memory), hub=not no_hub, pushes=not no_push)
        page = make_host(model or (), results or (), limits, device_map)
        launch(page, quiet=quiet, server_name=host, server_port=port)
