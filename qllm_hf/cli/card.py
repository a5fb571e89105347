"""qllm-hf card: the model card of a quantized model, with what was measured of it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from . import options
from .output import answer, answering, note

Folder = Annotated[
    Path, typer.Argument(metavar="DIR", help="The folder that `qllm-hf quantize -o` wrote.", show_default=False)
]
ResultsFolder = Annotated[
    Path | None,
    typer.Option(metavar="RESULTS", help="Folder of scores, from `qllm-hf sweep` or `qllm-hf evaluate -o`."),
]


def card(
    folder: Folder,
    results: ResultsFolder = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="Write the card alone to FILE, and nothing to DIR."),
    ] = None,
    base_model: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL", help="Id on the Hub, or folder, of the model it was made from, where DIR does not say."
        ),
    ] = None,
    license_id: Annotated[
        str | None, typer.Option("--license", metavar="ID", help="Where the base model's card names none.")
    ] = None,
    license_name: Annotated[str | None, typer.Option(help="Of a licence that is 'other'.")] = None,
    license_link: Annotated[str | None, typer.Option(help="Of a licence that is 'other'.")] = None,
    repo: Annotated[
        str | None, typer.Option(metavar="REPO", help="Id that the example names; `qllm-hf push` does that by itself.")
    ] = None,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Write the model card of a quantized model: what it is, takes, can still do, and how it was made.

    The licence is that of the base model's card, and is never guessed. Text that you write outside of the markers
    <!-- qllm_hf --> and <!-- /qllm_hf --> stays when the card is made again.

    \b
    Examples:
      qllm-hf card model-w4kv8 --results results
      qllm-hf card model-w4kv8 --base-model owner/name --license apache-2.0
      qllm-hf card model-w4kv8 -o card.md
    """
    with answering(as_json=as_json, quiet=quiet, debug=debug):
        from ..publishing.card import make_card, save_card
        from ..publishing.frontmatter import CARD
        from ..publishing.quantized import read_quantized
        from ..whole import write_whole

        model = read_quantized(folder)
        place = output if output is not None else model.folder / CARD
        made = make_card(
            model,
            results=results,
            base_model=base_model,
            licence={"license": license_id, "license_name": license_name, "license_link": license_link},
            repo=repo,
            existing=place,
        )
        if not quiet:
            for remark in made.notes:
                note(remark)
        if output is None:
            written = save_card(made, model)
        else:
            write_whole(output, made.text.encode("utf-8"))
            written = (output,)
        data = {"card": str(place), "written": [str(path) for path in written], "front_matter": made.card.front}
        names = ", ".join(str(path.relative_to(model.folder)) if output is None else str(path) for path in written)
        where = f" in {folder}" if output is None else ""
        answer(data, f"Written{where}: {names}", as_json=as_json)
