"""`qllm-hf evaluate` and `qllm-hf tasks`: what they print, what they refuse, and what they do not do twice."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from qllm_hf.cli.asking import choose
from qllm_hf.cli.main import app
from qllm_hf.cli.output import UsageError
from qllm_hf.errors import ConfigError
from qllm_hf.evaluation.record import ABILITIES, Record
from qllm_hf.evaluation.registry import TASKS, tasks_of

HAND_MADE = Path(__file__).parents[1] / "data" / "eval"
QUICK = ("--tasks", "mini_cloze,mini_ethics", "--limit", 4)


def run(*arguments: object, code: int = 0):
    """The result of one command, in this process; its exit code is checked."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    return result


def refusal(*arguments: object, code: int = 1) -> str:
    """What a command says that cannot be done: one line, nothing on stdout."""
    result = run(*arguments, code=code)
    assert result.stdout == ""
    *notes, said = result.stderr.removesuffix("\n").split("\n")
    assert said.startswith("error: ") and not any("error" in note for note in notes)
    return said.removeprefix("error: ")


def folder_with(folder: Path, data: bytes, name: str = "basic_nlp/piqa.jsonl") -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return folder


@pytest.fixture(scope="module")
def chatty(stories, tmp_path_factory) -> Path:
    """The model with a chat template."""
    folder = shutil.copytree(stories, tmp_path_factory.mktemp("cli") / "chatty", copy_function=shutil.copyfile)
    (folder / "chat_template.jinja").write_text(
        "{% for m in messages %}{{ m['role'] }} says {{ m['content'] }}\n{% endfor %}"
    )
    return folder


def test_json_holds_abilities_and_records(stories):
    said = json.loads(run("evaluate", stories, *QUICK, "--scheme", "W4KV8", "--json", "--quiet").stdout)
    assert set(said) == {"partial", "abilities", "records"}
    assert said["partial"] is True
    assert [record["task"] for record in said["records"]] == ["mini_cloze", "mini_ethics"]
    for entry in said["records"]:
        assert (entry["scheme"], entry["items"], entry["limit"]) == ("W4KV8", 4, 4)
        assert (entry["model"], entry["quantization"]["quant_method"]) == (str(stories), "qllm")
        assert entry["revision"].startswith("files:")
        assert Record.from_json(entry).to_json() == entry
    assert set(said["abilities"]) == {TASKS[record["task"]].ability for record in said["records"]}
    for score in said["abilities"].values():
        assert set(score) == {"value", "stderr", "chance", "tasks", "normalised", "normalised_stderr"}


def test_the_page_is_a_table_that_says_it_is_partial(stories):
    page = run("evaluate", stories, *QUICK, "--quiet").stdout
    title, _, rest = page.partition("\n\n")
    assert title.startswith(f"{stories}, scheme FP16, float32: PARTIAL, the first 4 items of each task")
    head, *rows = rest.partition("\n\n")[0].split("\n")
    assert head.split() == ["ability", "task", "benchmark", "metric", "score", "+-", "chance", "items", "answered"]
    rows = [row for row in rows if "mini_" in row]
    assert [row.split()[1] for row in rows] == ["mini_cloze", "mini_ethics"]
    assert all(re.search(r" \d\.\d{4}\* ", row) and "100%" in row for row in rows), "each score bears the mark"
    assert re.search(r"^ability +tasks +mean +\+- +chance +above chance +\+-$", page, re.MULTILINE)


def test_a_whole_benchmark_bears_no_mark(stories):
    """Without --limit: eight rows are all that this benchmark has here."""
    page = run("evaluate", stories, "--tasks", "qllm_chid", "--data-dir", HAND_MADE, "--quiet").stdout
    assert "PARTIAL" not in page and "*" not in page
    assert re.search(r"^nlp +qllm_chid +CHID +acc +[01]\.\d{4} +0\.\d{4} +0\.143 +8 +100%$", page, re.MULTILINE)
    said = json.loads(run("evaluate", stories, "--tasks", "qllm_chid", "--data-dir", HAND_MADE, "--json").stdout)
    assert (said["partial"], said["records"][0]["limit"]) == (False, None)


def test_remarks_go_to_stderr_and_quiet_leaves_none(stories):
    loud = run("evaluate", stories, *QUICK)
    assert "PARTIAL" in loud.stdout and "mini_cloze: acc" not in loud.stdout
    assert re.search(r"FP16 mini_cloze: acc \d\.\d{4} \+- \d\.\d{4} \(4 items; \d+\.\d s\)", loud.stderr)
    assert run("evaluate", stories, *QUICK, "--quiet").stderr == ""


