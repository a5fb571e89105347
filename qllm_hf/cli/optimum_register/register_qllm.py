"""`optimum-cli qllm quantize | evaluate | tasks | info`: the commands of qllm-hf, for those who live in optimum-cli.

Installed as optimum/commands/register/register_qllm.py, where optimum-cli looks for plug-ins and imports each at
its start. Hence nothing heavy is imported here.
"""

from __future__ import annotations

from argparse import ArgumentParser

from optimum.commands.base import BaseOptimumCLICommand, CommandInfo

from qllm_hf.cli import as_argparse
from qllm_hf.cli.evaluate import evaluate
from qllm_hf.cli.info import info
from qllm_hf.cli.quantize import quantize
from qllm_hf.cli.tasks import tasks

PROGRAM = "optimum-cli qllm"


class QuantizeCommand(BaseOptimumCLICommand):  # type: ignore[misc]
    """qllm-hf quantize."""

    COMMAND = CommandInfo(name="quantize", help="Quantize a model and save it.")

    @staticmethod
    def parse_args(parser: ArgumentParser) -> None:
        """Declare the options of the command."""
        as_argparse.describe(parser, quantize, PROGRAM)

    def run(self) -> None:
        """Run it."""
        as_argparse.call(quantize, self.args)


class EvaluateCommand(BaseOptimumCLICommand):  # type: ignore[misc]
    """qllm-hf evaluate."""

    COMMAND = CommandInfo(name="evaluate", help="Measure what a model can do, quantized or not.")

    @staticmethod
    def parse_args(parser: ArgumentParser) -> None:
        """Declare the options of the command."""
        as_argparse.describe(parser, evaluate, PROGRAM)

    def run(self) -> None:
        """Run it."""
        as_argparse.call(evaluate, self.args)


class TasksCommand(BaseOptimumCLICommand):  # type: ignore[misc]
    """qllm-hf tasks."""

    COMMAND = CommandInfo(name="tasks", help="List what can be measured.")

    @staticmethod
    def parse_args(parser: ArgumentParser) -> None:
        """Declare the options of the command."""
        as_argparse.describe(parser, tasks, PROGRAM)

    def run(self) -> None:
        """Run it."""
        as_argparse.call(tasks, self.args)


class InfoCommand(BaseOptimumCLICommand):  # type: ignore[misc]
    """qllm-hf info."""

    COMMAND = CommandInfo(name="info", help="Say what a model is, or what a scheme would make of it.")

    @staticmethod
    def parse_args(parser: ArgumentParser) -> None:
        """Declare the options of the command."""
        as_argparse.describe(parser, info, PROGRAM)

    def run(self) -> None:
        """Run it."""
        as_argparse.call(info, self.args)


class QllmCommand(BaseOptimumCLICommand):  # type: ignore[misc]
    """The group of all of them."""

    COMMAND = CommandInfo(name="qllm", help="Quantize weights, activations and KV cache of causal language models.")
    SUBCOMMANDS = (
        CommandInfo(name="quantize", help=QuantizeCommand.COMMAND.help, subcommand_class=QuantizeCommand),
        CommandInfo(name="evaluate", help=EvaluateCommand.COMMAND.help, subcommand_class=EvaluateCommand),
        CommandInfo(name="tasks", help=TasksCommand.COMMAND.help, subcommand_class=TasksCommand),
        CommandInfo(name="info", help=InfoCommand.COMMAND.help, subcommand_class=InfoCommand),
    )


REGISTER_COMMANDS = [QllmCommand]
