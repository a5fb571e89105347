"""A folder of results is read as scores of one model under several schemes, and says what each scheme changed."""

import json
import math
import shutil

import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_results import MODEL, REVISION, add, add_size, rewrite
from tiny_models import float_model

from qllm_hf.cost.model import cost_of
from qllm_hf.errors import CheckpointError, QllmWarning
from qllm_hf.evaluation.lines import write_lines
from qllm_hf.evaluation.sources import digest_of
from qllm_hf.evaluation.statistics import mean, recovery
from qllm_hf.reporting.model import report
from qllm_hf.results import BASELINE, Size, read_results

BEFORE = [1.0] * 18 + [0.0] * 2
AFTER = [1.0] * 15 + [0.0] * 4 + [1.0]


@pytest.fixture
def folder(tmp_path):
    add(tmp_path, "W4", "mini_ethics", AFTER)
    add(tmp_path, "FP16", "mini_ethics", BEFORE)
    add(tmp_path, "FP16", "mini_cloze", BEFORE)
    add(tmp_path, "W4", "mini_cloze", BEFORE)
    add_size(tmp_path, "FP16")
    add_size(tmp_path, "W4", bits_per_weight=4.19, weight_bytes=600)
    return tmp_path


def test_float_model_comes_first_and_tasks_by_ability(folder):
    results = read_results(folder)
    assert results.schemes == ("FP16", "W4")
    assert results.tasks == ("mini_cloze", "mini_ethics"), "nlp before trust"
    assert (results.model, results.revision, results.is_partial) == (MODEL, REVISION, False)
    assert results.sizes["W4"].bits_per_weight == 4.19


def test_change_is_paired_and_recovery_is_above_chance(folder):
    change = read_results(folder).change("W4", "mini_ethics")
    differences = [after - before for after, before in zip(AFTER, BEFORE, strict=True)]
    assert change.paired
    assert change.difference == mean(differences)
    assert change.recovery == recovery(AFTER, BEFORE, 1 / 3)
    assert change.recovery.value == pytest.approx((0.8 - 1 / 3) / (0.9 - 1 / 3))
    assert change.difference.stderr < math.hypot(change.record.stderr, change.baseline.stderr), "pairs say more"


def test_recovery_of_abilities_is_the_mean_over_tasks(folder):
    add(folder, "FP16", "mini_robustness", BEFORE)
    add(folder, "W4", "mini_robustness", BEFORE)
    found = read_results(folder).recovery("W4")
    ethics = recovery(AFTER, BEFORE, 1 / 3)
    assert found["nlp"].value == 1.0 and found["nlp"].stderr == 0.0
    assert found["trust"].value == pytest.approx((ethics.value + 1) / 2)
    assert found["trust"].stderr == pytest.approx(ethics.stderr / 2)


def test_without_samples_the_errors_are_those_of_independent_scores(folder):
    shutil.rmtree(folder / "samples")
    change = read_results(folder).change("W4", "mini_ethics")
    assert not change.paired
    assert change.difference.value == pytest.approx(-0.1)
    assert change.difference.stderr == pytest.approx(math.hypot(change.record.stderr, change.baseline.stderr))
    assert change.recovery.value == pytest.approx((0.8 - 1 / 3) / (0.9 - 1 / 3))


def test_samples_that_are_not_of_the_score_are_not_used(folder):
    """A run that was killed between samples and record, or samples of another configuration."""
    rewrite(folder / "samples" / "somebody_model" / "W4" / "mini_ethics.jsonl", lambda line: {**line, "value": 1.0})
    change = read_results(folder).change("W4", "mini_ethics")
    assert not change.paired and change.difference.value == pytest.approx(-0.1)


@pytest.mark.parametrize(
    "other", [{"limit": 20}, {"shots": 5}, {"data": {"origin": "made", "digest": "e"}}, {"dtype": "bfloat16"}]
)
def test_other_questions_are_not_compared(folder, other):
    add(folder, "W3", "mini_ethics", AFTER, **other)
    add(folder, "W2", "mini_ethics", AFTER)
    results = read_results(folder)
    assert results.change("W3", "mini_ethics") is None
    assert results.change("W2", "mini_ethics") is not None


def test_floor_of_guessing_has_no_recovery(folder):
    add(folder, "FP16", "mini_in_context", [1.0, 0.0, 0.0] * 7)
    add(folder, "W4", "mini_in_context", [1.0, 0.0, 0.0] * 7)
    results = read_results(folder)
    assert results.change("W4", "mini_in_context").recovery is None
    assert "emergent" not in results.recovery("W4")