def test_a_model_without_chat_template_is_told_once(stories, chatty):
    told = "the tokenizer has no chat template: every question is asked as plain text."
    result = run("evaluate", stories, "--tasks", "mini_cloze,mini_ethics", "--limit", 2)
    assert result.stderr.count(told) == 1
    assert told not in run("evaluate", stories, "--tasks", "mini_cloze", "--limit", 2, "--no-chat").stderr
    assert told not in run("evaluate", chatty, "--tasks", "mini_cloze", "--limit", 2).stderr


def test_the_chat_template_is_used_where_the_study_did(chatty, shared, tmp_path):
    words = (
        "evaluate",
        chatty,
        "--tasks",
        "qllm_ethics_justice,qllm_piqa",
        "--limit",
        2,
        "--data-dir",
        shared / "data",
    )

    def asked(*options: object) -> list[tuple[bool, str]]:
        out = tmp_path / f"out{len(options)}"
        records = json.loads(run(*words, "-o", out, "--json", *options).stdout)["records"]
        first = [
            json.loads(next(out.glob(f"samples/*/FP16/{record['task']}.jsonl")).read_text().splitlines()[0])["prompt"]
            for record in records
        ]
        return [(record["chat"], prompt) for record, prompt in zip(records, first, strict=True)]

    (by_chat, question), (by_choice, nothing) = asked()
    assert (by_chat, by_choice, nothing) == (True, False, "")
    assert question.startswith("user says Question: Would most people")
    assert asked("--no-chat")[0] == (False, question.removeprefix("user says ").rstrip("\n"))


def test_prompts_that_are_too_long_are_told_with_their_task(stories, shared):
    tasks = "qllm_adv_sst2,qllm_lines_200,qllm_piqa"
    result = run("evaluate", stories, "--tasks", tasks, "--limit", 2, "--data-dir", shared / "data")
    told = {line.split(":")[0].split()[-1]: line for line in result.stderr.split("\n") if "FP16 qllm_" in line}
    assert "; 2 prompts were longer than the model reads and lost their beginning" in told["qllm_lines_200"]
    for short in ("qllm_adv_sst2", "qllm_piqa"):
        assert "lost their beginning" not in told[short]
    assert "100% without an answer" in told["qllm_adv_sst2"] and "without an answer" not in told["qllm_piqa"]


def test_examples_can_be_fewer(shared, stories):
    said = run(
        *("evaluate", stories, "--tasks", "qllm_mmlu", "--shots", 0, "--limit", 2, "--json"),
        *("--data-dir", shared / "data"),
    )
    (record,) = json.loads(said.stdout)["records"]
    assert (record["shots"], record["cut"]) == (0, 0)


def test_the_same_command_asks_nothing_twice(stories, tmp_path, monkeypatch):
    from qllm_hf.evaluation.lm import QllmLM

    asked = []
    work = QllmLM._work

    def counted(self, kind, batches, *rest):
        asked.append(len(batches))
        return work(self, kind, batches, *rest)

    monkeypatch.setattr(QllmLM, "_work", counted)
    words = ("evaluate", stories, *QUICK, "--json", "-o", tmp_path / "out")
    first = json.loads(run(*words).stdout)
    assert len(asked) > 0
    asked.clear()
    assert json.loads(run(*words).stdout) == first, "date and seconds too"
    assert asked == []
    more = json.loads(run(*words, "--tasks", "mini_cloze,mini_robustness").stdout)["records"]
    assert more[0] == first["records"][0] and len(asked) == 1, "only the new task is asked"
    asked.clear()
    other = json.loads(run(*words, "--scheme", "W8").stdout)
    assert asked and other["records"][0]["scheme"] == "W8", "another scheme is another question"
    asked.clear()
    run(*words, "--limit", 3)
    assert asked, "and so is another number of items"


def test_tasks_can_be_called_by_patterns():
    assert choose("qllm_ethics_*", "all", None, False) == [
        f"qllm_ethics_{part}" for part in ("commonsense", "deontology", "justice", "virtue")
    ]
    assert choose("mini", "all", None, False) == tasks_of(["all"], "mini")
    assert choose("mini_cloze, mini ,qllm_lines_77", "all", None, False)[0] == "mini_cloze"
    assert choose("mini,mini_cloze", "all", None, False) == tasks_of(["all"], "mini"), "no task twice"
    assert choose("qllm_lines_77", "all", None, False) == ["qllm_lines_77"]
    assert choose(None, "nlp, long", None, False) == tasks_of(["nlp", "long"])
    assert "qllm_mt_bench" in choose(None, "dialogue", None, True)
    assert choose(None, "dialogue", None, False) == ["qllm_mt_bench_text"], "without a judge it is looked at only"


