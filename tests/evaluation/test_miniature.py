"""The miniature tasks as lm_eval runs them: the same questions, scored as the curriculum says, without a network."""

import logging
import socket
from pathlib import Path
from random import Random

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

import qllm_hf
from qllm_hf.curriculum.tasks import TASKS, held_out_items
from qllm_hf.errors import ConfigError, MissingExtraError
from qllm_hf.evaluation import harness
from qllm_hf.evaluation.engine import evaluate
from qllm_hf.evaluation.harness import TASK_FOLDER
from qllm_hf.evaluation.miniature import ITEMS, MINIATURE, dataset, text_loss, written
from qllm_hf.evaluation.record import ABILITIES

every_task = pytest.mark.parametrize("name", TASKS)


@pytest.fixture(scope="module")
def manager():
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=TASK_FOLDER, include_defaults=False)


@pytest.fixture(scope="module")
def tokenizer(stories):
    return AutoTokenizer.from_pretrained(stories)


@pytest.fixture(scope="module")
def model(stories):
    return AutoModelForCausalLM.from_pretrained(stories).eval()


def test_every_task_has_a_file_and_belongs_to_an_ability(manager):
    named = {
        path.stem for path in (TASK_FOLDER / "miniature").glob("*.yaml") if not path.stem.startswith(("_", "group"))
    }
    assert named == set(TASKS)
    assert set(MINIATURE) <= set(manager.all_tasks)
    assert {info.ability for info in MINIATURE.values()} == set(ABILITIES)
    groups = {path.stem: yaml.safe_load(path.read_text()) for path in (TASK_FOLDER / "miniature").glob("group_*.yaml")}
    of_group = {group["group"].removeprefix("mini_"): group["task"] for group in groups.values()}
    assert of_group == {
        ability: [name for name, info in MINIATURE.items() if info.ability == ability] for ability in ABILITIES
    }


@every_task
def test_lm_eval_asks_the_test_items(name, manager):
    """Prompt, choices and answer reach the model as the curriculum has them, spaces and all; there are 400."""
    (task,) = manager.load([f"mini_{name}"])["tasks"].values()
    items = held_out_items(TASKS[name], ITEMS)
    docs = list(task.test_docs())
    assert len(docs) == ITEMS >= 200
    assert dataset(name, 3)["test"][:]["prompt"] == [item.prompt for item in items[:3]]
    task.build_all_requests(limit=5, rank=0, world_size=1)
    asked = [instance.args for instance in task.instances]
    expected = []
    for item in items[:5]:
        if TASKS[name].scoring == "choice":
            expected += [(item.prompt, choice) for choice in item.choices]
        elif TASKS[name].scoring == "written":
            expected.append(item.prompt)
        else:
            expected.append((item.prompt, item.answer))
    assert [args[0] if TASKS[name].scoring == "written" else args for args in asked] == expected


def test_written_answers():
    whole, steps = {"answer": " Your name is Mia.", "target": ""}, {"answer": " 1+2=3.", "target": "is 3."}
    assert written(whole, [" Your name is Mia."]) == {"exact_match": 1.0}
    assert written(whole, [" Your name is Mia. And"]) == written(whole, [""]) == {"exact_match": 0.0}
    assert written(steps, [" anything, so it is 3."]) == {"exact_match": 1.0}
    assert written(steps, [" it is 3. No, it is 4."]) == {"exact_match": 0.0}


@torch.no_grad()
def test_the_loss_is_that_of_the_text(model, tokenizer):
    """Against the sum of -log p over the tokens of a story, each story alone, the first token after the bos token."""
    losses = []
    for item in held_out_items(TASKS["stories"], 6):
        ids = torch.tensor([[tokenizer.bos_token_id, *tokenizer(item.answer, add_special_tokens=False).input_ids]])
        logits = model(ids, use_cache=False).logits[0, :-1].double()
        losses.append(torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="sum") / len(item.answer.split()))
    (record,) = evaluate(model, tokenizer, "FP16", ["mini_stories"], limit=6)
    assert record.value == pytest.approx(torch.stack(losses).mean().item(), rel=1e-4)
    assert record.stderr == pytest.approx((torch.stack(losses).std() / 6**0.5).item(), rel=1e-4)
    assert text_loss({"answer": "two words"}, [(-3.0, False)]) == {"nats_per_word": 1.5}


@pytest.mark.oldest
def test_log_likelihoods_and_texts_see_kv_bits(model, tokenizer, stories):
    """The loss of a text needs no cache; it changes with KV bits all the same."""
    quantized = AutoModelForCausalLM.from_pretrained(stories, quantization_config=qllm_hf.QllmConfig(kv=2)).eval()
    tasks = ["mini_stories", "mini_second_turn"]
    floats = evaluate(model, tokenizer, "FP16", tasks, limit=8)
    bits = evaluate(quantized, tokenizer, "KV2", tasks, limit=8)
    assert [record.task for record in bits] == tasks
    assert {(record.scheme, record.items) for record in bits} == {("KV2", 8)}
    assert bits[0].value > floats[0].value + 0.1


def test_limit_takes_the_first_items_and_batches_change_nothing(model, tokenizer):
    values = [
        evaluate(model, tokenizer, "FP16", ["mini_stories", "mini_calibration"], limit=10, batch_size=size)
        for size in (1, 7)
    ]
    assert [record.value for record in values[0]] == pytest.approx([record.value for record in values[1]], abs=1e-4)


def test_nothing_is_asked_of_the_network(model, tokenizer, monkeypatch):
    def refuse(*arguments, **options):
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    assert evaluate(model, tokenizer, "FP16", ["mini_cloze"], limit=2)


def test_lm_eval_is_left_as_it_was(model, tokenizer, capfd):
    import lm_eval.api.task

    level, bar = logging.getLogger("lm_eval").level, lm_eval.api.task.tqdm
    evaluate(model, tokenizer, "FP16", ["mini_cloze"], limit=2)
    assert capfd.readouterr() == ("", "")
    assert (logging.getLogger("lm_eval").level, lm_eval.api.task.tqdm) == (level, bar)


def test_wrong_tasks_and_limits(model, tokenizer):
    with pytest.raises(ConfigError, match=r"no task 'mini_clozes'\. Did you mean 'mini_cloze'\?"):
        evaluate(model, tokenizer, "FP16", ["mini_clozes"])
    with pytest.raises(ConfigError, match="limit=1 items give no standard error"):
        evaluate(model, tokenizer, "FP16", ["mini_cloze"], limit=1)


def test_without_lm_eval(model, tokenizer, monkeypatch):
    def missing(name):
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setattr(harness, "import_module", missing)
    with pytest.raises(MissingExtraError, match=r"pip install 'qllm-hf\[eval\]'"):
        evaluate(model, tokenizer, "FP16", ["mini_cloze"])


def test_longest_holds_for_the_items():
    """Batches are sized by it: no item of the reference model's tokenizer is longer."""
    tokenizer = AutoTokenizer.from_pretrained(qllm_hf.reference_model())
    rng = Random(0)
    for name, task in TASKS.items():
        items = [*held_out_items(task, 40), *(task.make(rng) for _ in range(40))]
        longest = max(len(tokenizer(item.prompt + item.answer).input_ids) for item in items)
        assert longest <= task.longest, name
        if name.startswith("lines"):
            assert longest > 0.95 * task.longest


def test_the_folder_holds_no_code():
    assert {path.suffix for path in Path(TASK_FOLDER).rglob("*") if path.is_file()} == {".yaml"}