def test_last_record_counts(folder):
    add(folder, "W4", "mini_ethics", BEFORE)
    assert read_results(folder).change("W4", "mini_ethics").difference.value == 0.0


def test_scheme_is_one_model(folder):
    """Records of W4 with other layers kept are not mixed with the last ones."""
    add(folder, "W4", "mini_rules", BEFORE, quantization={"modules_to_not_convert": ["layers.0"]})
    results = read_results(folder)
    assert [record.task for record in results.of("W4")] == ["mini_rules"]


def test_noise_is_two_standard_errors(folder):
    results = read_results(folder)
    assert results.change("W4", "mini_ethics").is_noise
    add(folder, "W2", "mini_ethics", [0.0] * 20)
    assert not read_results(folder).change("W2", "mini_ethics").is_noise


def test_loss_has_a_change_and_no_recovery(folder):
    add(folder, "FP16", "mini_stories", [2.0, 2.5, 3.0])
    add(folder, "W4", "mini_stories", [2.1, 2.6, 3.2])
    change = read_results(folder).change("W4", "mini_stories")
    assert change.recovery is None and change.difference.value == pytest.approx(0.4 / 3)


def test_empty_folder(tmp_path):
    with pytest.raises(CheckpointError, match=r"no results in .*: it holds no records.jsonl.*qllm-hf sweep MODEL"):
        read_results(tmp_path)
    with pytest.raises(CheckpointError, match="it does not exist"):
        read_results(tmp_path / "none")


def test_records_of_two_models(folder):
    add(folder, "W4", "mini_cloze", BEFORE, model="somebody/else")
    with pytest.raises(CheckpointError, match=r"are of 2 models: somebody/model .*, somebody/else .*folder of its own"):
        read_results(folder)


def test_sizes_of_a_newer_version(folder):
    rewrite(folder / "sizes.jsonl", lambda line: {**line, "format": 99})
    with pytest.raises(CheckpointError, match=r"another version of qllm_hf"):
        read_results(folder)


@pytest.mark.filterwarnings("ignore:.*is damaged in line")
def test_half_a_line_is_not_read(folder):
    for name in ("records.jsonl", "sizes.jsonl"):
        with (folder / name).open("a") as file:
            file.write(json.dumps({"scheme": "W2"})[:-3])
    results = read_results(folder)
    assert results.schemes == ("FP16", "W4") and set(results.sizes) == {"FP16", "W4"}


@given(
    groups=st.lists(st.tuples(st.integers(1, 99), st.none() | st.integers(1, 50)), max_size=4),
    tokens=st.integers(1, 200),
    batch=st.integers(1, 5),
)
def test_windows_forget(groups, tokens, batch):
    size = Size("W4", MODEL, REVISION, "float16", 1, 4.0, 1, tuple(groups), 1.0)
    expected = 0
    for per_token, window in groups:
        for token in range(tokens):
            expected += per_token * (window is None or tokens - token <= window)
    assert size.kv_bytes(tokens, batch) == batch * expected
    assert size.kv_bytes_per_token == sum(per_token for per_token, _ in groups)


def test_a_size_keeps_what_the_cost_model_says_of_windows():
    """Both count what transformers keeps: the last of a window's tokens comes with the query."""
    model = float_model("gemma3_text")
    size = Size.of(report(model), MODEL, REVISION, "FP16")
    cost = cost_of(model, None)
    assert any(window is not None for _, window in size.kv)
    for tokens in (1, 7, 8, 9, 100, 4096):
        assert size.kv_bytes(tokens, 3) == cost.kv_bytes(3, tokens), tokens


def test_items_of_another_score_are_not_compared(tmp_path):
    """Each line of them is sound, and its checksum too."""
    lines = [{"id": number, "value": value} for number, value in enumerate([1.0, 0.0])]
    for scheme in (BASELINE, "W4"):
        add(tmp_path, scheme, "mini_ethics", [1.0, 0.0], samples=digest_of(lines))
    assert read_results(tmp_path).change("W4", "mini_ethics").paired
    path = tmp_path / "samples" / "somebody_model" / "W4" / "mini_ethics.jsonl"
    for other in ([{"id": 0, "value": 0.0}, {"id": 1, "value": 1.0}], []):
        write_lines(path, other)
        with pytest.warns(QllmWarning, match=r"mini_ethics\.jsonl does not hold the items .* so it does not count"):
            assert not read_results(tmp_path).change("W4", "mini_ethics").paired
        with pytest.raises(CheckpointError, match="does not hold the items"):
            _ = read_results(tmp_path, strict=True).change("W4", "mini_ethics")
    path.unlink()
    assert not read_results(tmp_path).change("W4", "mini_ethics").paired
