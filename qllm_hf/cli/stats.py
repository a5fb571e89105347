"""qllm-hf stats: what the tensors of a model look like, and which layers will bear how many bits."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import options
from .output import UsageError, answer, answering, note

if TYPE_CHECKING:
    from ..analysis.gathering import Row

NO_TEXT = "without --calibration only weights (W) are looked at, not inputs (A), keys (K) and values (V)."
LEGEND = (
    "Over all blocks: the largest AbsMax, outlier ratio and channel spread, the median std and kurtosis. Kurtosis is "
    "Pearson's, 3 for a normal distribution; outliers are further than 6 std from the mean; channels is the largest "
    "channel divided by the median one. Under the bits, what rounding does to the worst block: dB of signal to noise "
    "(of W and A in the output of the layer, if inputs were seen), or of K nats of noise in the logits of attention."
)


def stats(
    model: options.Model,
    calibration: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|DATASET",
            help="Text to run: .txt, .jsonl with 'text', owner/name on the Hub, or 'curriculum'. Without it, only "
            "weights are looked at.",
        ),
    ] = None,
    samples: Annotated[int, typer.Option(min=1, help="Blocks of calibration text.")] = 32,
    seqlen: Annotated[int, typer.Option(min=1, help="Tokens in each block.")] = 512,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="DIR", help="Folder for stats.json and plots.")
    ] = None,
    plots: Annotated[bool, typer.Option("--plots", help="Write pictures to DIR as well (.png, .svg).")] = False,
    compare: Annotated[
        str | None,
        typer.Option(metavar="MODEL2", help="Another model: how outliers change from the smaller to the larger one."),
    ] = None,
    dtype: options.DtypeOption = options.Dtype.auto,
    trust_remote_code: options.TrustRemoteCode = False,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Look at the tensors of a model: AbsMax, std, kurtosis, outliers, ranges of channels, and what rounding does.

    For weights (W), inputs of linear layers (A), keys (K) and values (V) of each layer, in one pass, with one decoder
    block in memory. Says which layers hold, suffer or break at 8 to 2 bits, and why.

    \b
    Examples:
      qllm-hf stats reference --calibration curriculum
      qllm-hf stats path/to/model --calibration text.jsonl -o stats --plots
      qllm-hf stats path/to/small --compare path/to/large --calibration text.jsonl
    """
    with answering(as_json=as_json, quiet=quiet, debug=debug):
        if plots and output is None:
            raise UsageError("say where the plots go: -o DIR.")
        from ..analysis.plots import save_plots
        from ..analysis.record import FORMAT, check_folder, save, versions
        from ..drawing import require_matplotlib

        if plots:
            require_matplotlib()
        if output is not None:
            check_folder(output)
        if calibration is None and not quiet:
            note(NO_TEXT)

        def look(name: str) -> tuple[list[Row], dict[str, Any]]:
            return _look(name, calibration, samples, seqlen, dtype.value, trust_remote_code, quiet)

        rows, data = look(model)
        data = {"format": FORMAT, "versions": versions(), **data}
        parts = [_page(data, rows)]
        if compare is not None:
            other_rows, other = look(compare)
            data |= {"compared_with": other, **_comparison((rows, data), (other_rows, other))}
            parts += [_page(other, other_rows), _compared_page(data["comparison"])]
        if output is not None:
            written = save(output, data, rows)
            if plots:
                written += save_plots(output, rows, model)
            parts.append(f"Saved in {output}: {', '.join(path.name for path in written)}")
        answer(data, "\n\n".join(parts), as_json=as_json)


def _look(
    model: str, calibration: str | None, samples: int, seqlen: int, dtype: str, trust_remote_code: bool, quiet: bool
) -> tuple[list[Row], dict[str, Any]]:
    """The rows of a model, and what is recorded of them."""
    from ..analysis.record import record
    from ..analysis.tensors import measure
    from ..loading import check_float, load_tokenizer
    from ..methods.calibration import read_calibration
    from ..methods.residence import FromDisk
    from ..streamed import offloaded

    check_float(model, trust_remote_code=trust_remote_code)
    text = None
    if calibration is not None:
        tokenizer = load_tokenizer(model, trust_remote_code=trust_remote_code)
        text = read_calibration(calibration, tokenizer, samples=samples, seqlen=seqlen)
        if len(text.ids) < samples and not quiet:
            note(f"{text.source} gives {len(text.ids)} of {samples} blocks of {seqlen} tokens.")
    with offloaded(model, dtype=dtype, trust_remote_code=trust_remote_code) as source:
        residence = FromDisk(source.blocks.modules, source.weights, source.blocks.name)
        rows = measure(source.model, blocks=source.blocks, residence=residence, calibration=text, progress=not quiet)
        return rows, record(model, source.model.config, rows, text.summary() if text else None)


