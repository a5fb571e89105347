"""The functions of the page for programs: named endpoints of the API, and tools of an MCP server.

Types and docstrings of these functions are what a client reads, so they hold plain values and whole sentences.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from typing import Any, Final

from ..errors import QllmError
from .choose import Form, advice_for
from .compare import Side
from .conversation import CHAT, TEXT, question_of, writer
from .grid import Grid, measured_grid, published_grid
from .host import Host
from .inside import look, round_tensor
from .items import changed_items
from .limits import check_scheme, describe_scheme
from .publish import Wish, preview

HEAVY: Final = ("compare", "tensors", "histogram", "push_plan")
"""Endpoints that need a model, and wait in its queue."""


def endpoints(
    host: Host, error: Callable[[str], Exception], visitor: Callable[[], str]
) -> dict[str, Callable[..., Any]]:
    """{name: function} of everything that a program can ask a page.

    Args:
        error: makes what is raised where a visitor is told something went wrong, from the sentence.
        visitor: names whoever asks.
    """

    write = writer(host)

    def compare(
        message: str,
        left: str = "FP16",
        right: str = "W4KV4",
        model: str = "reference",
        chat: bool = True,
        max_new_tokens: int = 64,
        temperature: float = 0.0,
        seed: int = 0,
    ) -> dict[str, Any]:
        """Let one model under two quantization schemes answer the same message, from the same seed.

        Args:
            message: What both are asked.
            left: A scheme such as FP16, W4, W4A8, KV4 or W4KV8.
            right: Another scheme.
            model: A model of this page, or an id on the Hub, if the page loads those.
            chat: Whether the message goes into the model's chat template; if not, the text is continued.
            max_new_tokens: Tokens of each answer at most.
            temperature: 0 always takes the likeliest token.
            seed: For temperatures above 0.

        Returns:
            For left and right: scheme, text, tokens, tokens_per_second, first_token_seconds, weight_bytes, cache_bytes,
            finished, and the tokens that the other side did not write.
        """
        with _explained(host, error):
            question = question_of(host, message, (model, left, right, CHAT if chat else TEXT), [])
            question = replace(question, new_tokens=int(max_new_tokens), temperature=float(temperature), seed=int(seed))
            *_, step = write(question, visitor())
            return {"left": _side(step.left), "right": _side(step.right)}

    def scheme(text: str) -> dict[str, Any]:
        """Say what a quantization scheme means, or why it is none.

        Args:
            text: Such as W4A8KV4 or W3g64KV2.

        Returns:
            valid, and either scheme (its canonical name) and description, or error.
        """
        try:
            found = check_scheme(text)
        except QllmError as reason:
            return {"valid": False, "error": str(reason)}
        return {"valid": True, "scheme": str(found), "description": describe_scheme(found)}

    def recommend(
        params: float = 7.0,
        model: str = "",
        mixture_of_experts: bool = False,
        abilities: str = "all",
        context: str = "2048",
        batch: int = 1,
        memory: str = "",
        device: str = "",
        tolerance: str = "2%",
    ) -> dict[str, Any]:
        """Say how few bits are enough: one scheme, why, what it takes, and what would change it.

        Args:
            params: Billions of parameters, where no model is named.
            model: A model of this page, or an id on the Hub, if the page loads those.
            mixture_of_experts: Of a model of that size.
            abilities: Some of nlp, emergent, trust, dialogue and long, with commas between, or all.
            context: Tokens of a sequence, prompt and answer, such as 16k.
            batch: Sequences at once.
            memory: For weights and cache, such as 24GB; empty for no limit.
            device: Such as "RTX 4090", for times.
            tolerance: Loss that is acceptable, such as 2%.

        Returns:
            scheme, why, candidates, changes, disagreements, rules and published losses.
        """
        with _explained(host, error):
            words = tuple(word.strip() for word in abilities.split(",") if word.strip())
            form = Form(model, params, mixture_of_experts, words, context, int(batch), memory, device, tolerance)
            found: dict[str, Any] = json.loads(host.hide(json.dumps(advice_for(host, form).to_dict())))
            return found

    def abilities(source: str = "LLaMA2-7B") -> dict[str, Any]:
        """Say what is left of each ability under each scheme, as parts of the float model's score above guessing.

        Args:
            source: Results that this page shows, or a model of the study, such as LLaMA2-7B.

        Returns:
            title, note, and {scheme: {ability: part that is left}}.
        """
        with _explained(host, error):
            grid: Grid = measured_grid(host.results[source]) if source in host.results else published_grid(source)
            kept: dict[str, dict[str, float]] = {}
            for (name, ability), estimate in grid.cells.items():
                kept.setdefault(name, {})[ability] = round(estimate.value, 4)
            return {"title": grid.title, "note": grid.note, "kept": kept}

    def items(source: str, scheme: str, task: str) -> list[dict[str, Any]]:
        """List the items of a task that a scheme got wrong and the float model right, with both answers.

        Args:
            source: Results that this page shows.
            scheme: One that was measured.
            task: One that was measured, such as mini_arithmetic.

        Returns:
            For each item: id, prompt, before, after, and what both answers were worth.
        """
        with _explained(host, error):
            return [asdict(item) for item in changed_items(host.result(source), scheme, task)]

    def tensors(model: str = "reference") -> list[dict[str, Any]]:
        """List the tensors of a float model: size, spread, tails, and what rounding does to each.

        Args:
            model: A model of this page, or an id on the Hub, if the page loads those.

        Returns:
            For each tensor: kind (W weights, A inputs, K keys, V values), name, absmax, std, kurtosis, and the ratio of
            signal to noise in dB by bits.
        """
        with _explained(host, error):
            return [
                {
                    "kind": row.kind,
                    "name": row.name,
                    "absmax": row.summary.absmax,
                    "std": row.summary.std,
                    "kurtosis": row.summary.kurtosis,
                    "sqnr": {str(bits): value for bits, value in row.sqnr.items()},
                }
                for row in look(host, model)
            ]

    def histogram(tensor: str, bits: int = 4, group_size: int = 128, model: str = "reference") -> dict[str, Any]:
        """Count the numbers of one weight before and after rounding.

        Args:
            tensor: Its name, as `tensors` lists it.
            bits: From 2 to 8.
            group_size: Numbers that share a scale; -1 for a whole row.
            model: As for `tensors`.

        Returns:
            sqnr in dB, bits_per_weight, the edges of the bars, and the counts before and after.
        """
        with _explained(host, error):
            found = round_tensor(host, model, tensor, int(bits), int(group_size))
            return {
                "sqnr": found.sqnr,
                "bits_per_weight": found.bits_per_element,
                "edges": found.edges.tolist(),
                "before": found.before.tolist(),
                "after": found.after.tolist(),
            }

    def push_plan(repo: str, scheme: str = "W4KV8", model: str = "reference", licence: str = "") -> dict[str, Any]:
        """Show the model card and the files that a push to the Hub would send. Nothing is sent.

        Args:
            repo: owner/name on the Hub.
            scheme: Bits of the packed model.
            model: A model of this page, or an id on the Hub, if the page loads those.
            licence: An id, where the base model's card names none.

        Returns:
            card, the files with their bytes, and notes.
        """
        with _explained(host, error):
            found = preview(host, Wish(model, scheme, repo, licence))
            # clients of gradio take a dict with "path" for a file to fetch
            files = [{"name": file.path, "bytes": file.size, "storage": file.storage} for file in found.plan.files]
            return {"card": found.card, "files": files, "bytes": found.plan.bytes_to_send, "notes": list(found.notes)}

    named = (compare, scheme, recommend, abilities, items, tensors, histogram, push_plan)
    return {function.__name__: function for function in named}


@contextmanager
def _explained(host: Host, error: Callable[[str], Exception]) -> Iterator[None]:
    """Whatever goes wrong leaves as one sentence."""
    try:
        yield
    except Exception as reason:  # the border of the page
        raise error(host.explain(reason)) from None


def _side(side: Side) -> dict[str, Any]:
    alone = [piece for piece, differs in side.pieces if differs]
    found = asdict(side)
    del found["pieces"]
    return {**found, "text": side.text, "only_here": alone}