@pytest.mark.parametrize("words", [("qllm_zz*", "all"), (",", "all"), (None, ","), (None, " ")])
def test_patterns_that_call_for_nothing(words):
    with pytest.raises(UsageError, match=r"matches none|names none"):
        choose(*words, None, False)


def test_names_that_are_none():
    with pytest.raises(ConfigError, match="Did you mean 'qllm_piqa'"):
        choose("qllm_pika", "all", None, False)
    with pytest.raises(ConfigError, match="no ability 'trusts'"):
        choose(None, "trusts", None, False)


@pytest.mark.parametrize(
    ("arguments", "phrases", "code"),
    [
        ("--tasks mini_clozes", ("there is no task 'mini_clozes'. Did you mean 'mini_cloze'?",), 1),
        ("--tasks qllm_lines_1", ("there is no task 'qllm_lines_1'.",), 1),
        ("--abilities nlq", ("there is no ability 'nlq'. Did you mean 'nlp'?", "or all"), 1),
        ("--tasks nothing_*", ("'nothing_*' matches none", "`qllm-hf tasks`"), 2),
        ("--abilities ,", ("--abilities names none",), 2),
        ("--tasks qllm_mt_bench", ("qllm_mt_bench needs a judge", "--judge", "qllm_mt_bench_text"), 1),
        ("--tasks mini --scheme W9", ("w=9",), 1),
        ("--tasks mini --keep nose", ("Give --scheme as well",), 2),
        ("--tasks mini --scheme W4 --override nose", ("write PATTERN=SCHEME",), 2),
    ],
)
def test_refused_before_a_model_is_loaded(arguments, phrases, code):
    message = refusal("evaluate", "./no-such-folder", *arguments.split(), code=code)
    assert all(phrase in message for phrase in phrases), message


def test_a_model_that_is_not_there():
    assert "there is no folder './no-such-folder'" in refusal("evaluate", "./no-such-folder", "--tasks", "mini")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--limit 1", "--limit"),
        ("--limit many", "--limit"),
        ("--shots -1", "--shots"),
        ("--batch-size 0", "--batch-size"),
        ("--limits 4", "No such option"),
        ("--task mini", "No such option"),
        ("more", "unexpected extra argument"),
    ],
)
def test_command_lines_that_make_no_sense(arguments, message):
    result = run("evaluate", "reference", *arguments.split(), code=2)
    assert message in result.stderr and result.stdout == ""


IN_ONE = b'{"goal": "dry shoes", "sol1": "use paper", "sol2": "use water", "label": 0}\n'


@pytest.mark.parametrize(
    ("data", "phrases"),
    [
        (b"", ("is empty",)),
        (IN_ONE + b"\xe9\n", ("line 2", "no UTF-8")),
        (IN_ONE + IN_ONE[:-9], ("line 2 is no JSON", "copied in full?")),
        (IN_ONE.replace(b"sol2", b"sol3"), ("line 1 has no 'sol2'. Did you mean 'sol3'?",)),
        (IN_ONE.replace(b"0}", b'"first"}'), ("a row of file basic_nlp/piqa.jsonl is not as its benchmark has it",)),
        (None, ("has no basic_nlp/piqa.jsonl",)),
    ],
    ids=["empty", "encoding", "truncated", "column", "value", "file"],
)
def test_rows_that_cannot_be_used_are_one_line(data, phrases, stories, tmp_path):
    folder_with(tmp_path, IN_ONE, "basic_nlp/other.jsonl")
    if data is not None:
        folder_with(tmp_path, data)
    words = ("evaluate", stories, "--tasks", "qllm_piqa", "--data-dir", tmp_path, "--limit", 2)
    message = refusal(*words)
    assert all(phrase in message for phrase in phrases), message
    assert "Traceback" not in message
    error = json.loads(run(*words, "--json", "--quiet", code=1).stderr)["error"]
    assert (error["type"], error["message"]) == ("ConfigError", message)


def test_a_data_folder_that_is_not_there(stories, tmp_path):
    message = refusal("evaluate", stories, "--tasks", "qllm_piqa", "--data-dir", tmp_path / "nowhere")
    assert "there is no data folder" in message and "basic_nlp/" in message


