"""What a checkpoint writes alone, in float32 and greedily: what every client has to get."""

from __future__ import annotations

import json
import random
from typing import Any, NamedTuple

import torch

from qllm_hf.loading import load_model, load_tokenizer

LONGEST = 48
NAMES = ("Mia", "Tom", "Max", "Ben")
SAYINGS = (
    "{0} has 3 apples and gets 4 more. How many?",
    "{0} is at the park. Where is {0}?",
    "Say hello to {0}.",
    "{0} saw a red dog. What is red?",
    "Tell me of a cat that {0} saw.",
    "Once upon a time {0}",
)
TOKENS = (8, 16, 32, LONGEST)


class Wanted(NamedTuple):
    """A request and its one right answer."""

    path: str
    body: dict[str, Any]
    answer: str


class Answers:
    """Questions with the answers of one checkpoint."""

    def __init__(self, folder: str) -> None:
        self.name = folder.rstrip("/").rpartition("/")[2]
        self._model, self._tokenizer = load_model(folder, dtype="float32").eval(), load_tokenizer(folder)
        self._written = {
            (path, text): self._write(path, text)
            for path in ("/v1/completions", "/v1/chat/completions")
            for text in (saying.format(name) for saying in SAYINGS for name in NAMES)
        }
        self._model = None

    @torch.inference_mode()
    def _write(self, path: str, text: str) -> list[int]:
        if path == "/v1/completions":
            prompt = self._tokenizer(text, return_tensors="pt")
        else:
            prompt = self._tokenizer.apply_chat_template(
                [{"role": "user", "content": text}], add_generation_prompt=True, return_tensors="pt", return_dict=True
            )
        output = self._model.generate(**prompt, max_new_tokens=LONGEST, do_sample=False)
        found: list[int] = output[0, prompt["input_ids"].shape[1] :].tolist()
        return found

    def one(self, random: random.Random, path: str = "") -> Wanted:
        """Any question, for one of the addresses of the server or that one."""
        path = path or random.choice(("/v1/completions", "/v1/chat/completions", "/v1/responses"))
        text, tokens = random.choice(SAYINGS).format(random.choice(NAMES)), random.choice(TOKENS)
        body = {"model": self.name, "temperature": 0}
        if path == "/v1/completions":
            body |= {"prompt": text, "max_tokens": tokens}
        elif path == "/v1/chat/completions":
            body |= {"messages": [{"role": "user", "content": text}], "max_tokens": tokens}
        else:
            body |= {"input": text, "max_output_tokens": tokens, "stream": False}
        written = self._written["/v1/completions" if path == "/v1/completions" else "/v1/chat/completions", text]
        return Wanted(path, body, self._tokenizer.decode(written[:tokens], skip_special_tokens=True))

    def long(self, tokens: int = 1500) -> dict[str, Any]:
        """A completion that takes a while, since nothing ends it."""
        never = json.dumps({"eos_token_id": -1})
        return {"model": self.name, "prompt": "Once upon a time", "max_tokens": tokens, "generation_config": never}

    @property
    def distinct(self) -> int:
        """How many different answers there are; with few, mixing them would not show."""
        return len({tuple(each) for each in self._written.values()})
