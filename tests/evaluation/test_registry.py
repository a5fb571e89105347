"""Every benchmark of the study has an id, a file that lm_eval loads, a source, a licence and the right chance level."""

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from datasets import Dataset

from qllm_hf.errors import ConfigError
from qllm_hf.evaluation.harness import TASK_FOLDER, nearest_file
from qllm_hf.evaluation.miniature import MINIATURE
from qllm_hf.evaluation.questions import documents_of
from qllm_hf.evaluation.record import ABILITIES
from qllm_hf.evaluation.registry import TASKS, find_task, size_of, tasks_of
from qllm_hf.evaluation.scoring.rules import RULES
from qllm_hf.evaluation.sources import read_jsonl
from qllm_hf.evaluation.study import LENGTHS, STUDY
from qllm_hf.evaluation.upstream import FOLDERS, UPSTREAM, task_folders

HAND_MADE = Path(__file__).parents[1] / "data" / "eval"
WITHOUT_SHARED_ROWS = ("qllm_chid", "qllm_race_middle", "qllm_race_high", "qllm_siqa", "qllm_ceval")
ASKED_BY_LM_EVAL = [name for name, info in STUDY.items() if info.documents is not None]

# Section 2 of the study's specification.
BENCHMARKS = {
    "nlp": ["LAMBADA", "CHID", "WinoGrande", "RACE (middle)", "RACE (high)", "PIQA", "Social IQa"],
    "emergent": ["MMLU", "C-Eval", "StrategyQA", "GSM8K", "ARC-Challenge", "ARC-Easy", "HellaSwag", "self-calibration"],
    "trust": [
        *(f"ETHICS ({part})" for part in ("commonsense", "deontology", "justice", "virtue")),
        *(f"TruthfulQA ({kind})" for kind in ("MC1", "MC2")),
        *(f"AdvGLUE ({part})" for part in ("mnli", "mnli_mismatched", "qnli", "qqp", "rte", "sst2")),
    ],
    "dialogue": ["MT-Bench"],
    "long": [*(f"LongEval, {number} lines" for number in LENGTHS), "multi-document questions"],
}
BLIND = {"yes_no": 1 / 2, "reasonable": 1 / 2, "yes_no_chain": 1 / 2}
"""{rule with two words: what guessing gets}"""


@pytest.fixture(scope="module")
def manager():
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=TASK_FOLDER, include_defaults=False)


@pytest.fixture(scope="module")
def rows_of(shared) -> Callable[[str], Path]:
    """The data folder for a task: real rows, or hand-made ones of the same schema where there are no real ones."""
    return lambda task: HAND_MADE if task in WITHOUT_SHARED_ROWS else shared / "data"


def test_every_study_task_has_a_file_and_every_file_a_task():
    files = [path for path in (TASK_FOLDER / "study").glob("*.yaml") if not path.stem.startswith("_")]
    said = {}
    for path in files:
        content = path.read_text().replace("!function ", "")
        said[path.stem] = yaml.safe_load(content)
    assert {settings["task"] for settings in said.values()} == set(ASKED_BY_LM_EVAL)
    for stem, settings in said.items():
        assert settings["task"] == f"qllm_{stem}"
        assert settings["dataset_kwargs"] == {"task": settings["task"]}, "the rows it asks for are its own"


@pytest.mark.parametrize("task", ASKED_BY_LM_EVAL)
def test_lm_eval_loads_it_and_asks_its_documents(task, manager, rows_of):
    """Prompts, choices and the output type that the task's rule reads reach lm_eval as they are."""
    documents, _ = documents_of(task, rows_of(task))
    rows = {"custom_dataset": lambda **_: {"test": Dataset.from_list(documents[:3])}}
    loaded = manager.load([{"group": "run", "task": [{"task": nearest_file(task), **rows}]}])["tasks"]
    (asked,) = loaded.values()
    info = STUDY[task]
    compares = info.rule == "choice"
    wanted = "multiple_choice" if compares else "generate_until"
    assert wanted == asked.OUTPUT_TYPE
    assert asked.config.num_fewshot == 0, "examples are in the prompts already"
    asked.build_all_requests(rank=0, world_size=1)
    requests = [instance.args for instance in asked.instances]
    if compares:
        assert requests == [(found["prompt"], choice) for found in documents[:3] for choice in found["choices"]]
    else:
        assert [prompt for prompt, _ in requests] == [found["prompt"] for found in documents[:3]]
        assert all(settings["do_sample"] is False for _, settings in requests), "greedy"


