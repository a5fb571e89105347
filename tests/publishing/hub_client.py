"""The command line in a process of its own that talks to the local Hub, kept alive so that torch is loaded once.

huggingface_hub reads HF_ENDPOINT and HF_HUB_OFFLINE when it is imported, so a test cannot set them in its own process.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from publishing.hub_server import Hub

TESTS = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Done:
    """What a command printed, and its exit code."""

    code: int
    stdout: str
    stderr: str

    @property
    def json(self) -> Any:
        return json.loads(self.stdout)


def environment(hub: Hub, home: Path, token: str | None = None, **more: str) -> dict[str, str]:
    """The variables under which huggingface_hub talks to the local Hub and to nothing else."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING"))}
    found = {
        **kept,
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(home),
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])]),
    }
    return {**found, **({"HF_TOKEN": token} if token else {}), **more}


def command(*arguments: object) -> list[str]:
    """The words that run one command in a process that ends with it."""
    return [sys.executable, "-m", "publishing.hub_worker", *map(str, arguments)]


class Client:
    """A process that carries out commands, one after the other."""

    def __init__(self, hub: Hub, home: Path) -> None:
        self.hub = hub
        self.process = subprocess.Popen(
            command(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment(hub, home), text=True, cwd=home
        )

    def ask(self, kind: str, arguments: tuple[object, ...], token: str | None) -> dict[str, Any]:
        assert self.process.stdin and self.process.stdout
        wanted = {"kind": kind, "arguments": [str(each) for each in arguments], "token": token}
        self.process.stdin.write(json.dumps(wanted) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        assert line, "the process has ended"
        found: dict[str, Any] = json.loads(line)
        return found

    def run(self, *arguments: object, token: str | None = None, code: int = 0) -> Done:
        """One command of qllm-hf; its exit code is checked, and that it never prints the token."""
        done = Done(**self.ask("command", arguments, token))
        assert done.code == code, done.stdout + done.stderr
        assert token is None or token not in done.stdout + done.stderr
        return done

    def logits(self, name: object, token: str | None = None) -> str:
        """A digest of a model's logits, or the name of the error that loading it raised."""
        return str(self.ask("logits", (name,), token)["digest"])

    def close(self) -> None:
        assert self.process.stdin and self.process.stdout
        self.process.stdin.close()
        self.process.wait(30)
        self.process.stdout.close()
