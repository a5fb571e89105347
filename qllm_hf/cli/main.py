"""qllm-hf: the commands as one program. Starts without torch; a command imports what it needs when it runs."""

from __future__ import annotations

from typing import Annotated

import typer

from qllm_hf import __version__

from .bench import bench
from .card import card
from .chat import chat
from .demo import demo
from .env import env
from .evaluate import evaluate
from .export import export
from .generate import generate
from .import_ import import_
from .info import info
from .merge import merge
from .published import published
from .push import push
from .quantize import quantize
from .quickstart import quickstart
from .recommend import recommend
from .report import report
from .serve import serve
from .stats import stats
from .sweep import sweep
from .tasks import tasks

app = typer.Typer(
    name="qllm-hf",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
COMMANDS = (
    *(quickstart, demo, quantize, generate),
    *(evaluate, sweep, merge, report, tasks),
    *(recommend, published, stats, bench),
    *(serve, chat, import_, export),
    *(card, push),
    *(info, env),
)
for command in COMMANDS:
    app.command()(command)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit()


@app.callback()
def _program(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print it.")
    ] = False,
) -> None:
    """Quantize weights, activations and KV cache of causal language models.

    \b
    Examples:
      qllm-hf quickstart
      qllm-hf demo
      qllm-hf quantize path/to/model --scheme W4KV8 -o model-w4kv8
      qllm-hf import path/to/model-awq -o model-w4
      qllm-hf generate model-w4kv8 "Once upon a time"
      qllm-hf evaluate model-w4kv8 --tasks mini
      qllm-hf sweep path/to/model --schemes W4,KV8,W4KV8 -o sweep
      qllm-hf recommend path/to/model --memory 24GB --context 16k --measured sweep
      qllm-hf stats path/to/model --calibration text.jsonl
      qllm-hf serve model-w4kv8
      qllm-hf push model-w4kv8 owner/name --results sweep --dry-run
      qllm-hf export model-w4kv8 -o model-w4kv8-vllm --for vllm
    """


def main() -> None:
    """The program `qllm-hf`."""
    app()
