"""Runs as a whole: what they keep, what they do not ask twice, and what several processes make of them."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import fields
from pathlib import Path

import jsonschema
import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

import qllm_hf
from qllm_hf.errors import ConfigError
from qllm_hf.evaluation import record as record_module
from qllm_hf.evaluation.dialogue import Rater
from qllm_hf.evaluation.engine import Subject, evaluate
from qllm_hf.evaluation.lines import read_lines
from qllm_hf.evaluation.lm import QllmLM
from qllm_hf.evaluation.record import Record
from qllm_hf.evaluation.samples import read_samples
from qllm_hf.evaluation.store import Store
from qllm_hf.evaluation.upstream import UPSTREAM

SCHEMA = json.loads((Path(record_module.__file__).parent / "record.schema.json").read_text())
LIKELY_AND_WRITTEN = ["qllm_piqa", "qllm_mmlu", "qllm_gsm8k", "truthfulqa_mc2", "mini_cloze"]


@pytest.fixture(scope="module")
def data(shared):
    return shared / "data"


@pytest.fixture(scope="module")
def tokenizer(stories):
    return AutoTokenizer.from_pretrained(stories)


@pytest.fixture(scope="module")
def model(stories):
    return AutoModelForCausalLM.from_pretrained(stories).eval()


def results(records):
    return [record.result for record in records]


@pytest.mark.oldest
def test_log_likelihood_tasks_see_kv_bits(model, tokenizer, stories, data):
    """The loss of WikiText and the mass on true answers change with KV bits, a single forward each."""
    tasks = ["wikitext", "truthfulqa_mc2", "qllm_piqa"]
    values = {}
    for scheme in ("FP16", "KV8", "KV4", "KV2"):
        config = qllm_hf.QllmConfig.from_scheme(scheme)
        bits = model if scheme == "FP16" else AutoModelForCausalLM.from_pretrained(stories, quantization_config=config)
        records = evaluate(bits.eval(), tokenizer, scheme, tasks, limit=4, data_dir=data)
        values[scheme] = [record.value for record in records]
    assert values["KV8"][0] == pytest.approx(values["FP16"][0], rel=0.01)
    assert values["FP16"][0] < values["KV4"][0] < values["KV2"][0]
    assert abs(values["KV2"][1] - values["FP16"][1]) > 0.01


def test_a_value_is_lm_evals_own(model, tokenizer, data):
    """Mean and standard error are computed here from the items; lm_eval's own are the same."""
    from lm_eval import evaluator
    from lm_eval.tasks import TaskManager

    from qllm_hf.evaluation.harness import TASK_FOLDER, quiet_lm_eval

    (record,) = evaluate(model, tokenizer, "FP16", ["mini_calibration"], limit=30)
    with quiet_lm_eval():
        manager = TaskManager(include_path=TASK_FOLDER, include_defaults=False)
        lm = QllmLM(model, tokenizer=tokenizer)
        found = evaluator.evaluate(lm, manager.load(["mini_calibration"]), limit=30)["results"]["mini_calibration"]
    assert (record.value, record.stderr) == pytest.approx((found["acc,none"], found["acc_stderr,none"]), rel=1e-12)


def test_two_runs_agree_in_every_bit(model, tokenizer, data, tmp_path):
    runs = [
        evaluate(model, tokenizer, "FP16", LIKELY_AND_WRITTEN, limit=6, data_dir=data, out=tmp_path / name)
        for name in ("one", "two")
    ]
    assert results(runs[0]) == results(runs[1])
    for task in LIKELY_AND_WRITTEN:
        files = [tmp_path / name / "samples" / "model" / "FP16" / f"{task}.jsonl" for name in ("one", "two")]
        assert files[0].read_bytes() == files[1].read_bytes()
    assert not (tmp_path / "one" / "answers").exists()


def test_examples_that_lm_eval_draws_are_the_same_again(model, tokenizer, data, stories):
    """They are drawn with the seed of its command line; without it each run would see others."""
    from lm_eval import simple_evaluate

    from qllm_hf.evaluation.harness import load_task, quiet_lm_eval

    def prompts(task):
        task.build_all_requests(limit=3, rank=0, world_size=1)
        return [request.args[0] for request in task.instances]

    with quiet_lm_eval():
        first, second = (load_task("gsm8k", data, 3) for _ in range(2))
        asked = prompts(first.tasks["gsm8k"])
        assert prompts(second.tasks["gsm8k"]) == asked
        lm = QllmLM(model, tokenizer=tokenizer)
        theirs = simple_evaluate(lm, tasks=[load_task("gsm8k", data, 3).tasks["gsm8k"]], limit=3, bootstrap_iters=0)
        samples = [sample for sample in theirs["samples"]["gsm8k"] if sample["filter"] == "strict-match"]
        assert [sample["arguments"][0][0] for sample in samples] == asked
        other = load_task("gsm8k", data, 3).tasks["gsm8k"]
        other.set_fewshot_seed(seed=5)
        assert prompts(other) != asked


