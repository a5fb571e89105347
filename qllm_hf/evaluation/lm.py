"""The model as lm_eval sees it: `qllm`, a Hugging Face model of lm_eval that counts tokens, shares work and resumes.

Where lm_eval's own `hf` differs, and why:

* Log-likelihoods come with their number of tokens, which the study's rule (loss per token) needs.
* Logits are made only where they are scored, and log-probabilities in float32 at least.
* The loss of a whole text does not count the token that begins every text as if it had to be predicted.
* Batches are planned from lengths alone and hold a number of tokens, not of rows. Finished batches are kept on disk;
  several processes take turns. None of this changes a bit of the results.

Keys and values are quantized by the model itself, with a cache and without one, so nothing here knows of bits.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from lm_eval import utils
from lm_eval.api.registry import register_model
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs, postprocess_generated_text
from tqdm.auto import tqdm
from transformers import LogitsProcessorList, PreTrainedModel

from ..config import QllmConfig
from ..errors import ConfigError
from ..finite import FiniteLogits
from ..loading import load_model, load_tokenizer
from .answers import Answered, Journal, are_answers, digest
from .batches import plan_batches, tokens_to_read, tokens_to_write
from .likelihood import Likelihood, score
from .ranks import Ranks

Request = tuple[Any, list[int], list[int]]
T = TypeVar("T")


@register_model("qllm")
class QllmLM(HFLM):  # type: ignore[misc]
    """A quantized model for lm_eval.

    Args:
        pretrained: a model, or a folder or id to load it from, with `scheme`.
        scheme: such as "W4KV8"; for a folder or id only. None loads it as it is stored.
        tokenizer: that belongs to a model; for a folder or id it is found.
        batch_size: rows of a batch; "auto" goes by tokens (`qllm_hf.evaluation.batches`).
        journal: where answers are kept.
        ranks: the processes that share the work.
        fingerprint: what, besides the question, an answer depends on: model, revision, scheme, dtype.
        bars: draw progress bars.

    Raises:
        ConfigError: a scheme for a model that is already there.
    """

    def __init__(
        self,
        pretrained: str | PreTrainedModel,
        scheme: str | None = None,
        tokenizer: Any = None,
        *,
        batch_size: int | str | None = "auto",
        dtype: str = "auto",
        device_map: str | None = None,
        trust_remote_code: bool = False,
        journal: Journal | None = None,
        ranks: Ranks | None = None,
        fingerprint: str = "",
        bars: bool = False,
        **options: Any,
    ) -> None:
        if isinstance(pretrained, str):
            config = None if scheme is None else QllmConfig.from_scheme(scheme)
            tokenizer = tokenizer or load_tokenizer(pretrained, trust_remote_code=trust_remote_code)
            pretrained = load_model(
                pretrained,
                None if config is None or str(config.scheme) == "FP16" else config,
                dtype=dtype,
                device_map=device_map,
                trust_remote_code=trust_remote_code,
            )
        elif scheme is not None:
            raise ConfigError("a model that is already loaded has its scheme. Give the scheme with a folder or an id.")
        for name in ("device", "max_batch_size"):
            options.pop(name, None)  # lm_eval's command line gives them always; the model is where it is
        super().__init__(pretrained=pretrained, tokenizer=tokenizer, batch_size=1, **options)
        self._rows = None if batch_size in (None, "auto") else int(batch_size)
        self.journal = Journal() if journal is None else journal  # an empty one is false
        self.ranks = Ranks() if ranks is None else ranks
        self.fingerprint = fingerprint
        self.bars = bars
        self.label = ""
        self._keeps_logits = "logits_to_keep" in inspect.signature(self.model.forward).parameters
        text_config = self.model.config.get_text_config()
        self._to_read = tokens_to_read(text_config.vocab_size, self.device.type != "cpu")
        self._to_write = tokens_to_write(float_cache_bytes(text_config, self.model.dtype))
        self.start_counting()

    def start_counting(self) -> None:
        """Begin `usage` anew: what is asked from now on."""
        self.usage = {"prompt_tokens": 0, "generated_tokens": 0, "requests": 0, "cut": 0, "seconds": 0.0}

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[Likelihood]:
        """The log-likelihood of each continuation after its context."""
        found: list[Likelihood] = super().loglikelihood(requests, disable_tqdm=True)
        return found

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """The log-likelihood of each text, in windows as long as the model reads, each token predicted once."""
        windows: list[Request] = []
        owners = []
        for owner, request in enumerate(requests):
            rolling = utils.get_rolling_token_windows(
                token_list=self.tok_encode(request.args[0], add_special_tokens=False),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            )
            for window in map(utils.make_disjoint_window, rolling):
                windows.append((None, *window))
                owners.append(owner)
        sums = [0.0] * len(requests)
        for owner, found in zip(owners, self._loglikelihood_tokens(windows), strict=True):
            sums[owner] += found[0]
        return sums

    def _loglikelihood_tokens(self, requests: Sequence[Request], **_: Any) -> list[Likelihood]:
        """Requests (name, context ids, continuation ids); those that differ in the last token share one forward."""
        rows: dict[tuple[int, ...], list[int]] = {}
        cut = set()
        for index, (name, context, continuation) in enumerate(requests):
            if not continuation:
                raise ConfigError("a text without tokens has no log-likelihood: a choice or an answer is empty.")
            tokens = [*context, *continuation]
            if len(tokens) > self.max_length + 1:
                cut.add(name[0] or index)  # choices of one prompt are one that was too long
            rows.setdefault(tuple(tokens[-(self.max_length + 1) :][:-1]), []).append(index)
        inputs = list(rows)
        owners = list(rows.values())
        self.usage["requests"] += len(requests)
        self.usage["cut"] += len(cut)
        self.usage["prompt_tokens"] += sum(map(len, inputs))
        lengths = [
            min(max(len(requests[i][2]) for i in owner), len(row)) for row, owner in zip(inputs, owners, strict=True)
        ]

        def targets(row: int) -> list[list[int]]:
            return [requests[index][2][-lengths[row] :] for index in owners[row]]

        def compute(batch: Sequence[int]) -> list[Any]:
            return score(
                self.model, [inputs[row] for row in batch], [targets(row) for row in batch], self._keeps_logits
            )

        batches = plan_batches([len(row) for row in inputs], self._to_read, self._rows)
        keys = [[[inputs[row], targets(row)] for row in batch] for batch in batches]
        found: list[Likelihood | None] = [None] * len(requests)
        for batch, answers in zip(batches, self._work("likelihood", batches, keys, compute), strict=True):
            for row, scored in zip(batch, answers, strict=True):
                for index, (value, is_greedy) in zip(owners[row], scored, strict=True):
                    found[index] = Likelihood(value, is_greedy, len(requests[index][2]))
        return found  # type: ignore[return-value]

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """What the model writes after each context, up to a stop sequence or the end of the text."""
        return self.write([(request.args[0], dict(request.args[1])) for request in requests])

    def write(self, asked: Sequence[tuple[str, dict[str, Any]]]) -> list[str]:
        """The texts after (context, generation arguments of lm_eval).

        Contexts that leave no room for the answer lose their beginning; an answer gets at most half of what the model
        can read. `usage["cut"]` counts the contexts.
        """
        settings: dict[str, list[int]] = {}
        for index, (_context, arguments) in enumerate(asked):
            settings.setdefault(digest(arguments), []).append(index)
        texts = [""] * len(asked)
        for group in settings.values():
            for index, text in zip(
                group, self._write_alike([asked[i][0] for i in group], asked[group[0]][1]), strict=True
            ):
                texts[index] = text
        return texts

    def _write_alike(self, contexts: Sequence[str], arguments: dict[str, Any]) -> list[str]:
        kwargs = normalize_gen_kwargs(arguments, self.max_gen_toks)
        stops = handle_stop_sequences(
            list(kwargs.pop("until", None) or []), eos=self.tok_decode([self.eot_token_id], skip_special_tokens=False)
        )
        new_tokens = min(int(kwargs.pop("max_gen_toks")), self.max_length // 2)
        seed = kwargs.pop("seed", None)
        room = self.max_length - new_tokens
        lengths = [len(self.tok_encode(context)) for context in contexts]
        self.usage["cut"] += sum(length > room for length in lengths)
        self.usage["requests"] += len(contexts)
        self.usage["prompt_tokens"] += sum(min(length, room) for length in lengths)

        def compute(batch: Sequence[int]) -> list[Any]:
            if seed is not None:
                torch.manual_seed(seed)
            ids, mask = self.tok_batch_encode(
                [contexts[i] for i in batch], left_truncate_len=room, truncation=self.truncation
            )
            with torch.no_grad():
                written = self._model_generate(
                    context=ids.to(self.device),
                    attention_mask=mask.to(self.device),
                    stop=stops,
                    max_length=ids.shape[1] + new_tokens,
                    logits_processor=LogitsProcessorList([FiniteLogits()]),
                    **kwargs,
                )[:, ids.shape[1] :].tolist()
            return [[self._text(tokens, stops), self._count(tokens)] for tokens in written]

        batches = plan_batches([min(length, room) + new_tokens for length in lengths], self._to_write, self._rows)
        keys = [[[contexts[i] for i in batch], arguments, new_tokens] for batch in batches]
        texts = [""] * len(contexts)
        for batch, answers in zip(batches, self._work("text", batches, keys, compute), strict=True):
            for i, (text, tokens) in zip(batch, answers, strict=True):
                texts[i] = text
                self.usage["generated_tokens"] += tokens
        return texts

    def _text(self, tokens: list[int], stops: list[str]) -> str:
        text: str = postprocess_generated_text(
            generation=self.tok_decode(tokens), stop=stops, think_end_token=self.think_end_token
        )
        return text

    def _count(self, tokens: list[int]) -> int:
        """The tokens that were written, the one that ends the text included."""
        return tokens.index(self.eot_token_id) + 1 if self.eot_token_id in tokens else len(tokens)

    def chat(
        self,
        conversations: Sequence[Sequence[dict[str, str]]],
        temperature: float,
        max_new_tokens: int,
        *,
        chat: bool = True,
    ) -> list[str]:
        """The next message of each conversation: in the chat template, or as a plain transcript."""
        arguments: dict[str, Any] = {"until": [] if chat else ["\nUser:"], "max_gen_toks": max_new_tokens}
        arguments["do_sample"] = temperature > 0
        if temperature > 0:
            arguments |= {"temperature": temperature, "seed": 0}
        show = self.apply_chat_template if chat else _transcript
        return self.write([(show(list(messages)), arguments) for messages in conversations])

    def _work(
        self,
        kind: str,
        batches: Sequence[Sequence[int]],
        keys: Sequence[Any],
        compute: Callable[[Sequence[int]], list[Any]],
    ) -> list[list[Any]]:
        """The answers of all batches: known ones from the journal, the rest from this and the other processes."""
        mine: dict[int, Any] = {}
        numbers = self.ranks.turns(len(batches))
        names = {number: digest(kind, self.fingerprint, keys[number]) for number in numbers}
        is_text = kind == "text"
        counts: dict[int, list[int | None]] = {
            n: [None] * len(batches[n]) if is_text else [len(targets) for _, targets in keys[n]] for n in numbers
        }
        known = self.ranks.common(
            {
                number
                for number in numbers
                if (found := self.journal.get(names[number])) and are_answers(kind, found.answers, counts[number])
            }
        )
        with tqdm(
            total=sum(len(batches[number]) for number in numbers),
            desc=self.label or kind,
            unit="item",
            disable=not (self.bars and self.ranks.is_first),
            leave=False,
        ) as bar:
            for number in numbers:
                answered = self.journal.get(names[number]) if number in known else None
                if answered is None:
                    begin = time.perf_counter()
                    answers = _halving(batches[number], compute)
                    answered = Answered(answers, time.perf_counter() - begin)
                    self.journal.add(names[number], answered)
                mine[number] = answered
                bar.update(len(batches[number]))
        shared = self.ranks.share(mine)
        self.usage["seconds"] += sum(shared[number][1] for number in range(len(batches)))
        return [shared[number][0] for number in range(len(batches))]


def float_cache_bytes(config: Any, dtype: torch.dtype) -> int:
    """Bytes of the keys and values of one token, were they not quantized: never too few."""
    heads = getattr(config, "num_key_value_heads", None) or getattr(config, "num_attention_heads", None) or 1
    size = getattr(config, "head_dim", None) or config.hidden_size // (
        getattr(config, "num_attention_heads", None) or 1
    )
    return int(2 * config.num_hidden_layers * heads * size * dtype.itemsize)


def _transcript(messages: list[dict[str, str]]) -> str:
    """A conversation for a model without a chat template."""
    said = "".join(f"{message['role'].capitalize()}: {message['content'].strip()}\n\n" for message in messages)
    return f"{said}Assistant:"


def _halving(batch: Sequence[int], compute: Callable[[Sequence[int]], list[T]]) -> list[T]:
    """What `compute` gives for a batch, half by half where the whole does not fit into the accelerator's memory."""
    try:
        return compute(batch)
    except torch.OutOfMemoryError:
        if len(batch) == 1:
            raise
    torch.cuda.empty_cache()
    middle = len(batch) // 2
    return _halving(batch[:middle], compute) + _halving(batch[middle:], compute)
