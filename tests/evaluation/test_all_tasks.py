"""Every benchmark once, end to end on a real model: the record makes sense, and its samples give its value again."""

import json
import math
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from qllm_hf.evaluation.dialogue import LOOKED_AT, RATED, Rater
from qllm_hf.evaluation.engine import Subject, evaluate
from qllm_hf.evaluation.judge.prompts import DEFAULT_PROMPTS
from qllm_hf.evaluation.questions import documents_of
from qllm_hf.evaluation.record import FORMAT, Record, ability_scores
from qllm_hf.evaluation.registry import find_task
from qllm_hf.evaluation.scoring.score import score
from qllm_hf.evaluation.study import STUDY
from qllm_hf.evaluation.upstream import UPSTREAM

HAND_MADE = Path(__file__).parents[1] / "data" / "eval"
WITHOUT_SHARED_ROWS = ("qllm_chid", "qllm_race_middle", "qllm_race_high", "qllm_siqa", "qllm_ceval")
LIMIT = 2
LONG = ("qllm_topics", "qllm_multidoc_qa", *(name for name in STUDY if name.startswith(("qllm_lines", "qllm_kv"))))
"""Tasks whose prompts are longer than the 512 tokens that the model reads."""
SHORT = ("qllm_piqa", "qllm_winogrande", "qllm_lambada", "qllm_ethics_virtue", "qllm_adv_sst2", "arc_easy")


class Judge:
    """Gives ratings in turn, and one judgement without any."""

    name = "in turn"

    def __init__(self) -> None:
        self.asked = 0

    def ask(self, messages) -> str:
        assert messages[-1]["role"] == "user"
        self.asked += 1
        return "I cannot say." if self.asked == 3 else f"Fair. Rating: [[{3 + self.asked}]]"


@pytest.fixture(scope="module")
def model(stories):
    return AutoModelForCausalLM.from_pretrained(stories).eval()


@pytest.fixture(scope="module")
def tokenizer(stories):
    return AutoTokenizer.from_pretrained(stories)


@pytest.fixture
def measure(model, tokenizer, shared, tmp_path):
    """A task -> its record, and the lines of its samples as they are on disk."""

    def run(task: str, **options) -> tuple[Record, list[dict]]:
        data = HAND_MADE if task in WITHOUT_SHARED_ROWS else shared / "data"
        subject = Subject("FP16", "stories", "1")
        (record,) = evaluate(model, tokenizer, subject, [task], limit=LIMIT, data_dir=data, out=tmp_path, **options)
        file = tmp_path / "samples" / "stories" / "FP16" / f"{task}.jsonl"
        (stored,) = (tmp_path / "records.jsonl").read_text().splitlines()
        assert Record.from_json(json.loads(stored)).result == record.result
        return record, [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]

    return run


def check_record(task: str, record: Record) -> None:
    """What holds for every score."""
    info = find_task(task)
    assert (record.task, record.ability, record.metric) == (task, info.ability, info.metric)
    assert (record.chance, record.best, record.in_ability) == (info.chance, info.best, info.in_ability)
    assert record.limit == LIMIT and record.is_partial
    assert record.value >= 0 and (record.value <= record.best or task == "wikitext")
    assert record.stderr >= 0 and math.isfinite(record.stderr)
    assert 0 <= record.answered <= 1
    assert record.data["origin"].startswith(("file ", "generated")) and len(record.data["digest"]) == 12
    assert record.shots == info.shots
    assert not record.chat, "the tokenizer has no chat template"
    assert record.usage["requests"] >= record.items and record.usage["prompt_tokens"] > 0
    assert record.seconds > 0 and record.date and record.format == FORMAT
    assert record.versions["lm_eval"] and record.hardware["device"]
    assert ability_scores([record]).keys() == (
        {record.ability} if info.in_ability and info.chance is not None else set()
    )