def test_without_network_and_data_folder(stories):
    assert "--data-dir" in refusal("evaluate", stories, "--tasks", "qllm_chid", "--limit", 2)


def test_a_folder_for_results_that_is_a_file(stories, tmp_path):
    (tmp_path / "out").write_text("")
    assert "is a file. Give a folder" in refusal("evaluate", stories, *QUICK, "-o", tmp_path / "out")


def test_tasks_lists_all_of_them():
    rows = json.loads(run("tasks", "--json").stdout)["tasks"]
    assert {row["task"] for row in rows} == set(TASKS)
    keys = {"task", "ability", "benchmark", "metric", "chance", "shots", "source", "file", "licence"}
    for row in rows:
        assert set(row) == {*keys, "counts_for_ability", "group"}
        assert row["benchmark"] and row["licence"] and row["source"], row["task"]
        assert row["ability"] in ABILITIES and row["group"] in ("study", "lm_eval", "mini")
    counting = {row["task"] for row in rows if row["counts_for_ability"]}
    assert counting == set(tasks_of(["all"]))


def test_tasks_of_an_ability():
    rows = json.loads(run("tasks", "--abilities", "long,dialogue", "--json").stdout)["tasks"]
    assert {row["ability"] for row in rows} == {"long", "dialogue"}
    assert {row["task"] for row in rows if row["counts_for_ability"]} == set(tasks_of(["long", "dialogue"]))
    assert "Did you mean 'long'?" in refusal("tasks", "--abilities", "longs")


def test_the_page_of_tasks_names_every_one():
    page = run("tasks").stdout
    assert all(re.search(rf"^ *{re.escape(task)} ", page, re.MULTILINE) for task in TASKS)
    assert not re.search(r"^ *qllm_nothing ", page, re.MULTILINE)
    assert "qllm_lines_N" in page and "--data-dir" in page


@pytest.mark.parametrize("verb", ["evaluate", "tasks"])
def test_each_help_has_an_example(verb):
    assert f"  qllm-hf {verb}" in run(verb, "--help").stdout


def test_help_and_the_list_of_tasks_need_no_torch(tmp_path):
    code = """
import sys
from qllm_hf.cli.main import app
for words in (["evaluate", "--help"], ["tasks", "--help"]):
    try: app(words)
    except SystemExit as stop: assert not stop.code
assert not {"torch", "transformers", "lm_eval", "datasets"} & set(sys.modules), "by --help"
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_as_a_program(stories, shared, tmp_path):
    """stdout holds the JSON alone; progress and remarks are elsewhere."""
    command = [sys.executable, "-m", "qllm_hf", "evaluate", stories, "--tasks", "qllm_piqa,hellaswag", "--limit", "2"]
    options = ["--data-dir", shared / "data", "--json", "-o", "out", "--quiet"]
    done = subprocess.run([*command, *options], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert [record["task"] for record in json.loads(done.stdout)["records"]] == ["qllm_piqa", "hellaswag"]
    assert done.stderr == "", "no bars and no remarks with --quiet"
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["records.jsonl", "samples"]


def test_tasks_can_be_left_out():
    left = choose("mini", "all", "mini_lines_*,mini_cloze", False)
    assert set(tasks_of(["all"], "mini")) - set(left) == {
        "mini_cloze",
        "mini_lines_256",
        "mini_lines_512",
        "mini_lines_1024",
        "mini_lines_2048",
    }
    with pytest.raises(UsageError, match="--without leaves no task"):
        choose("mini_cloze", "all", "mini", False)
    with pytest.raises(ConfigError, match="no task 'mini_close'"):
        choose("mini", "all", "mini_close", False)


def test_all_rows_that_are_missing_are_named_at_once(stories, shared):
    """And the option that leaves them out, which is then taken at its word."""
    said = refusal("evaluate", stories, "--abilities", "nlp", "--data-dir", shared / "data", "--limit", 2)
    assert "has no basic_nlp/chid.jsonl" in said and "4 tasks have rows that are missing or damaged" in said
    left_out = said.rpartition("--without ")[2]
    assert left_out == "qllm_chid,qllm_race_middle,qllm_race_high,qllm_siqa"
    done = run(
        *("evaluate", stories, "--abilities", "nlp", "--data-dir", shared / "data", "--limit", 2),
        *("--without", f"{left_out},wikitext", "--json"),
    )
    assert len(json.loads(done.stdout)["records"]) == 3