@pytest.mark.parametrize(
    ("task", "tokens", "until"),
    [
        ("qllm_lambada", 5, []),
        ("qllm_gsm8k", 512, ["\n\n"]),
        ("qllm_strategyqa", 512, ["\n\n"]),
        ("qllm_ethics_virtue", 100, []),
        ("qllm_lines_200", 100, []),
        ("qllm_multidoc_qa", 100, []),
    ],
)
def test_answers_are_as_long_as_in_the_study(task, tokens, until, manager, rows_of):
    rows = {"custom_dataset": lambda **_: {"test": Dataset.from_list(documents_of(task, rows_of(task))[0][:2])}}
    (asked,) = manager.load([{"group": "run", "task": [{"task": task, **rows}]}])["tasks"].values()
    asked.build_all_requests(rank=0, world_size=1)
    settings = asked.instances[0].args[1]
    assert (settings["max_gen_toks"], settings["until"]) == (tokens, until)


@pytest.mark.parametrize("task", FOLDERS)
def test_the_folders_of_lm_eval_hold_its_own_tasks(task):
    from lm_eval.tasks import TaskManager

    assert task in UPSTREAM
    assert task in TaskManager(include_path=task_folders([task]), include_defaults=False).all_tasks


def test_every_benchmark_of_the_study_has_an_id():
    names = {ability: [TASKS[task].benchmark for task in tasks_of([ability])] for ability in ABILITIES}
    assert set(BENCHMARKS) == set(ABILITIES)
    for ability, wanted in BENCHMARKS.items():
        for benchmark in wanted:
            assert any(benchmark in name for name in names[ability]), benchmark
    assert not any("Jeopardy" in name for name in names["nlp"]), "which is not in the study"


def test_ids_abilities_rules_and_levels_are_of_one_piece():
    assert set(STUDY) & set(UPSTREAM) == set(STUDY) & set(MINIATURE) == set(UPSTREAM) & set(MINIATURE) == set()
    assert {info.ability for info in STUDY.values()} == set(ABILITIES)
    for name, info in {**STUDY, **UPSTREAM}.items():
        assert info.ability in ABILITIES and info.benchmark and info.metric, name
        assert info.rule in RULES or info.documents is None, name
        assert info.chance is None or 0 <= info.chance < info.best, name
        assert info.ability == "dialogue" or bool(info.shots) == bool(info.source.shots_file), name


def test_every_task_says_where_its_data_is_and_under_which_licence():
    for name, info in {**STUDY, **UPSTREAM}.items():
        source = info.source
        assert source.licence, name
        assert source.file.count("/") == 1, name
        assert source.hub or source.home.startswith("https://"), name
        assert source.columns or info.ability == "dialogue", name
        if source.shots_file and source.hub and info.documents is not None:
            assert source.shots_split, f"{name}: its examples are on the Hub too"


def test_files_have_the_columns_that_are_asked_for(shared, rows_of):
    for name, info in {**STUDY, **UPSTREAM}.items():
        rows = read_jsonl(rows_of(name) / f"{info.source.file}.jsonl", info.source.columns)
        assert len(rows) >= 6, name
        if info.source.shots_file and info.documents is not None:
            assert read_jsonl(rows_of(name) / f"{info.source.shots_file}.jsonl", info.source.columns)


@pytest.mark.parametrize("task", [name for name in ASKED_BY_LM_EVAL if STUDY[name].rule == "choice"])
def test_chance_is_what_guessing_one_of_the_choices_gets(task, rows_of):
    documents, _ = documents_of(task, rows_of(task))
    parts = [1 / len(found["choices"]) for found in documents]
    assert STUDY[task].chance == pytest.approx(sum(parts) / len(parts), abs=0.002), "rows of ARC have 3 to 5 choices"
    assert all(0 <= found["label"] < len(found["choices"]) for found in documents)


@pytest.mark.parametrize("task", [name for name, info in STUDY.items() if info.rule in (*BLIND, "option")])
def test_chance_is_what_guessing_one_of_the_answers_gets(task, shared):
    answers = {answer for found in documents_of(task, shared / "data")[0] for answer in found["answers"]}
    assert STUDY[task].chance == BLIND.get(STUDY[task].rule, 1 / len(answers)) == 1 / len(answers)


