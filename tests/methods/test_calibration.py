"""Calibration text becomes blocks of tokens, the same on every run; what is no such text is refused in one sentence."""

import json
from itertools import islice
from random import Random

import pytest
import torch
from tiny_models import chat_tokenizer, float_model
from transformers import AutoTokenizer

from qllm_hf import QllmConfig, builtin, quantize_
from qllm_hf.curriculum.item import held_out
from qllm_hf.curriculum.tasks import TASKS, held_out_items, training_item
from qllm_hf.errors import CalibrationError, ConfigError
from qllm_hf.methods import calibration
from qllm_hf.methods.calibration import Calibration, calibration_for, read_calibration, texts_of, token_blocks

TEXTS = [f"text number {number}, written for this test" for number in range(40)]


@pytest.fixture(scope="module")
def tokenizer():
    return chat_tokenizer()


def read(source, tokenizer, samples: int = 4, seqlen: int = 16) -> Calibration:
    return read_calibration(source, tokenizer, samples=samples, seqlen=seqlen)


def write_rows(path, texts, **options):
    path.write_text("".join(json.dumps({"text": text}, **options) + "\n" for text in texts), encoding="utf-8")
    return path


def test_the_same_texts_give_the_same_blocks_from_every_source(tokenizer, tmp_path):
    plain = tmp_path / "some.txt"
    plain.write_text("\n\n".join(TEXTS), encoding="utf-8")
    rows = write_rows(tmp_path / "some.jsonl", TEXTS)
    expected = read(TEXTS, tokenizer)
    assert expected.ids.shape == (4, 16)
    assert expected.source == "texts"
    for path in (plain, str(plain), rows):
        found = read(path, tokenizer)
        assert torch.equal(found.ids, expected.ids)
        assert found.source == ("some.jsonl" if path is rows else "some.txt")
        assert found.digest() == expected.digest()
    assert read(TEXTS[1:], tokenizer).digest() != expected.digest()


def test_blocks_are_the_texts_end_to_end_in_a_seeded_order(tokenizer):
    ids = read(TEXTS, tokenizer, samples=100).ids
    written = tokenizer.decode(ids.flatten()).replace(" ", "")
    order = sorted(TEXTS, key=lambda text: f"{written}{text}".replace(" ", "").find(text.replace(" ", "")))
    assert written == "".join(order).replace(" ", "")[: len(written)]
    assert order != TEXTS
    assert ids.numel() > sum(map(len, TEXTS)) - 16, "only the end that fills no block is left out"


def test_summary_says_what_was_read_and_holds_no_text(tokenizer):
    summary = read(TEXTS, tokenizer).summary()
    assert summary == {"source": "texts", "samples": 4, "seqlen": 16, "digest": summary["digest"]}
    assert len(summary["digest"]) == 16
    assert json.loads(json.dumps(summary)) == summary


def test_token_ids_are_used_as_they_are(tokenizer):
    ids = torch.arange(40).view(2, 20)
    assert torch.equal(read(ids, None).ids, ids)
    mine = Calibration(ids, "mine")
    assert read(mine, None) is mine


def test_less_text_than_asked_for_gives_fewer_blocks(tokenizer):
    assert read(TEXTS[:1], tokenizer, samples=128).ids.shape == (2, 16)


def test_special_tokens_stand_before_each_text(stories):
    tokenizer = AutoTokenizer.from_pretrained(stories)
    ids = token_blocks(["a b", "c d"] * 50, tokenizer, samples=4, seqlen=16)
    assert int((ids == tokenizer.bos_token_id).sum()) > 4


def test_lines_may_hold_any_character(tokenizer, tmp_path):
    """Some of those that Python takes for the end of a line stand unescaped in JSON."""
    texts = [f"{text}\u2028\x85{text}" for text in TEXTS]
    found = read(write_rows(tmp_path / "a.jsonl", texts, ensure_ascii=False), tokenizer)
    assert torch.equal(found.ids, read(texts, tokenizer).ids)


