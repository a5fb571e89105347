"""Train the reference model that the package carries: data, tokenizer and weights from one seed.

    python scripts/train_reference_model.py -o qllm_hf/reference_model

Takes about an hour and a half on two CPU cores, goes on where it stopped, and ends with the finished folder.
"""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import torch
from reference_model.batches import Batch, Batches, long_document, short_document
from reference_model.check import Checker
from reference_model.optimizer import Optimizer
from reference_model.progress import Progress
from reference_model.shares import (
    FIRST_SHARES,
    JUDGING_AGAIN_SHARES,
    JUDGING_SHARES,
    LAST_SHARES,
    LATER_SHARES,
    MARKING_SHARES,
)
from reference_model.start import look_back
from reference_model.tokenizer import VOCAB_SIZE, train_tokenizer
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM

from qllm_hf.curriculum.words import KINDS, LINE_KEYS, PEOPLE

CONTEXT = 2048
SHORT_ROWS, SHORT_LENGTH = 20, 256
WARM_UP, DECAY_PART = 100, 0.2
CHECK_EVERY = 100
SAVE_EVERY = 200


@dataclass(frozen=True)
class Stage:
    """One part of the training.

    Attributes:
        steps: how many.
        rows, length: of a batch of lines, in tokens.
        lines: their part of the loss; the short documents have the rest.
        repetitions: how many of the short documents are repetitions.
        learning_rate: before warm-up and decay.
        shares: what the other short documents are.
    """

    steps: int
    rows: int
    length: int
    lines: float
    repetitions: float
    learning_rate: float
    shares: Mapping[str, float]


# To look things up is learned first, then to judge: whether a word was said at all, whether two belong together, and
# last whether an answer is right. Lines are in the way of that: until their digits are understood, their loss is high
# and teaches little. Hence the stages without them.
STAGES = (
    Stage(250, 12, 256, lines=0.35, repetitions=0.75, learning_rate=4e-3, shares=FIRST_SHARES),
    Stage(450, 0, 256, lines=0.0, repetitions=0.08, learning_rate=3e-3, shares=FIRST_SHARES),
    Stage(500, 8, 256, lines=0.35, repetitions=0.08, learning_rate=3e-3, shares=FIRST_SHARES),
    Stage(300, 0, 256, lines=0.0, repetitions=0.03, learning_rate=3e-3, shares=JUDGING_SHARES),
    Stage(450, 4, 512, lines=0.35, repetitions=0.03, learning_rate=3e-3, shares=LATER_SHARES),
    Stage(50, 2, 1024, lines=0.35, repetitions=0.02, learning_rate=2.5e-3, shares=LATER_SHARES),
    Stage(200, 0, 256, lines=0.0, repetitions=0.02, learning_rate=2.5e-3, shares=JUDGING_AGAIN_SHARES),
    Stage(200, 0, 256, lines=0.0, repetitions=0.02, learning_rate=3e-3, shares=MARKING_SHARES),
    Stage(100, 2, 1024, lines=0.35, repetitions=0.0, learning_rate=2.5e-3, shares=LAST_SHARES),
    Stage(600, 1, 2048, lines=0.35, repetitions=0.0, learning_rate=2.5e-3, shares=LAST_SHARES),
)


def make_config(tokenizer: Any) -> LlamaConfig:
    """A Llama of 3.2 million parameters with heads of 64, two of them for every head of K and V."""
    return LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=5,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=CONTEXT,
        rope_parameters={"rope_type": "default", "rope_theta": 100_000.0},
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        attn_implementation="eager",  # on a CPU faster than the fused backward of short rows
    )


def make_tokenizer(seed: int) -> Any:
    """The tokenizer, from a sample of the curriculum and a list of all its words."""
    rng = Random(f"{seed} tokenizer")
    texts = ["".join(text for text, _ in short_document(rng)) for _ in range(20_000)]
    texts += ["".join(text for text, _ in long_document(rng, CONTEXT)) for _ in range(500)]
    words = "".join(f" {word}" for word in (*LINE_KEYS, *PEOPLE, *KINDS))
    return train_tokenizer(texts + [words] * 1500, CONTEXT)


def factor(step: int, steps: int) -> float:
    """What the learning rate is multiplied by: up, then 1, then down to a twentieth."""
    decay = int(steps * DECAY_PART)
    return min(1.0, (step + 1) / WARM_UP) * max(0.05, min(1.0, (steps - step) / decay))


def backward(model: Any, body: Any, batch: Batch, weight: float) -> float:
    """Adds the gradient of the mean loss of the learned tokens, times `weight`; returns that loss in nats."""
    learned = batch.learned[:, 1:].reshape(-1)
    hidden = body(batch.tokens, use_cache=False).last_hidden_state[:, :-1]
    logits = model.lm_head(hidden.reshape(-1, hidden.shape[-1])[learned]).float()
    loss = F.cross_entropy(logits, batch.tokens[:, 1:].reshape(-1)[learned])
    (loss * weight).backward()
    return loss.item()


def train(out: Path, seed: int, stop: int | None) -> None:
    """Trains, and writes model, tokenizer and log to `out`. What was done is kept in `out`, to go on from."""
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    torch.use_deterministic_algorithms(True)
    tokenizer = make_tokenizer(seed)
    model: Any = LlamaForCausalLM(make_config(tokenizer))
    look_back(model)
    model = model.to(torch.bfloat16).train()
    optimizer = Optimizer(model)
    body = torch.compile(model.model, dynamic=False)
    checker = Checker(tokenizer)
    progress = Progress(out)
    if progress.state.exists():
        progress.restore(optimizer)
    steps = sum(stage.steps for stage in STAGES)
    end = 0  # of a stage, in steps of the run
    for number, stage in enumerate(STAGES):
        begin, end = end, end + stage.steps
        short = Batches(
            tokenizer,
            SHORT_ROWS,
            SHORT_LENGTH,
            seed=f"{seed} {number} short",
            repetitions=stage.repetitions,
            shares=stage.shares,
        )
        long = Batches(tokenizer, stage.rows, stage.length, seed=f"{seed} {number} long", lines=True)
        if begin < progress.step < end:  # the run goes on inside this stage: batches it had are passed over
            for _ in range(progress.step - begin):
                short.next()
                long.next()
        while progress.step < end:
            losses = {}
            for name, batches, part in (("short", short, 1 - stage.lines), ("lines", long, stage.lines)):
                if part:
                    batch = batches.next()
                    losses[name] = backward(model, body, batch, part)
                    progress.tokens += batch.tokens.numel()
            optimizer.step(stage.learning_rate * factor(progress.step, steps))
            progress.step += 1
            if progress.step % CHECK_EVERY == 0 or progress.step in (steps, stop):
                progress.write(losses, checker.check(model, stage.length))
            if progress.step % SAVE_EVERY == 0:
                progress.save(optimizer)
            if progress.step == stop:
                print(f"stopped; weights {digest(model)}")
                return
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    progress.state.unlink(missing_ok=True)
    print(f"finished; weights {digest(model)}")


def digest(model: Any) -> str:
    """A fingerprint of all weights: equal for two runs that agree to the last bit."""
    hashed = hashlib.sha256()
    for _, weight in sorted(model.state_dict().items()):
        hashed.update(weight.contiguous().view(torch.uint8).numpy().tobytes())
    return hashed.hexdigest()[:16]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--stop", type=int)
    arguments = parser.parse_args()
    train(arguments.out, arguments.seed, arguments.stop)
