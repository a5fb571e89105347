"""A judge in this process: any causal language model with a chat template."""

from __future__ import annotations

import re
from typing import Any, Final

from ...errors import JudgeError
from .http import HttpJudge
from .judge import MAX_TOKENS, Judge, Messages

_LOOKS_LIKE_A_SERVER: Final = re.compile(r"(localhost|[\w.-]+\.[\w-]+|\[[0-9a-fA-F:]+\]):\d+(/.*)?")


class LocalJudge:
    """A model that judges, and always takes its most likely token.

    Args:
        model: a causal language model of transformers, quantized or not.
        tokenizer: that belongs to it.
        name: of the judge, for records and caches.
        max_tokens: of one judgement.

    Raises:
        JudgeError: the tokenizer has no chat template.
    """

    def __init__(self, model: Any, tokenizer: Any, name: str, *, max_tokens: int = MAX_TOKENS) -> None:
        if not getattr(tokenizer, "chat_template", None):
            raise JudgeError(
                f"the tokenizer of {name!r} has no chat template, so the model was not trained to answer questions and "
                "cannot judge. Take its instruction-tuned version, or set tokenizer.chat_template."
            )
        self.model = model
        self.tokenizer = tokenizer
        self.name = name
        self.max_tokens = max_tokens

    def __repr__(self) -> str:
        return f"LocalJudge({self.name!r})"

    def ask(self, messages: Messages) -> str:
        """The judgement that the model writes, without special tokens.

        Raises:
            JudgeError: the prompt fills all positions that the model has.
        """
        import torch

        prompt = self._tokens(messages)
        length = prompt["input_ids"].shape[1]
        room = self.max_tokens
        positions = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        if positions is not None:
            if length >= positions:
                raise JudgeError(
                    f"a prompt of {length} tokens does not fit the judge {self.name!r}, which has {positions} "
                    "positions. Take a judge with a longer context, or let the judged model write less."
                )
            room = min(room, positions - length)
        with torch.inference_mode():
            output = self.model.generate(
                **prompt,
                max_new_tokens=room,
                do_sample=False,
                # a model card's sampling settings, of which transformers would complain
                temperature=None,
                top_p=None,
                top_k=None,
                eos_token_id=self._ends() or None,
                pad_token_id=self._pad(),
            )
        return str(self.tokenizer.decode(output[0, length:], skip_special_tokens=True))

    def _tokens(self, messages: Messages) -> Any:
        from jinja2.exceptions import TemplateError

        options = {"add_generation_prompt": True, "return_tensors": "pt", "return_dict": True}
        try:
            prompt = self.tokenizer.apply_chat_template(messages, **options)
        except TemplateError:
            # Some families have no system message, and their templates say so by failing.
            if len(messages) < 2 or messages[0]["role"] != "system":
                raise
            system, user, *rest = messages
            merged = {"role": user["role"], "content": f"{system['content']}\n\n{user['content']}"}
            prompt = self.tokenizer.apply_chat_template([merged, *rest], **options)
        return prompt.to(self.model.device)

    def _ends(self) -> list[int]:
        """Each token that ends an answer: a tokenizer names one, a generation config may have several, or none."""
        found = self.model.generation_config.eos_token_id
        ends = {*(found if isinstance(found, list) else [found]), self.tokenizer.eos_token_id}
        return sorted(end for end in ends if end is not None)

    def _pad(self) -> int | None:
        """Any token: a single prompt is never padded, but transformers reports a missing one each time."""
        pad = self.tokenizer.pad_token_id
        return next(iter(self._ends()), None) if pad is None else pad


def open_judge(
    spec: str,
    model: str | None = None,
    *,
    key_variable: str = "OPENAI_API_KEY",
    timeout: float = 120.0,
    retries: int = 5,
    max_tokens: int = MAX_TOKENS,
    dtype: str = "auto",
    device_map: str | None = None,
    trust_remote_code: bool = False,
) -> Judge:
    """The judge that `spec` means: behind an address with a scheme (http://...), or a model to load.

    Args:
        spec: an address, a folder, an id on the Hub, or "reference".
        model: the name of the model behind an address; nothing else has one.
        key_variable: see `HttpJudge`, like `timeout` and `retries`.
        timeout: see there.
        retries: see there.
        max_tokens: of one judgement.
        dtype: of a model that is loaded, like the rest.
        device_map: see `from_pretrained`.
        trust_remote_code: whether code that comes with the model may run.

    Raises:
        JudgeError: the address cannot be one, the model behind it is not named, or a local model has no chat template.
        CheckpointError, ModelError: the model cannot be loaded.
    """
    if "://" in spec:
        if not model:
            raise JudgeError(
                f"the judge at {spec} needs the name of a model: the one that the server was started with, or such as "
                "gpt-4."
            )
        return HttpJudge(
            spec, model, key_variable=key_variable, timeout=timeout, retries=retries, max_tokens=max_tokens
        )
    if _LOOKS_LIKE_A_SERVER.fullmatch(spec):
        raise JudgeError(f"{spec!r} is no model. If it is a server, give http://{spec}.")
    if model is not None:
        raise JudgeError(
            f"the judge {spec!r} is loaded here, so it has no other name {model!r}. Leave the name out, or give the "
            "address of a server, such as http://localhost:8000."
        )
    from ...loading import load_model, load_tokenizer

    tokenizer = load_tokenizer(spec, trust_remote_code=trust_remote_code)
    loaded = load_model(spec, dtype=dtype, device_map=device_map, trust_remote_code=trust_remote_code)
    return LocalJudge(loaded.eval(), tokenizer, spec, max_tokens=max_tokens)