def test_blank_lines_and_blank_texts_are_left_out(tokenizer, tmp_path):
    path = write_rows(tmp_path / "a.jsonl", ["", *TEXTS, "  "])
    path.write_text(path.read_text() + "\n\n")
    assert torch.equal(read(path, tokenizer).ids, read(TEXTS, tokenizer).ids)


def test_a_file_comes_before_a_name_on_the_hub(tokenizer, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_rows(tmp_path / "curriculum", TEXTS)
    assert texts_of("curriculum", 10)[1] == "curriculum"
    assert "number" in next(texts_of("curriculum", 10)[0])


# The curriculum


def test_the_curriculum_is_the_same_each_time():
    first, second = (list(islice(texts_of("curriculum", 5000)[0], 500)) for _ in range(2))
    assert first == second
    assert len(set(first)) > 200


def test_the_curriculum_holds_nothing_of_a_test():
    texts = set(texts_of("curriculum", 30_000)[0])
    assert len(texts) > 500
    tested = {item.prompt + item.answer + "\n" for task in TASKS.values() for item in held_out_items(task, 100)}
    assert not texts & tested


def test_every_item_of_the_curriculum_lies_on_the_side_of_training(monkeypatch):
    keys = []

    def recorded(task, rng):
        keys.append((item := training_item(task, rng)).key)
        return item

    monkeypatch.setattr(calibration, "training_item", recorded)
    list(texts_of("curriculum", 5000)[0])
    assert len(keys) > 200
    assert not any(map(held_out, keys))
    rng = Random(0)
    assert sum(held_out(TASKS["arithmetic"].make(rng).key) for _ in range(100)) > 5, "the others exist"


def test_the_curriculum_fills_the_blocks_that_are_asked_for():
    tokenizer = AutoTokenizer.from_pretrained(builtin.reference_model())
    found = read("curriculum", tokenizer, samples=24, seqlen=512)
    assert found.ids.shape == (24, 512)
    assert found.source == "curriculum"


# What is refused


def refused(match: str, source, tokenizer, **options) -> None:
    with pytest.raises(CalibrationError, match=match):
        read(source, tokenizer, **options)


@pytest.mark.parametrize("source", [None, "", "  "])
def test_no_text_is_refused(tokenizer, source):
    refused("none was given.*--calibration FILE.*'curriculum'", source, tokenizer)


def test_text_needs_a_tokenizer():
    refused("needs the model's tokenizer.*token ids", TEXTS, None)


@pytest.mark.parametrize("content", ["", "\n\n \n"])
@pytest.mark.parametrize("suffix", ["txt", "jsonl"])
def test_an_empty_file_is_refused(tokenizer, tmp_path, content, suffix):
    path = tmp_path / f"empty.{suffix}"
    path.write_text(content)
    refused(rf"empty\.{suffix} holds no text at all, less than one block of 16", path, tokenizer)
    refused("texts holds no text at all", [], tokenizer)


def test_less_than_one_block_is_refused_with_the_size_that_would_do(tokenizer):
    refused(
        r"1 texts with 37 tokens, less than one block of 50 tokens.*seqlen \(37 at most\)",
        TEXTS[10:11],
        tokenizer,
        seqlen=50,
    )
    assert read(TEXTS[10:11], tokenizer, seqlen=37).ids.shape == (1, 37)


@pytest.mark.parametrize("name", ["missing.txt", "./missing", "/missing", "~/missing", "a/b/c", "missing.jsonl"])
def test_a_file_that_is_not_there_is_refused(tokenizer, name):
    refused(f"there is no file '{name}'", name, tokenizer)


def test_a_folder_is_refused(tokenizer, tmp_path):
    refused("is a folder", tmp_path, tokenizer)


@pytest.mark.parametrize(
    ("line", "match"),
    [
        ('{"text": "cut', r"rows\.jsonl, line 3: no valid JSON. Is the file cut short"),
        ('{"content": "a", "id": 1}', r"line 3: no field 'text' \(found: content, id\)"),
        ('{"text": 5}', r"line 3: no field 'text' \(found: text\)"),
        ('"text"', r"line 3: no field 'text' \(found: str\)"),
        ("[1]", r"line 3: no field 'text' \(found: list\)"),
    ],
)
def test_a_line_that_holds_no_text_is_named(tokenizer, tmp_path, line, match):
    path = write_rows(tmp_path / "rows.jsonl", TEXTS[:1])
    path.write_text(path.read_text() + "\n" + line + "\n")
    refused(match, path, tokenizer)


def test_a_file_in_another_encoding_is_refused(tokenizer, tmp_path):
    path = tmp_path / "old.txt"
    path.write_bytes("Übung macht den Meister".encode("latin-1"))
    refused("line 1: byte 0xdc is no UTF-8", path, tokenizer)


@pytest.mark.parametrize(
    ("ids", "match"),
    [
        (torch.zeros(4, dtype=torch.int64), r"shape \(4,\) and torch.int64: give int64 \[N, T\]"),
        (torch.zeros(4, 4), r"shape \(4, 4\) and torch.float32"),
        (torch.zeros(4, 4, dtype=torch.int32), "torch.int32"),
        (torch.zeros(0, 4, dtype=torch.int64), r"shape \(0, 4\)"),
        (torch.zeros(4, 0, dtype=torch.int64), r"shape \(4, 0\)"),
    ],
)
def test_ids_of_another_shape_or_dtype_are_refused(ids, match):
    refused(match, ids, None)


@pytest.mark.parametrize("source", [5, [1, 2], [["a"]], {"text": "a"}, object()])
def test_what_is_no_source_at_all_is_refused(tokenizer, source):
    refused("is nothing that text can be read from", source, tokenizer)


@pytest.mark.parametrize("largest", [256, 10**9, -1])
def test_ids_of_another_vocabulary_are_refused(largest):
    ids = torch.full((2, 16), 5)
    ids[1, 3] = largest
    with pytest.raises(CalibrationError, match=r"the model knows 256: .* tokenizer of another model"):
        quantize_(float_model("llama"), QllmConfig(w=4, method="gptq", calibration=ids))


def test_blocks_longer_than_the_model_reads_are_refused():
    ids = torch.full((1, 513), 5)
    with pytest.raises(CalibrationError, match=r"blocks of 513 tokens, and the model reads 512. Give seqlen=512"):
        quantize_(float_model("llama"), QllmConfig(w=4, method="gptq", calibration=ids))
    quantize_(float_model("llama"), QllmConfig(w=4, method="gptq", calibration=ids[:, :512]))


@pytest.mark.parametrize("name", ["mpt", "gpt2"])
def test_other_names_of_the_longest_text_are_known_too(name):
    with pytest.raises(CalibrationError, match="the model reads 512"):
        quantize_(float_model(name), QllmConfig(w=4, method="gptq", calibration=torch.full((1, 513), 5)))


def test_a_method_without_text_is_refused_before_anything_changes():
    model = float_model("llama")
    with pytest.raises(CalibrationError, match="none was given"):
        quantize_(model, "W4", method="gptq")
    assert isinstance(model.model.layers[0].mlp.up_proj, torch.nn.Linear)


def test_a_model_without_a_tokenizer_needs_one_or_token_ids(tmp_path):
    float_model("llama").save_pretrained(tmp_path)
    config = QllmConfig(w=4, method="gptq", calibration=TEXTS, samples=2, seqlen=16)
    with pytest.raises(CalibrationError, match=r"no tokenizer came with.*QllmConfig.tokenizer=.*token ids"):
        calibration_for(config, str(tmp_path))
    config.tokenizer = chat_tokenizer()
    assert calibration_for(config, str(tmp_path)).ids.shape == (2, 16)


def test_the_summary_of_an_earlier_run_is_no_text():
    summary = read(TEXTS, chat_tokenizer()).summary()
    with pytest.raises(ConfigError, match=r"summary of an earlier run, not text.*calibration='texts'"):
        quantize_(float_model("llama"), QllmConfig(w=4, method="gptq", calibration=summary))
