"""The tables of what runs beyond one process: servers, cut models, models of which a part is on disk, adapters, jobs."""

from __future__ import annotations

from collections import defaultdict

from result_tables import rows, table


def serving() -> str:
    """Tokens per second of all clients together, and the median wait for the first token."""
    found: dict[tuple[str, str], dict[str, dict[str, str]]] = defaultdict(dict)
    for row in rows("serving"):
        found[row["model"], row["scheme"]][row["engine"]] = row
    lines = []
    for (model, scheme), engines in found.items():
        cells = [model, scheme]
        for engine in ("one after another", "together"):
            row = engines[engine]
            cells += [f"{float(row['tokens_per_second']):.1f}", f"{float(row['ratio']):.2f}x"]
            cells.append(f"{float(row['first_token_seconds']):.1f} s")
        lines.append(cells)
    header = ["model", "scheme", "one after another: tokens/s", "of BF16", "first token"]
    return table([*header, "together: tokens/s", "of BF16", "first token"], lines)


def parallel() -> str:
    """The largest difference of logits from one process over all models, by scheme and number of processes."""
    found: dict[tuple[str, str], list[dict[str, str]]] = defaultdict(list)
    for row in rows("parallel"):
        found[row["scheme"], row["processes"]].append(row)
    lines = []
    for (scheme, processes), here in found.items():
        cells = [scheme, processes]
        for dtype in ("float32", "float64"):
            largest = max(float(row[f"{dtype}_max_difference"]) for row in here)
            cells.append("0" if largest == 0 else f"{largest:.1e}")
        for part in ("packed_bytes", "cache_bytes"):
            parts = [int(row[f"{part}_each"]) / int(row[part]) for row in here if int(row[part])]
            cells.append(f"{min(parts):.3f} to {max(parts):.3f}" if parts else "")
        lines.append(cells)
    return table(["scheme", "processes", "float32", "float64", "part of the weights", "part of the cache"], lines)


OFFLOAD_COLUMNS = ("memory_mb", "disk_mb", "peak_anonymous_loading_mb", "peak_anonymous_scoring_mb", "peak_resident_mb")


def offload() -> str:
    """What a model takes in memory when room is given for a part of it."""
    lines = [
        [row["scheme"], row["source"], row["room"]]
        + [f"{float(row[column]):.0f} MB" for column in OFFLOAD_COLUMNS]
        + [f"{float(row['max_logit_difference']):.0e}" if float(row["max_logit_difference"]) else "0"]
        for row in rows("offload")
    ]
    header = ["scheme", "files", "room", "in memory", "on disk", "peak loading", "peak of all", "with pages of files"]
    return table([*header, "max logit difference"], lines)


def adapters() -> str:
    """Loss before and after the steps, and whether anything else moved."""
    lines = [
        [row["scheme"] + (", checkpointed" if row["checkpointing"] == "True" else "")]
        + [f"{float(row[column]):.3f}" for column in ("loss_first", "loss_last")]
        + [row["base_unchanged"], row["reloaded_max_logit_difference"]]
        for row in rows("adapters")
    ]
    return table(
        ["scheme", "loss of the first steps", "of the last", "base unchanged", "difference when reloaded"], lines
    )
