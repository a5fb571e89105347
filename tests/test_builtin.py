"""The reference model: carried by the package, loaded by plain transformers, reached by name, and able to do things."""

import json
import math
import subprocess
import sys
from collections import Counter
from pathlib import Path
from random import Random

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer

import qllm_hf
from qllm_hf.builtin import BUILTIN
from qllm_hf.curriculum.dialogue import chat_text, conversation
from qllm_hf.curriculum.long_context import LENGTHS, TOKENS_OF_QUESTION, TOKENS_PER_LINE, lines
from qllm_hf.curriculum.tasks import TASKS, held_out_items, training_item
from qllm_hf.curriculum.words import LINE_KEYS, PEOPLE
from qllm_hf.errors import CheckpointError
from qllm_hf.evaluation.engine import evaluate
from qllm_hf.evaluation.miniature import MINIATURE
from qllm_hf.evaluation.record import ability_scores
from qllm_hf.loading import load_model, load_tokenizer, local_folder

FOLDER = Path(qllm_hf.reference_model())
ITEMS = 20


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(FOLDER)


def reference(scheme: str):
    config = None if scheme == "FP16" else qllm_hf.QllmConfig.from_scheme(scheme)
    return AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.float32, quantization_config=config).eval()


@pytest.fixture(scope="module")
def scores(tokenizer):
    """{scheme: {task: record}}, on 20 items of each task; two bits only on what they are asked for below, since a
    model that cannot end its answers takes longest."""
    asked = {"FP16": MINIATURE, "W8": MINIATURE, "KV8": MINIATURE, "W2": ["mini_stories", "mini_arithmetic"]}
    return {
        scheme: {record.task: record for record in evaluate(reference(scheme), tokenizer, scheme, tasks, limit=ITEMS)}
        for scheme, tasks in asked.items()
    }


def test_what_the_folder_holds():
    assert {path.name for path in FOLDER.iterdir()} == {
        "README.md",
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "training_log.csv",
    }
    assert (FOLDER / "model.safetensors").stat().st_size <= 8_000_000
    config = json.loads((FOLDER / "config.json").read_text())
    assert config["model_type"] == "llama"
    assert config["head_dim"] % 32 == 0
    assert config["max_position_embeddings"] >= 2048
    assert config["num_key_value_heads"] < config["num_attention_heads"]
    with safe_open(FOLDER / "model.safetensors", "pt") as file:
        tensors = [file.get_tensor(name) for name in file.keys()]  # noqa: SIM118
    assert {tensor.dtype for tensor in tensors} == {torch.bfloat16}
    card = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert f"{sum(tensor.numel() for tensor in tensors):,} parameters in bfloat16" in card
    shortest, *_, longest = (lines(Random(0), tokens).prompt.count("\n") for tokens in LENGTHS)
    assert f"out of {shortest} to {longest}," in card
    assert card.startswith("---\n")
    assert "license: apache-2.0" in card.split("---")[1]


@pytest.mark.oldest
def test_plain_transformers_can_use_it():
    """In a process that never imports qllm_hf."""
    code = (
        "import sys; from transformers import AutoModelForCausalLM as M, AutoTokenizer as T; m, t = "
        "M.from_pretrained(sys.argv[1]), T.from_pretrained(sys.argv[1]); i = t('Question: 27+8-5+4=?\\nAnswer:', "
        "return_tensors='pt'); print(t.decode(m.generate(**i, max_new_tokens=60, do_sample=False)[0])); "
        "assert 'qllm_hf' not in sys.modules"
    )
    printed = subprocess.run([sys.executable, "-c", code, str(FOLDER)], capture_output=True, text=True, check=True)
    assert "27+8=35, 35-5=30, 30+4=34. So the result is 34.<|end|>" in printed.stdout


def test_every_word_is_one_token(tokenizer):
    for word in (*LINE_KEYS, *PEOPLE):
        assert len(tokenizer(f" {word}", add_special_tokens=False).input_ids) == 1, word


def test_any_text_survives_the_tokenizer(tokenizer):
    for text in ("naïve 你好 \t\n x=3;", "  two  spaces", "a\nb"):
        assert tokenizer.decode(tokenizer(text, add_special_tokens=False).input_ids) == text


