"""What a judge is told and answers: prompts, the memory of judgements, a server; and the rows of a data folder."""

from __future__ import annotations

import contextlib
import json
import logging
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from qllm_hf.evaluation.engine import check
from qllm_hf.evaluation.judge.cached import CachedJudge
from qllm_hf.evaluation.judge.http import HttpJudge
from qllm_hf.evaluation.judge.prompts import DEFAULT_PROMPTS, FIELDS, read_prompts
from qllm_hf.evaluation.questions import questions_of

from .reading import Subject


class _Echo:
    name, max_tokens = "echo", 100

    def ask(self, messages: Any) -> str:
        return f"It is fine. [[{len(messages[0]['content'])}]]"


MESSAGES = [[{"role": "user", "content": "why " * number}] for number in range(1, 5)]


def make_prompts(folder: Path) -> None:
    rows = [
        {"name": name, "system_prompt": each.system, "prompt_template": each.template}
        for name, each in DEFAULT_PROMPTS.prompts.items()
    ]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def show_prompts(folder: Path, out: Path) -> Any:
    prompts = read_prompts(folder / "prompts.jsonl")
    values = dict.fromkeys((field for fields in FIELDS.values() for field in fields), "{answer}")
    return prompts.digest, [prompts.messages(name, values) for name in FIELDS]


def make_cache(folder: Path) -> None:
    cached = CachedJudge(_Echo(), folder / "cache.jsonl")
    for messages in MESSAGES:
        cached.ask(messages)


def ask_cache(folder: Path, out: Path) -> Any:
    cached = CachedJudge(_Echo(), folder / "cache.jsonl")
    return [cached.ask(messages) for messages in MESSAGES]


def make_answer(folder: Path) -> None:
    body = {"id": "1", "choices": [{"index": 0, "message": {"role": "assistant", "content": "Good. [[7]]"}}]}
    (folder / "answer.json").write_text(json.dumps(body))


def ask_server(folder: Path, out: Path) -> Any:
    """A judge whose server answers with the content of a file, as it is, and with what that says as headers."""
    path = folder / "answer.json"
    body = path.read_bytes() if path.is_file() and path.stat().st_size else b""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            status = 200 if len(body) % 3 else 400 + len(body) % 150
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Retry-After", body[:40].decode("latin-1").replace("\n", " ").replace("\r", " "))
            with contextlib.suppress(OSError):  # whoever asks may leave before all is said
                self.end_headers()
                self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            judge = HttpJudge(f"http://127.0.0.1:{server.server_port}", "judge", retries=1, timeout=2, sleep=_no_wait)
            logging.getLogger("qllm_hf").setLevel(logging.CRITICAL)
            return judge.ask(MESSAGES[0])
        finally:
            server.shutdown()


def _no_wait(seconds: float) -> None:
    pass


ROWS: dict[str, list[dict[str, Any]]] = {
    "basic_nlp/piqa": [{"goal": "open it", "sol1": "pull", "sol2": "push", "label": 1}] * 3,
    "emergent/gsm8k": [{"question": "2 + 2?", "answer": "It is <<2+2=4>>4.\n#### 4"}] * 3,
    "emergent/gsm8k_train": [{"question": "1 + 2?", "answer": "It is <<1+2=3>>3.\n#### 3"}] * 12,
}
ROW_TASKS = ("qllm_piqa", "qllm_gsm8k")


def make_rows(folder: Path) -> None:
    for name, rows in ROWS.items():
        path = folder / f"{name}.jsonl"
        path.parent.mkdir(exist_ok=True)
        path.write_text("".join(json.dumps({**row, "id": number}) + "\n" for number, row in enumerate(rows)))


def ask_rows(folder: Path, out: Path) -> Any:
    check(ROW_TASKS, data_dir=folder)
    return [questions_of(task, folder).parts for task in ROW_TASKS]  # type: ignore[union-attr]


def _file(name: str) -> Any:
    return lambda folder: [folder / name]


SUBJECTS = {
    "judge prompts": Subject(make_prompts, _file("prompts.jsonl"), show_prompts, says_so=True),
    "judge cache": Subject(make_cache, _file("cache.jsonl"), ask_cache),
    "judge server": Subject(make_answer, _file("answer.json"), ask_server, says_so=True, without=("no file",)),
    "data rows": Subject(make_rows, lambda folder: sorted(folder.rglob("*.jsonl")), ask_rows, says_so=True),
}