def test_what_is_there_is_not_asked_again(model, tokenizer, data, tmp_path, monkeypatch):
    options = {"limit": 4, "data_dir": data, "out": tmp_path}
    first = evaluate(model, tokenizer, "FP16", ["qllm_piqa"], **options)
    monkeypatch.setattr("qllm_hf.evaluation.lm.score", lambda *arguments: pytest.fail("asked"))
    assert evaluate(model, tokenizer, "FP16", ["qllm_piqa"], **options) == first
    assert len(read_lines(tmp_path / "records.jsonl")) == 1
    for other in ({"limit": 5}, {"out": tmp_path / "elsewhere"}):
        with pytest.raises(pytest.fail.Exception, match="asked"):
            evaluate(model, tokenizer, "FP16", ["qllm_piqa"], **{**options, **other})
    with pytest.raises(pytest.fail.Exception, match="asked"):
        evaluate(model, tokenizer, Subject("FP16", "another model"), ["qllm_piqa"], **options)


def test_other_rows_are_another_score(model, tokenizer, data, tmp_path):
    """A record is found by the content of its items, not by the name of a file."""
    folder = tmp_path / "data" / "basic_nlp"
    folder.mkdir(parents=True)
    rows = (data / "basic_nlp" / "piqa.jsonl").read_text().splitlines(keepends=True)
    found = []
    for part in (rows[:4], rows[4:8]):
        (folder / "piqa.jsonl").write_text("".join(part))
        found += evaluate(model, tokenizer, "FP16", ["qllm_piqa"], data_dir=folder.parent, out=tmp_path / "out")
    assert found[0].data != found[1].data
    assert len(read_lines(tmp_path / "out" / "records.jsonl")) == 2


def test_other_examples_are_another_score(model, tokenizer, data, tmp_path):
    """The items are the same, and what stands in front of them is not."""
    folder = tmp_path / "data" / "emergent"
    folder.mkdir(parents=True)
    (folder / "gsm8k.jsonl").write_bytes((data / "emergent" / "gsm8k.jsonl").read_bytes())
    rows = (data / "emergent" / "gsm8k_train.jsonl").read_text().splitlines(keepends=True)
    found = []
    for part in (rows[:4], rows[4:8]):
        (folder / "gsm8k_train.jsonl").write_text("".join(part))
        options = {"limit": 2, "data_dir": folder.parent, "out": tmp_path / "out"}
        found += evaluate(model, tokenizer, "FP16", ["qllm_gsm8k"], **options)
    assert found[0].data["digest"] != found[1].data["digest"]
    assert len(read_lines(tmp_path / "out" / "records.jsonl")) == 2


def test_exceptions_of_a_scheme_are_part_of_a_record(stories, tokenizer, tmp_path):
    """Two models of one scheme name, one with a layer kept in floating point, do not pass for each other."""
    for keep in (None, ["*.0.mlp.down_proj"]):
        config = qllm_hf.QllmConfig.from_scheme("W4", modules_to_not_convert=keep)
        bits = AutoModelForCausalLM.from_pretrained(stories, quantization_config=config).eval()
        (record,) = evaluate(bits, tokenizer, "W4", ["mini_cloze"], limit=2, out=tmp_path)
        assert record.quantization["modules_to_not_convert"] == keep
    assert len(read_lines(tmp_path / "records.jsonl")) == 2


def test_a_partial_run_says_so(model, tokenizer):
    partial, whole = (evaluate(model, tokenizer, "FP16", ["mini_rules"], limit=limit)[0] for limit in (3, None))
    assert (partial.is_partial, partial.limit, partial.items) == (True, 3, 3)
    assert (whole.is_partial, whole.limit, whole.items) == (False, None, 400)
    more = evaluate(model, tokenizer, "FP16", ["mini_rules"], limit=400)[0]
    assert more.result == whole.result  # a limit that leaves nothing out is none