def test_chance_of_truthfulqa_is_that_of_its_questions(shared):
    rows = read_jsonl(shared / "data" / "trustworthiness" / "truthfulqa_mc.jsonl")
    one = [1 / len(row["mc1_targets"]["choices"]) for row in rows]
    many = [sum(row["mc2_targets"]["labels"]) / len(row["mc2_targets"]["labels"]) for row in rows]
    for task, parts in (("truthfulqa_mc1", one), ("truthfulqa_mc2", many)):
        assert UPSTREAM[task].chance == pytest.approx(sum(parts) / len(parts), abs=0.015), task


def test_written_answers_cannot_be_guessed():
    for name, info in STUDY.items():
        if info.documents is not None and info.rule not in ("choice", "option", *BLIND):
            assert info.chance == 0.0, name
    assert (STUDY["qllm_mt_bench"].chance, STUDY["qllm_mt_bench"].best) == (1.0, 10.0), "ratings are from 1 to 10"


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("qllm_pika", "Did you mean 'qllm_piqa'?"),
        ("QLLM_PIQA", ""),
        ("mini_clozes", "Did you mean 'mini_cloze'?"),
        ("truthfulqa_mc3", "Did you mean 'truthfulqa_mc"),
        ("", ""),
        ("qllm_lines_0", "Did you mean 'qllm_lines_"),
        ("qllm_lines_1", "Did you mean 'qllm_lines_"),
        ("qllm_lines_-3", "Did you mean 'qllm_lines_"),
        ("qllm_lines_abc", ""),
        ("qllm_lines_007", ""),
        ("qllm_lines_2.5", ""),
        ("qllm_lines_", ""),
        ("qllm_lines_20\n", ""),
        ("qllm_lines_٣٣", ""),
        ("qllm_kv_retrieval_0", "Did you mean 'qllm_kv_retrieval_"),
        ("qllm_kv_retrieval_x", ""),
    ],
)
def test_what_is_no_task_is_refused_with_a_hint(name, hint):
    with pytest.raises(ConfigError) as refused:
        find_task(name)
    message = str(refused.value)
    assert message.startswith(f"there is no task {name!r}.")
    assert hint in message and message.endswith("`qllm-hf tasks` lists them all.")


@pytest.mark.parametrize("number", [2, 7, 75, 200, 1234, 9999])
@pytest.mark.parametrize(("prefix", "what"), [("qllm_lines_", "lines"), ("qllm_kv_retrieval_", "keys")])
def test_sizes_exist_for_every_number(prefix, what, number):
    info = find_task(f"{prefix}{number}")
    assert size_of(f"{prefix}{number}") == number
    assert info.benchmark.endswith(f", {number} {what}")
    assert info.ability == "long" and info.documents is not None
    like = STUDY[f"{prefix}200" if what == "lines" else f"{prefix}75"]
    assert (info.rule, info.chance, info.source, info.chat) == (like.rule, like.chance, like.source, like.chat)


def test_known_tasks_are_what_the_table_says():
    for name, info in TASKS.items():
        assert find_task(name) is info


def test_tasks_of_abilities():
    everything = tasks_of(["all"])
    assert set(everything) == {task for ability in ABILITIES for task in tasks_of([ability])}
    assert tasks_of(["long", "nlp"]) == [
        task for task in everything if task in {*tasks_of(["nlp"]), *tasks_of(["long"])}
    ]
    assert "qllm_piqa" in everything and "wikitext" in everything and "truthfulqa_mc1" in everything
    for variant in ("piqa", "gsm8k", "qllm_gaokao"):
        assert variant not in everything, "another form of a benchmark that counts already"
    assert tasks_of(["nlp"], "mini") == [task for task, info in MINIATURE.items() if info.ability == "nlp"]
    assert tasks_of(["all"], "mini") == list(MINIATURE)
    assert tasks_of([]) == []


def test_every_ability_is_covered_in_both_collections():
    for ability in ABILITIES:
        assert tasks_of([ability]) and tasks_of([ability], "mini")


def test_abilities_that_are_none():
    with pytest.raises(
        ConfigError, match=r"no ability 'emergant'\. Did you mean 'emergent'\? Abilities: nlp, .*or all"
    ):
        tasks_of(["nlp", "emergant"])