def again(task: str, record: Record, lines: list[dict]) -> float:
    """The value from nothing but the lines of the samples."""
    info = find_task(task)
    if task == RATED:
        rated = [line["judgement"] for line in lines]
        return score("rated", rated, [{"answers": [], "group": line["category"]} for line in lines]).value
    if task == LOOKED_AT:
        return sum(line["condition"] == "fine" for line in lines) / len(lines)
    if info.rule:
        return score(info.rule, [line["prediction"] for line in lines], lines).value
    if task == "wikitext":
        return math.exp(-sum(line["value"][0] for line in lines) / sum(line["value"][1] for line in lines))
    return math.fsum(line["value"] for line in lines) / len(lines)


@pytest.mark.parametrize("task", [name for name in (*STUDY, *UPSTREAM) if name not in (RATED, LOOKED_AT)])
def test_every_task_runs_and_its_samples_give_its_value(task, measure):
    record, lines = measure(task)
    check_record(task, record)
    assert record.items == len(lines) == LIMIT
    assert [line["id"] for line in lines] == list(range(LIMIT))
    assert again(task, record, lines) == record.value
    assert all(line["prompt"].strip() or "choices" in line or task == "wikitext" for line in lines)
    if find_task(task).documents is not None:
        assert {"prediction", "answers", "group", "value", "answered"} <= lines[0].keys()
        assert sum(line["answered"] for line in lines) / len(lines) == record.answered
    if find_task(task).metric in ("acc", "exact_match") and task != "truthfulqa_mc2":
        assert {line["value"] for line in lines} <= {0.0, 1.0}
        assert math.isclose(record.stderr, abs(lines[0]["value"] - lines[1]["value"]) / 2)
    if task in LONG:
        assert record.cut == LIMIT
    if task in SHORT:
        assert record.cut == 0


def test_another_answer_gives_another_value(measure):
    """The check above would see a sample that is not the one that was scored."""
    record, lines = measure("qllm_piqa")
    flipped = [{**line, "prediction": str(1 - int(line["prediction"]))} for line in lines]
    assert again("qllm_piqa", record, flipped) == 1 - record.value
    assert again("qllm_piqa", record, [lines[0], flipped[1]]) != record.value
    with pytest.raises(AssertionError):
        check_record("qllm_lambada", record)


def test_mt_bench_with_a_judge(measure):
    judge, told = Judge(), []
    record, lines = measure(RATED, rater=Rater(judge, tell=told.append))
    check_record(RATED, record)
    assert judge.asked == len(lines) == 2 * LIMIT, "two turns of each question"
    assert [line["turn"] for line in lines] == [1, 2, 1, 2]
    assert (record.items, record.answered) == (3, 3 / 4), "one judgement had no rating"
    assert record.value == again(RATED, record, lines)
    assert record.judge == f"in turn, prompts {DEFAULT_PROMPTS.digest}"
    assert record.details["without rating"] == 1
    assert sorted(line["rating"] for line in lines) == [-1, 4, 5, 7]
    assert len(told) == 1, "what it will cost is said before"


def test_mt_bench_without_a_judge(measure):
    record, lines = measure(LOOKED_AT)
    check_record(LOOKED_AT, record)
    assert record.items == len(lines) == 2 * LIMIT
    assert record.value == again(LOOKED_AT, record, lines)
    assert record.judge == ""
    assert sum(part for name, part in record.details.items() if name.startswith("text: ")) == pytest.approx(1)


def test_samples_hold_the_questions_in_their_order(measure, shared):
    _, lines = measure("qllm_gsm8k")
    documents, _ = documents_of("qllm_gsm8k", shared / "data")
    assert [line["prompt"] for line in lines] == [document["prompt"] for document in documents[:LIMIT]]
    assert [line["answers"] for line in lines] == [document["answers"] for document in documents[:LIMIT]]
    assert all(line["error"] and line["condition"] for line in lines), "what kind of mistake and text it is"


def test_choices_come_with_their_likelihoods_and_tokens(measure):
    """The lowest loss per token, counted from what is in the file, is the prediction."""
    _, lines = measure("qllm_hellaswag")
    for line in lines:
        losses = [-value / (tokens + 1) for value, tokens in line["likelihoods"]]
        assert losses.index(min(losses)) == int(line["prediction"])
        assert len(line["choices"]) == len(line["likelihoods"]) == 4
