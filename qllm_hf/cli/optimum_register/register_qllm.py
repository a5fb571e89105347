"""`optimum-cli qllm VERB`: the commands of qllm-hf, for those who live in optimum-cli.

Installed as optimum/commands/register/register_qllm.py, where optimum-cli looks for plug-ins and imports each at
its start. Hence nothing heavy is imported here.
"""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Callable

from optimum.commands.base import BaseOptimumCLICommand, CommandInfo

from qllm_hf.cli import as_argparse
from qllm_hf.cli.bench import bench
from qllm_hf.cli.card import card
from qllm_hf.cli.evaluate import evaluate
from qllm_hf.cli.export import export
from qllm_hf.cli.import_ import import_
from qllm_hf.cli.info import info
from qllm_hf.cli.merge import merge
from qllm_hf.cli.published import published
from qllm_hf.cli.push import push
from qllm_hf.cli.quantize import quantize
from qllm_hf.cli.recommend import recommend
from qllm_hf.cli.report import report
from qllm_hf.cli.sweep import sweep
from qllm_hf.cli.tasks import tasks

PROGRAM = "optimum-cli qllm"
COMMANDS: tuple[tuple[Callable[..., None], str], ...] = (
    (quantize, "Quantize a model and save it."),
    (import_, "Take over a model that another library quantized."),
    (evaluate, "Measure what a model can do, quantized or not."),
    (sweep, "Measure many schemes on one model."),
    (merge, "Put the parts of a sweep together."),
    (report, "Write the report of a sweep."),
    (recommend, "Say which scheme to use, and why."),
    (published, "Show what the study published."),
    (bench, "Measure how fast schemes run here."),
    (card, "Write the card of a quantized model."),
    (push, "Push a quantized model with its evidence to the Hub."),
    (export, "Write a quantized model in another format."),
    (tasks, "List what can be measured."),
    (info, "Say what a model is, or what a scheme would make of it."),
)


def _subcommand(function: Callable[..., None], text: str) -> CommandInfo:
    """What optimum-cli wants to know of a command: its name, and a class that declares its options and runs it."""

    class Command(BaseOptimumCLICommand):  # type: ignore[misc]
        COMMAND = CommandInfo(name=function.__name__, help=text)

        @staticmethod
        def parse_args(parser: ArgumentParser) -> None:
            as_argparse.describe(parser, function, PROGRAM)

        def run(self) -> None:
            as_argparse.call(function, self.args)

    return CommandInfo(name=function.__name__, help=text, subcommand_class=Command)


class QllmCommand(BaseOptimumCLICommand):  # type: ignore[misc]
    """The group of all of them."""

    COMMAND = CommandInfo(name="qllm", help="Quantize weights, activations and KV cache of causal language models.")
    SUBCOMMANDS = tuple(_subcommand(function, text) for function, text in COMMANDS)


REGISTER_COMMANDS = [QllmCommand]