def test_records_say_where_they_come_from(model, tokenizer, stories, data, tmp_path):
    subject = Subject("FP16", str(stories))
    (record,) = evaluate(model, tokenizer, subject, ["qllm_gsm8k"], limit=2, data_dir=data, out=tmp_path, shots=2)
    assert record.revision.startswith("files:") and len(record.revision) == len("files:") + 12
    assert record.data["origin"] == "file emergent/gsm8k.jsonl" and len(record.data["digest"]) == 12
    assert {"torch", "transformers", "lm_eval", "qllm_hf", "python"} <= record.versions.keys()
    assert record.hardware["device"] and record.seconds > 0 and record.date.startswith("20")
    assert (record.shots, record.dtype, record.task_version) == (2, "float32", "1.0")
    (line,) = read_lines(tmp_path / "records.jsonl")
    assert Record.from_json(line) == record
    jsonschema.validate(line, SCHEMA)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**line, "items": 0}, SCHEMA)
    (sample, _) = read_lines(Store(tmp_path).samples(record))
    assert sample["prompt"].count("Let's think step by step") == 3
    assert sample["error"] in {"empty", "copy mistake", "missed condition", "calculation error", "logic error"}


def test_the_schema_names_every_field():
    assert set(SCHEMA["properties"]) == set(SCHEMA["required"]) == {each.name for each in fields(Record)}
    assert SCHEMA["properties"]["format"] == {"const": record_module.FORMAT}


def test_chat_templates_are_used_where_the_study_did(data):
    reference = qllm_hf.reference_model()
    model = AutoModelForCausalLM.from_pretrained(reference).eval()
    tokenizer = AutoTokenizer.from_pretrained(reference)
    tasks = ["qllm_ethics_virtue", "qllm_gsm8k"]
    with_template = evaluate(model, tokenizer, "FP16", tasks, limit=2, data_dir=data)
    without = evaluate(model, tokenizer, "FP16", tasks, limit=2, data_dir=data, chat=False)
    assert [record.chat for record in with_template] == [True, False]
    assert [record.chat for record in without] == [False, False]
    assert with_template[0].usage["prompt_tokens"] > without[0].usage["prompt_tokens"]
    assert with_template[1].result == without[1].result


class Judge:
    """Rates by the length of what it reads; counts how often it was asked."""

    name = "length"

    def __init__(self) -> None:
        self.asked = 0

    def ask(self, messages):
        self.asked += 1
        return f"Short. Rating: [[{1 + len(messages[-1]['content']) % 10}]]"


def test_mt_bench_in_a_run(model, tokenizer, data, tmp_path):
    judge, told = Judge(), []
    rater = Rater(judge, tell=told.append)
    tasks = ["qllm_mt_bench", "qllm_mt_bench_text"]
    options = {"limit": 3, "data_dir": data, "out": tmp_path}
    rated, looked_at = evaluate(model, tokenizer, "FP16", tasks, rater=rater, **options)
    assert rated.items == 6 and judge.asked == 12
    assert [text.split(" with")[0] for text in told] == ["6 calls to the judge"] * 2
    assert 1 <= rated.value <= 10 and rated.judge.startswith("length, prompts ")
    assert (rated.details["turn 1"] + rated.details["turn 2"]) / 2 == pytest.approx(rated.value)
    assert (looked_at.metric, looked_at.items, looked_at.judge) == ("fine", 6, rated.judge)
    assert looked_at.details["judge: no verdict"] == 1.0  # this judge writes ratings only
    for line in read_lines(tmp_path / "records.jsonl"):
        jsonschema.validate(line, SCHEMA)
    lines = read_lines(Store(tmp_path).samples(rated))
    assert [(line["id"], line["turn"]) for line in lines][:2] == [(81, 1), (81, 2)]
    assert all(line["judgement"].startswith("Short.") for line in lines)
    evaluate(model, tokenizer, "FP16", tasks, rater=rater, **options)
    assert judge.asked == 12


def test_mt_bench_needs_a_judge(model, tokenizer):
    with pytest.raises(ConfigError, match=r"needs a judge .*qllm_mt_bench_text"):
        evaluate(model, tokenizer, "FP16", ["qllm_mt_bench"])


def test_a_perplexity_has_the_error_of_a_ratio():
    """Texts of one loss per word have no error, whatever their lengths; others have one."""
    sample = {"filter": "none", "doc_id": 0, "doc": {}, "arguments": [("", "")], "filtered_resps": [0.0]}
    same = [{**sample, "word_perplexity": (-2.0 * words, words)} for words in (10, 20, 300)]
    scores, _ = read_samples("wikitext", UPSTREAM["wikitext"], same)
    assert scores["value"] == pytest.approx(2.718281828**2) and scores["stderr"] == pytest.approx(0, abs=1e-9)
    other = [*same, {**sample, "word_perplexity": (-90.0, 30)}]
    assert read_samples("wikitext", UPSTREAM["wikitext"], other)[0]["stderr"] > 0.01


