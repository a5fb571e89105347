"""qllm-hf recommend: how few bits a model can use, somewhere, for something."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from . import options
from .output import UsageError, answer, answering


def recommend(
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="MODEL",
            help="A folder, an id on the Hub, or 'reference': exact shapes, from its config alone.",
            show_default=False,
        ),
    ] = None,
    params: Annotated[
        float | None, typer.Option(metavar="BILLIONS", help="Size in place of a model, such as 7: typical shapes.")
    ] = None,
    moe: Annotated[bool, typer.Option("--moe", help="With --params: it is a mixture of experts.")] = False,
    family: Annotated[
        str | None, typer.Option(help="The study's family, such as LLaMA2 or Vicuna, if MODEL does not tell.")
    ] = None,
    abilities: Annotated[
        str,
        typer.Option(help="nlp, emergent, trust, dialogue, long; of emergent icl, if, mr, sc; commas between, or all."),
    ] = "all",
    context: Annotated[str, typer.Option(metavar="TOKENS", help="Prompt and answer; 16k is 16,384.")] = "2048",
    batch: Annotated[int, typer.Option(help="Sequences at once.")] = 1,
    memory: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE", help="24GB (24 * 10^9) or 24GiB (24 * 2^30); by default that of the device, or no limit."
        ),
    ] = None,
    device: Annotated[str | None, typer.Option(metavar="NAME", help="Such as 'RTX 4090' or H100: for times.")] = None,
    measured: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Results of MODEL (qllm-hf sweep); they go before published ones."),
    ] = None,
    tolerance: Annotated[str, typer.Option(metavar="PERCENT", help="Loss that is acceptable.")] = "2%",
    trust_remote_code: options.TrustRemoteCode = False,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Say how few bits to use: one scheme, why, what it costs, and what would change the answer.

    From the study's recommendations, its published losses of models like this one, your own measurements if there are
    any, and the bytes of weights and cache. No weights are read.

    \b
    Examples:
      qllm-hf recommend --params 7 --abilities dialogue,long --context 16k --batch 8 --memory 24GB
      qllm-hf recommend path/to/model --abilities mr,sc --device "RTX 4090"
      qllm-hf recommend reference --abilities all --measured results --tolerance 1%
    """
    with answering(as_json=as_json, quiet=quiet, debug=debug):
        if model is None and params is None:
            raise UsageError("say which model: MODEL, or its size as --params 7.")
        if model is not None and params is not None:
            raise UsageError("MODEL and --params: give one of them. A model says itself how large it is.")
        if model is not None and moe:
            raise UsageError("--moe goes with --params. A model says itself whether it is a mixture of experts.")
        if measured is not None and model is None:
            raise UsageError("--measured holds results of one model: name it as MODEL in place of --params.")
        from ..advice.recommend import recommend as ask

        advice = ask(
            model,
            params=params,
            moe=moe,
            family=family,
            abilities=abilities,
            context=context,
            batch=batch,
            memory=memory,
            device=device,
            measured=measured,
            tolerance=tolerance,
            trust_remote_code=trust_remote_code,
        )
        answer(advice.to_dict(), str(advice), as_json=as_json)
