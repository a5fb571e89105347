"""The tables of checkpoints that went to other libraries or came from them: who reads what, and what was measured."""

from __future__ import annotations

from result_tables import rows, table

from qllm_hf.export.readers import READERS, TABLE

SCHEME = ("w", "w_symmetric", "a", "a_symmetric")


def readers() -> str:
    """The table of readers, with numbers for its notes below it."""
    notes: dict[str, int] = {}
    lines = []
    for row, cells in TABLE.items():
        line = [row]
        for name in READERS:
            outcome, known, note = cells[name]
            number = f" [{notes.setdefault(note, len(notes) + 1)}]" if note else ""
            line.append(f"{outcome} ({known}){number}")
        lines.append(line)
    return table(["", *READERS], lines) + "\n\n" + "\n".join(f"[{number}] {note}  " for note, number in notes.items())


def measured() -> str:
    """For each scheme, over all group sizes and in one dtype, the largest difference in each reader."""
    lines = []
    for dtype in ("float32", "bfloat16", "float16"):
        found = [row for row in rows("export") if row["dtype"] == dtype]
        for scheme in dict.fromkeys(tuple(row[key] for key in SCHEME) for row in found):
            here = [row for row in found if tuple(row[key] for key in SCHEME) == scheme]
            ratios = [int(row["bytes_exported"]) / int(row["bytes_packed"]) for row in here]
            columns = ("max_dw", "dequantize", "default", "vllm", "vllm_from_packed", "from_packed")
            sizes = f"{min(ratios):.3f} to {max(ratios):.3f}"
            lines.append([_name(*scheme), dtype, *(_largest(here, column) for column in columns), sizes])
    header = ["scheme", "dtype", "weights", "dequantize=True", "default", "vLLM", "vLLM, from packed", "packed", "size"]
    return table(header, lines)


def memory() -> str:
    """What an export of the large checkpoint takes beyond the libraries."""
    lines = []
    for row in rows("export_memory"):
        megabytes = (int(row["bytes_packed"]) / 1e6, int(row["bytes_exported"]) / 1e6, float(row["peak_mb"]))
        lines.append([row["format"], *(f"{size:.0f} MB" for size in megabytes)])
    return table(["format", "packed files", "exported files", "memory"], lines)


def imported() -> str:
    """What differs between a checkpoint, as a library reads it, and what was imported of it."""
    lines = []
    for row in sorted(rows("importing"), key=lambda row: (row["library"], row["checkpoint"])):
        differing = " / ".join(row[f"{part}_differing"] for part in ("codes", "zero_points", "scales"))
        logits = f"{float(row['logits_differing_by']):.1e} of {float(row['largest_logit']):.0f}"
        lines.append([row["library"], row["checkpoint"], row["scheme"], f"{int(row['codes']):,}", differing, logits])
    header = ["read by", "checkpoint", "scheme", "codes", "codes / zero points / scales that differ", "logits"]
    return table(header, lines)


def gguf() -> str:
    """What llama.cpp makes of exported files; logits as a part of the largest."""
    lines = [
        [row["model"], row["blocks"], f"{float(row['weights_differing_by']):g}"]
        + [f"{float(row[column]):.2%}" for column in ("logits", "logits_of_float32_weights")]
        + [f"{row['greedy_tokens_agreeing']} of {row['greedy_tokens']}"]
        + [f"{row['texts_cut_alike']} of {row['texts']}" if row["vocabulary"] != "none" else ""]
        for row in rows("gguf_files")
    ]
    header = ["model", "blocks", "weights differ by", "logits", "with the weights as float32", "greedy tokens"]
    return table([*header, "texts cut alike"], lines)


def _name(w: str, w_symmetric: str, a: str, a_symmetric: str) -> str:
    def kind(symmetric: str) -> str:
        return "symmetric" if symmetric == "True" else "asymmetric"

    return f"W{w} {kind(w_symmetric)}" + (f", A{a} {kind(a_symmetric)}" if a != "16" else "")


def _largest(here: list[dict[str, str]], column: str) -> str:
    numbers = [float(row[column]) for row in here if row[column] and not row[column].startswith("error")]
    failed = [row for row in here if row[column].startswith("error")]
    if not numbers:
        return "error" if failed else ""
    largest = "0" if max(numbers) == 0 else f"{max(numbers):.2g}"
    return largest + (f" ({len(failed)} of {len(here)}: error)" if failed else "")


if __name__ == "__main__":
    print(readers(), measured(), sep="\n\n")