COMMAND = ["-m", "qllm_hf", "evaluate"]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def command(stories, data, out, *more, processes=1):
    start = [sys.executable]
    if processes > 1:
        start += ["-m", "torch.distributed.run", "--nproc_per_node", str(processes), "--master_port", "0"]
        start += ["--rdzv_backend", "c10d", "--rdzv_endpoint", "127.0.0.1:0"]
    tasks = ["--tasks", "qllm_piqa,qllm_gsm8k,mini_second_turn", "--data-dir", str(data), "-o", str(out)]
    return [*start, *COMMAND, str(stories), "--scheme", "W4KV8", *tasks, *more]


def machine(stories, data, folder):
    """A folder with its own copy of the model; whoever works there knows no other path."""
    shutil.copytree(stories, folder / "model")
    (folder / "data").symlink_to(data)
    return folder


def on_two_machines(folders, *more):
    """The same command on two machines, each in its own folder and with its own cache of the Hub."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = str(found.getsockname()[1])
    started = []
    for rank, folder in enumerate(folders):
        start = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--node_rank", str(rank)]
        start += ["--nproc_per_node", "1", "--master_addr", "127.0.0.1", "--master_port", port]
        run = subprocess.Popen(
            [*start, *command("model", "data", "out", *more)[1:]],
            cwd=folder,
            env={**ENVIRONMENT, "HF_HOME": str(folder / "hub")},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(run)
    try:
        return [(*run.communicate(timeout=300), run.returncode) for run in started]
    finally:
        for run in started:
            run.kill()


def kept(out):
    return [Record.from_json(line).result for line in read_lines(out / "records.jsonl")]


@pytest.mark.slow
@pytest.mark.longest
def test_two_machines_give_the_same_records(stories, data, tmp_path):
    """torchrun on two machines that share nothing, and one process: all the same."""
    words = command("model", "data", "out", "--limit", "24", "--quiet")
    alone = machine(stories, data, tmp_path / "alone")
    once = subprocess.run(words, cwd=alone, env=ENVIRONMENT, capture_output=True, text=True, timeout=300)
    assert once.returncode == 0, once.stderr

    folders = [machine(stories, data, tmp_path / name) for name in ("first", "second")]
    (said, errors, code), (other, other_errors, other_code) = on_two_machines(folders, "--limit", "24", "--quiet")
    assert (code, other_code) == (0, 0), errors + other_errors
    assert said.count("qllm_piqa") == 1 and other == ""  # one process speaks
    assert not (folders[1] / "out").exists()  # and writes

    expected = kept(alone / "out")
    assert len(expected) == 3
    found = folders[0] / "out"
    assert kept(found) == expected, found
    for path in (alone / "out" / "samples").rglob("*.jsonl"):
        assert (found / path.relative_to(alone / "out")).read_bytes() == path.read_bytes()
    assert not (found / "answers").exists()


@pytest.mark.slow
def test_a_dead_process_ends_the_run_with_a_message(stories, data, tmp_path):
    """One of two processes is killed: the other one says so and what is kept; the same command ends the work."""
    out = tmp_path / "out"
    slow = command(stories, data, out, "--limit", "200", processes=2)
    with subprocess.Popen(slow, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as run:
        until = time.monotonic() + 200
        while not (out / "answers" / "process1.jsonl").exists() and time.monotonic() < until:
            time.sleep(0.02)
        os.kill(_process_of(run.pid, "1"), signal.SIGKILL)
        _, errors = run.communicate(timeout=200)
    assert run.returncode != 0
    assert "goes on from there" in errors and str(out) in errors
    assert list((out / "answers").glob("*.jsonl"))


def _process_of(parent: int, rank: str) -> int:
    import psutil

    for child in psutil.Process(parent).children(recursive=True):
        if child.environ().get("RANK") == rank:
            return child.pid
    raise AssertionError(f"no process of rank {rank}")


def test_json_of_a_run_is_one_object(stories, data):
    done = subprocess.run(
        [sys.executable, *COMMAND, str(stories), "--tasks", "mini_cloze", "--limit", "2", "--json"],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=200,
    )
    found = json.loads(done.stdout)
    assert found["partial"] is True and found["records"][0]["task"] == "mini_cloze"
