"""The tables of the package are the published numbers, one for one, and every oddity is attached to its rows."""

import csv
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from qllm_hf.evaluation import record
from qllm_hf.evaluation.registry import TASKS
from qllm_hf.published import benchmarks, read
from qllm_hf.published.anomalies import ANOMALIES, KINDS, Anomaly
from qllm_hf.published.models import SIZE_CLASSES, size_class
from qllm_hf.published.names import scheme_name
from qllm_hf.published.query import published
from qllm_hf.published.read import all_scores
from qllm_hf.published.score import PublishedScore
from qllm_hf.published.speedups import speedups

FOLDER = Path(read.__file__).parent


def lines(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def as_published(score: PublishedScore) -> dict[str, object]:
    """A row in the words of the collected results."""
    return {
        "ability_group": benchmarks.STUDY_ABILITIES[score.ability],
        "benchmark": score.benchmark,
        "subset": score.subset,
        "metric": score.metric,
        "model": score.model,
        "family": score.family,
        "params_b": score.params_b,
        "scheme": score.scheme,
        "value": score.value,
        "unit": score.unit,
        "source_file": score.source,
    }


def collected(shared: Path) -> list[dict[str, object]]:
    return [
        {
            **line,
            "params_b": float(line["params_b"]),
            "value": float(line["value"]),
            "scheme": scheme_name(line["scheme"]),
        }
        for line in lines(shared / "reference" / "paper_results.csv")
    ]


def test_every_row_is_the_published_one(shared):
    rows = collected(shared)
    assert len(rows) == len(all_scores()) == 5910
    assert [as_published(score) for score in all_scores()] == rows


def test_a_changed_value_would_be_noticed(shared):
    rows = collected(shared)
    changed = [*all_scores()[:99], replace(all_scores()[99], value=0.0), *all_scores()[100:]]
    assert [number for number, score in enumerate(changed) if as_published(score) != rows[number]] == [99]


def test_speedups_are_the_printed_ones(shared):
    rows = lines(shared / "reference" / "survey_w4a16_speedups.csv")
    found = [
        (cell.framework, cell.model, cell.gpu, cell.batch, cell.input_tokens, cell.stage, cell.speedup)
        for cell in speedups()
    ]
    assert found == [
        (
            row["framework"],
            row["model"],
            row["gpu"],
            int(row["batch"]),
            int(row["input_len"]),
            row["stage"],
            float(row["speedup_vs_fp16"]) if row["status"] == "ok" else None,
        )
        for row in rows
    ]
    assert (len(found), sum(cell[-1] is None for cell in found)) == (300, 6)


def test_data_is_small_enough_to_review():
    assert sum(path.stat().st_size for path in FOLDER.glob("*.csv")) < 450_000


def test_a_row_is_found_once():
    keys = Counter((row.benchmark, row.subset, row.metric, row.model, row.scheme) for row in all_scores())
    assert set(keys.values()) == {1}
    assert all(row.fp16 == row.value for row in published(scheme="FP16"))


def test_tables_name_each_other():
    assert {row["source"] for row in read.rows_of("sources")} == {row["source"] for row in read.rows_of("scores")}
    assert set(read.models()) == {row.model for row in all_scores()}
    assert {row.benchmark for row in all_scores()} == set(benchmarks.BENCHMARKS)
    for benchmark in benchmarks.BENCHMARKS.values():
        rows = published(benchmark=benchmark.name)
        assert {row.metric: row.unit for row in rows} == dict(benchmark.units)
        assert benchmark.main in benchmark.units
        assert {name for name in benchmark.items if name} <= {row.subset for row in rows}


def test_values_lie_in_their_unit():
    for row in all_scores():
        if row.metric not in benchmarks.LOWER_IS_BETTER:
            assert 0 <= row.value <= benchmarks.SCALES[row.unit][1]


def test_accuracies_are_whole_numbers_of_answers():
    """What a score's number of items says about its value; the flagged three are the ones that do not fit."""
    odd = []
    for row in all_scores():
        items = benchmarks.BENCHMARKS[row.benchmark].items
        count = items.get(row.subset, items.get(""))
        if count is None or row.metric not in ("accuracy", "mc1") or "pos" in row.subset:
            continue
        scale = benchmarks.SCALES[row.unit][1]
        digits = max(len(str(row.value).partition(".")[2]), 2 if scale == 100 else 3)
        if abs(round(row.value / scale * count) / count * scale - row.value) > 0.51 * 10**-digits + 1e-9:
            odd.append((row.benchmark, row.model, row.scheme, row.flags))
    assert [(benchmark, model, scheme) for benchmark, model, scheme, _ in odd] == [
        ("lambada", "LLaMA2-7B", "W3"),
        ("strategyqa", "Falcon-180B", "W4A4"),
        ("strategyqa", "Falcon-40B", "KV2"),
    ]
    assert all({"A10a", "A10b", "A10c"} & set(flags) for *_, flags in odd)


# How many rows each oddity concerns
CONCERNED = {
    "A01": 440,
    "A02": 1,
    "A03": 1,
    "A04a": 24,
    "A04b": 378,
    "A05": 4,
    "A06": 54,
    "A07": 11,
    "A08": 168,
    "A09": 84,
    "A10a": 1,
    "A10b": 1,
    "A10c": 1,
    "A10d": 1,
    "A10e": 45,
    "A11": 0,
    "A12": 1095,
    "A13": 30,
    "A14": 0,
    "A15": 256,
}


def test_each_oddity_is_attached_to_its_rows():
    counts = Counter(flag for row in all_scores() for flag in row.flags)
    assert {anomaly: counts[anomaly] for anomaly in ANOMALIES} == CONCERNED
    assert {anomaly.kind for anomaly in ANOMALIES.values()} == set(KINDS)


def test_the_values_bear_the_oddities_out():
    others = published(benchmark="mt_bench", scheme="W4A4").without("imputed")
    assert [(row.model, row.value) for row in others] == [("StableLM-3B-zephyr", 1.14), ("Mamba-2.8B-chat", 1.41)]
    zeros = published(benchmark="longeval_lines", scheme=("W2", "W4A4", "KV2"))
    assert {row.value for row in zeros} == {0.0}
    a, b = (
        published(benchmark="mt_bench", scheme="KV3", model=f"{m}-instruct") for m in ("Mistral-7B", "Mixtral-8x7B")
    )
    assert [row.value for row in a] == [row.value for row in b] == [6.26, 4.96]
    (length,) = published(model="Mistral-7B", benchmark="longeval_lines", scheme="KV8", subset="length=16k")
    positions = published(model="Mistral-7B", benchmark="longeval_lines", scheme="KV8", subset="position=*")
    bins = (48, 59, 36, 40, 63, 41, 57, 53, 55, 48)
    mean = sum(row.value * items for row, items in zip(positions, bins, strict=True)) / sum(bins)
    assert (length.value, mean) == (0.934, pytest.approx(0.904, abs=5e-4))


def test_an_anomaly_concerns_what_it_says_and_no_more():
    place = {"benchmark": "b", "model": "m", "family": "f", "scheme": "W4", "metric": "acc", "subset": "position=3"}
    place["value"] = 1.0
    assert Anomaly("A", "noted", "", value=1.0).concerns(**place)
    assert not Anomaly("A", "noted", "", value=0.0).concerns(**place)
    assert Anomaly("A", "noted", "", subsets=("position=*",), schemes=("W4",)).concerns(**place)
    assert not Anomaly("A", "noted", "", subsets=("position",)).concerns(**place)
    assert not Anomaly("A", "noted", "", schemes=("W3",)).concerns(**place)
    assert not Anomaly("A", "absent", "").concerns(**place)


def test_abilities_are_the_ones_we_measure():
    assert benchmarks.ABILITIES == record.ABILITIES == tuple(benchmarks.STUDY_ABILITIES)


@pytest.mark.parametrize(
    ("benchmark", "task"),
    [
        ("lambada", "qllm_lambada"),
        ("mmlu", "qllm_mmlu"),
        ("ceval", "qllm_ceval"),
        ("gsm8k", "qllm_gsm8k"),
        ("strategyqa", "qllm_strategyqa"),
        ("arc-c", "qllm_arc_challenge"),
        ("arc-e", "qllm_arc_easy"),
        ("hellaswag", "qllm_hellaswag"),
        ("mmlu-calib", "qllm_calibration"),
        ("ethics:virtue", "qllm_ethics_virtue"),
        ("advglue:adv_mnli", "qllm_adv_mnli"),
        ("advglue:adv_mnli_mm", "qllm_adv_mnli_mismatched"),
        ("advglue:adv_rte", "qllm_adv_rte"),
        ("truthfulqa", "truthfulqa_mc1"),
        ("longeval_lines", "qllm_lines_680"),
        ("lost_in_the_middle", "qllm_multidoc_qa"),
        ("mt_bench", "qllm_mt_bench"),
    ],
)
def test_our_chance_levels_are_those_of_our_tasks(benchmark, task):
    name, _, subset = benchmark.partition(":")
    entry, info = benchmarks.BENCHMARKS[name], TASKS[task]
    assert entry.guessing(entry.main, subset, "ours") == pytest.approx(info.chance / info.best)
    assert entry.ability == info.ability


def test_size_classes_leave_no_gap():
    edges = sorted(SIZE_CLASSES.values())
    assert edges[0][0] == 0
    assert edges[-1][1] == float("inf")
    assert all(left[1] == right[0] for left, right in pairwise(edges))
    assert [size_class(size) for size in (5.9, 6, 12.9, 13)] == [
        "below 6B",
        "6B to 13B",
        "6B to 13B",
        "13B and above",
    ]
    mixtral = read.models()["Mixtral-8x7B"]
    assert (mixtral.is_moe, mixtral.size_class) == (True, "6B to 13B")
    assert sum(model.is_moe for model in read.models().values()) == 2