def test_lines_have_the_length_that_is_asked_for(tokenizer):
    for tokens in (256, 2048):
        item = lines(Random(0), tokens)
        length = len(tokenizer(item.prompt + item.answer).input_ids)
        assert tokens - TOKENS_PER_LINE - TOKENS_OF_QUESTION < length <= tokens


def test_the_chat_template_is_the_markup_of_the_curriculum(tokenizer):
    messages, _ = conversation(Random(1))
    for part in (messages[:1], messages[:3]):
        text = tokenizer.apply_chat_template(part, add_generation_prompt=True, tokenize=False)
        assert text == tokenizer.bos_token + chat_text(part, add_generation_prompt=True)
        ids = tokenizer.apply_chat_template(part, add_generation_prompt=True, return_dict=True)["input_ids"]
        assert ids == tokenizer(chat_text(part, add_generation_prompt=True)).input_ids, "as the tasks give it"


# What it can do. The bars are those that were set before it was trained.


@pytest.mark.slow
def test_float_model_can_do_every_task(scores):
    for record in scores["FP16"].values():
        if record.is_accuracy:
            bar = 0.8 if record.task in ("mini_arithmetic", "mini_calibration") else 0.9
            assert record.value >= bar - 2 * math.sqrt(bar * (1 - bar) / ITEMS), record


@pytest.mark.slow
def test_perplexity_is_far_below_that_of_words_without_context(scores):
    rng = Random(0)
    words = Counter(word for _ in range(3000) for word in training_item(TASKS["stories"], rng).answer.split())
    total = words.total()
    tested = [word for item in held_out_items(TASKS["stories"], ITEMS) for word in item.answer.split()]
    unigram = sum(-math.log((words[word] + 1) / (total + len(words) + 1)) for word in tested) / len(tested)
    assert scores["FP16"]["mini_stories"].value < unigram / 3


@pytest.mark.slow
def test_eight_bits_cost_nothing_and_two_destroy(scores):
    abilities = {scheme: ability_scores(records.values()) for scheme, records in scores.items()}
    for scheme in ("W8", "KV8"):
        for ability, score in abilities[scheme].items():
            exact = abilities["FP16"][ability]
            assert abs(score.value - exact.value) <= 2 * max(exact.stderr, score.stderr, 1 / ITEMS), (scheme, ability)
    assert scores["W2"]["mini_stories"].value > 1.2 * scores["FP16"]["mini_stories"].value
    assert scores["W2"]["mini_arithmetic"].value < min(0.3, scores["FP16"]["mini_arithmetic"].value - 0.5)


@pytest.mark.slow
def test_another_model_has_the_score_of_guessing(tokenizer):
    """The scores above are not to be had for nothing: an untrained model of the same form gets about chance."""
    torch.manual_seed(0)
    config = reference("FP16").config
    untrained = AutoModelForCausalLM.from_config(config).eval()
    tasks = [name for name, info in MINIATURE.items() if info.chance is not None and info.longest < 512]
    for record in evaluate(untrained, tokenizer, "FP16", tasks, limit=ITEMS):
        error = math.sqrt(record.chance * (1 - record.chance) / ITEMS)
        assert record.value <= record.chance + 3.5 * error + 0.1, record


# How it is reached.


def test_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert local_folder("reference") == FOLDER == BUILTIN["reference"]
    model = load_model("reference", qllm_hf.QllmConfig(w=4))
    assert qllm_hf.report(model).scheme == "W4"
    assert load_tokenizer("reference").bos_token == "<|begin|>"


def test_a_folder_here_comes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "reference").mkdir()
    assert local_folder("reference") == Path("reference")


@pytest.mark.parametrize("name", ["refrence", "Reference", "referense", "references"])
def test_a_slip_of_the_pen_is_not_looked_up_on_the_hub(name):
    with pytest.raises(CheckpointError) as caught:
        local_folder(name)
    message = str(caught.value)
    assert repr(name) in message
    assert "Did you mean 'reference'" in message
    assert "./my-model" in message
    assert "owner/name" in message


@pytest.mark.parametrize("name", ["gpt2", "owner/reference", "my-org/refrence", "bloom"])
def test_other_names_are_left_to_the_hub(name):
    assert local_folder(name) is None
