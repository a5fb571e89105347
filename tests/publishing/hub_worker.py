"""The process behind `hub_client.Client`: reads wishes as JSON lines, answers with JSON lines."""

from __future__ import annotations

import json
import os
import sys
from hashlib import sha256
from typing import Any

import torch
import typer
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

import qllm_hf.publishing.push
from qllm_hf.cli.card import card
from qllm_hf.cli.push import push
from qllm_hf.publishing import hub

app = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False)
app.command()(card)
app.command()(push)


def run(arguments: list[str]) -> dict[str, Any]:
    result = CliRunner().invoke(app, arguments)
    return {"code": result.exit_code, "stdout": result.stdout, "stderr": result.stderr}


def logits(name: str) -> dict[str, Any]:
    try:
        model = AutoModelForCausalLM.from_pretrained(name)
        with torch.no_grad():
            found = model(torch.arange(1, 33).reshape(1, 32)).logits
    except Exception as error:  # the test says which it expects
        return {"digest": repr(error)[:63]}
    return {"digest": sha256(found.float().numpy().tobytes()).hexdigest()}


def main() -> None:
    if len(sys.argv) > 1:
        app()
    torch.set_num_threads(1)
    hub.FIRST_WAIT = qllm_hf.publishing.push.FIRST_WAIT = 0.01  # type: ignore[misc]
    for line in sys.stdin:
        wanted = json.loads(line)
        os.environ.pop("HF_TOKEN", None)
        if wanted["token"]:
            os.environ["HF_TOKEN"] = wanted["token"]
        answer = run(wanted["arguments"]) if wanted["kind"] == "command" else logits(wanted["arguments"][0])
        sys.__stdout__.write(json.dumps(answer) + "\n")
        sys.__stdout__.flush()


if __name__ == "__main__":
    main()