def _comparison(one: tuple[list[Row], dict[str, Any]], other: tuple[list[Row], dict[str, Any]]) -> dict[str, Any]:
    """From the smaller to the larger of two models."""
    from ..analysis.compare import FINDING, compare, conclusion

    (small, a), (large, b) = sorted((one, other), key=lambda each: each[1]["linear_weights"])
    changes = compare(small, large)
    names = {"model_type": "architecture", "vocab_size": "vocabulary"}
    differences = [f"{word} ({a[key]}, {b[key]})" for key, word in names.items() if a[key] != b[key]]
    return {
        "comparison": {
            "smaller": a["model"],
            "larger": b["model"],
            "linear_weights": [a["linear_weights"], b["linear_weights"]],
            "finding": FINDING,
            "changes": [asdict(change) for change in changes],
            "conclusion": conclusion(changes, differences),
        }
    }


def _page(data: dict[str, Any], rows: list[Row]) -> str:
    """A table of each kind of tensor, a line for each layer of a block over all blocks, and the verdict."""
    import textwrap

    from ..reporting.text import WIDTH, table

    text = data["calibration"]
    source = f"{text['samples']} x {text['seqlen']} tokens of {text['source']}" if text else "weights only"
    parts = [f"{data['model']} ({data['model_type']}), {data['linear_weights']:,} linear weights; {source}"]
    parts += [f"{kind}\n{table(_lines(rows, kind), 'lrrrrrrrr')}" for kind in data["verdict"]]
    parts.append(textwrap.fill(LEGEND, WIDTH, initial_indent="  ", subsequent_indent="  "))
    parts.append("\n".join(textwrap.fill(line, WIDTH, subsequent_indent="   ") for line in data["sentences"]))
    return "\n\n".join(parts)


def _lines(rows: list[Row], kind: str) -> list[list[str]]:
    from statistics import median

    by_layer: dict[str, list[Row]] = {}
    for row in rows:
        if row.kind == kind:
            name = "/".join([row.layer, *(reader.rpartition(".")[2] for reader in row.readers)])
            by_layer.setdefault(name, []).append(row)
    lines = [["layer", "AbsMax", "std", "kurtosis", "outliers", "channels", "4 bits", "3 bits", "2 bits"]]
    for name, group in by_layer.items():
        found = [row.summary for row in group]
        kurtosis = [each.kurtosis for each in found if each.kurtosis is not None]
        spreads = [each.channel_spread for each in found if each.channel_spread is not None]
        lines.append(
            [
                name,
                f"{max(each.absmax for each in found):.3g}",
                f"{median(each.std for each in found):.3g}",
                f"{median(kurtosis):.3g}" if kurtosis else "-",
                f"{max(each.outlier_ratio for each in found):.1e}",
                f"{max(spreads):.3g}" if spreads else "-",
                *(_worst(group, bits) for bits in (4, 3, 2)),
            ]
        )
    return lines


def _worst(rows: list[Row], bits: int) -> str:
    effects = [effect for row in rows if (effect := row.effect.get(bits)) is not None]
    if not effects:
        return "-"
    return f"{max(effects):.2f} nats" if rows[0].measure == "logit_noise" else f"{min(effects):.1f} dB"


def _compared_page(comparison: dict[str, Any]) -> str:
    import textwrap

    from ..reporting.text import WIDTH, table

    small, large = (f"{count:,}" for count in comparison["linear_weights"])
    lines = [["", "", "of layers", "smaller", "larger", "", "as the study found"]]
    lines += [
        [
            change["kind"],
            change["figure"],
            f"the {change['of']}",
            f"{change['smaller']:.4g}",
            f"{change['larger']:.4g}",
            change["direction"],
            "yes" if change["as_found"] else "no",
        ]
        for change in comparison["changes"]
    ]
    title = f"From {comparison['smaller']} ({small} linear weights) to {comparison['larger']} ({large} linear weights)"
    return f"{title}\n{table(lines, 'lllrrll')}\n{textwrap.fill(comparison['conclusion'], WIDTH)}"
