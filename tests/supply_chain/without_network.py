"""Runs commands with sockets that lead to this machine only, and prints as JSON what was asked of the network."""

import contextlib
import io
import json
import sys
import urllib.request
from typing import Any

ASKED: list[str] = []
HERE = ("127.0.0.1", "::1", "localhost", "0.0.0.0", "")


def watch(event: str, arguments: tuple[Any, ...]) -> None:
    """An audit hook (PEP 578): Python calls it before it looks up a name or opens a connection."""
    if event in ("socket.getaddrinfo", "socket.gethostbyname"):
        host = arguments[0]
    elif event in ("socket.connect", "socket.sendto") and isinstance(arguments[1], tuple):
        host = arguments[1][0]
    else:
        return
    host = host.decode() if isinstance(host, bytes) else str(host or "")
    if host not in HERE:
        ASKED.append(host)
        raise OSError(f"no network: {host}")


STEPS = {
    "quantize": "quantize reference --scheme W4KV4 -o packed",
    "info": "info packed --verify",
    "generate": "generate packed Once --max-new-tokens 2",
    "sweep": "sweep reference --schemes W4 --tasks mini_cloze --limit 2 -o sweep",
    "recommend": "recommend reference --measured sweep",
    "published": "published --model OPT-6.7B --scheme W4",
    "stats": "stats reference -o stats",
    "bench": "bench reference --schemes W4 --input 4 --output 2 --repeats 1 -o bench",
    "tasks": "tasks",
    "env": "env",
    "export": "export packed -o exported --for vllm",
    "card": "card packed --license mit -o README.md",
}


def command(line: str) -> tuple[int, list[str]]:
    from typer.testing import CliRunner

    from qllm_hf.cli.main import app

    ASKED.clear()
    result = CliRunner().invoke(app, line.split())
    if result.exit_code:
        print(line, result.output, file=sys.stderr)
    return result.exit_code, list(ASKED)


def demo() -> tuple[int, list[str]]:
    """The page, started and read as a browser would."""
    from qllm_hf.demo.app import launch
    from qllm_hf.demo.host import make_host

    ASKED.clear()
    page, address = launch(make_host(), wait=False, quiet=True, server_name="127.0.0.1")
    with urllib.request.urlopen(address) as answer:
        status = answer.status
    page.close()
    return int(status != 200), list(ASKED)


def serve() -> tuple[int, list[str]]:
    """The server, asked once."""
    from qllm_hf.serving.running import hush, load_server, serving
    from qllm_hf.serving.server import address_of, listen

    ASKED.clear()
    server, _ = load_server("packed")
    hush(server)
    bound = listen("127.0.0.1", 0)
    with serving(server, bound):
        question = json.dumps({"model": "packed", "prompt": "Once", "max_tokens": 2}).encode()
        headers = {"content-type": "application/json"}
        request = urllib.request.Request(f"{address_of(bound)}/v1/completions", question, headers)
        with urllib.request.urlopen(request) as answer:
            status = answer.status
    return int(status != 200), list(ASKED)


def main() -> None:
    sys.addaudithook(watch)
    with contextlib.redirect_stdout(io.StringIO()):
        steps = {name: command(line) for name, line in STEPS.items()}
        steps |= {"serve": serve(), "demo": demo()}
        control = command("info nobody/nothing")
    print(json.dumps({"steps": steps, "control": control}))


if __name__ == "__main__":
    main()
