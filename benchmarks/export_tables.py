"""The tables of exported checkpoints: who reads what, and what was measured."""

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
