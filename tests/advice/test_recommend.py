"""From a model, or a size, to advice: exact shapes, measured losses before published ones, and clear refusals."""

import json
import math
from pathlib import Path

import pytest
from tiny_models import float_model

from qllm_hf.advice.candidates import SCHEMES, costs_of, labels_for
from qllm_hf.advice.choose import choose
from qllm_hf.advice.recommend import family_of, recommend
from qllm_hf.advice.situation import Situation
from qllm_hf.config import QllmConfig
from qllm_hf.cost.devices import find_device
from qllm_hf.cost.model import cost_of
from qllm_hf.cost.roofline import decode_seconds, prefill_seconds
from qllm_hf.errors import CheckpointError, ConfigError, ModelError
from qllm_hf.evaluation.record import Record
from qllm_hf.evaluation.store import Store
from qllm_hf.loading import model_on_meta


def write_results(folder: Path, model: str, scores: dict[tuple[str, str, str], float], **values: object) -> Path:
    """A folder of results: {(scheme, ability, task): accuracy} of 400 items each."""
    store = Store(folder)
    for (scheme, ability, task), value in scores.items():
        error = math.sqrt(value * (1 - value) / 400)
        store.add(Record(scheme, ability, task, "acc", value, error, 400, chance=0.0, model=model, **values), [])
    return folder


@pytest.fixture(scope="module")
def measured(tmp_path_factory, stories) -> Path:
    """W3 loses nothing in dialogue here, against all advice; W4 loses a fifth of the maths."""
    scores = {
        ("FP16", "dialogue", "mini_second_turn"): 0.90,
        ("W4", "dialogue", "mini_second_turn"): 0.90,
        ("W3", "dialogue", "mini_second_turn"): 0.90,
        ("W3+gptq", "dialogue", "mini_second_turn"): 0.89,
        ("FP16", "emergent", "mini_arithmetic"): 0.80,
        ("W4", "emergent", "mini_arithmetic"): 0.64,
        ("FP16", "emergent", "mini_in_context"): 0.80,
        ("W4", "emergent", "mini_in_context"): 0.80,
    }
    return write_results(tmp_path_factory.mktemp("advice") / "results", str(stories), scores)


@pytest.mark.parametrize("name", ["llama", "mixtral", "mistral"])
def test_costs_are_those_of_each_scheme_by_itself(name):
    """Weights and cache are counted apart, which takes half the time: nothing may be lost by it."""
    model = float_model(name)
    costs = costs_of(model, SCHEMES)
    for label in ("FP16", "W4", "W4A8", "KV4", "W4KV8", "W4A8KV4"):
        alone = cost_of(model, None if label == "FP16" else QllmConfig.from_scheme(label))
        assert costs[label] == alone


def test_a_model_without_keys_and_values_is_asked_for_weights_only():
    labels = labels_for(Situation(("nlp",), 2.8, has_kv=False))
    assert labels == ("FP16", "W8", "W4", "W3", "W8A8", "W4A8")
    advice = recommend(float_model("mamba"), abilities="dialogue", context="1k")
    assert not advice.situation.has_kv
    assert (advice.published.kv, advice.advised.kv) == ("KV4", "")
    assert {each.kv_bytes for each in advice.candidates} == {0}
    assert "no_kv" in {modifier.id for modifier in advice.modifiers}
    assert "caches no keys and values" in str(advice)


def test_a_named_model_has_its_own_shapes(stories):
    advice = recommend(str(stories), abilities=["dialogue"], context=512, batch=2)
    shapes = model_on_meta(str(stories))
    assert advice.situation.params_b == pytest.approx(260_032 / 1e9)
    for scheme in ("FP16", "W4KV8"):
        cost = cost_of(shapes, None if scheme == "FP16" else QllmConfig.from_scheme(scheme))
        assert advice.candidate(scheme).total_bytes == cost.total_bytes(2, 512)
    assert advice.scheme in {each.scheme for each in advice.candidates}
    assert advice.candidate(advice.scheme) is advice.choice.chosen


@pytest.fixture(scope="module")
def seven():
    """The advice for a model of 7B in long dialogues, as it is asked for in one line."""
    return recommend(params=7, abilities="dialogue,long", context="16k", batch=8, memory="24GB")


def test_a_size_has_typical_shapes_and_says_so(seven):
    assert seven.situation.size_class == "6B to 13B"
    assert any("taken to have the shapes of LLaMA2-7B" in note for note in seven.notes)
    assert seven.situation.memory_bytes == 24 * 10**9
    assert [rule.id for rule in seven.rules] == ["R5", "R6"]
    assert (seven.published.w, seven.published.kv, seven.published.joint) == ("W8", "KV8", "W8KV8")
    assert {"a", "d"} <= {each.id for each in seven.disagreements}
    assert not seven.candidate("FP16").fits
    assert seven.choice.chosen.fits


def test_with_room_the_answer_is_the_studys_for_long_dialogue(seven):
    """R5 and R6 together say W8 and KV8, and the data agrees as soon as there is memory for it."""
    assert not seven.choice.is_within
    roomy = choose(seven.candidates, 2.0, 80 * 10**9)
    assert (roomy.chosen.scheme, roomy.is_within) == ("W8KV8", True)


def test_a_mixture_of_experts_is_found_out(stories):
    advice = recommend(float_model("mixtral"), abilities="nlp")
    assert advice.situation.moe
    assert advice.situation.family == "Mixtral"
    dense = recommend(float_model("mistral"), abilities="nlp")
    assert (dense.situation.moe, dense.situation.family) == (False, "Mistral")


def test_times_are_the_rooflines_and_memory_is_the_devices(stories):
    device = find_device("RTX 4090")
    advice = recommend(str(stories), abilities="dialogue", context="2k", batch=4, device="rtx4090")
    cost = cost_of(model_on_meta(str(stories)), QllmConfig.from_scheme("W8KV8"))
    each = advice.candidate("W8KV8")
    assert each.decode_seconds == decode_seconds(cost, device, 4, 2048)
    assert each.prefill_seconds == prefill_seconds(cost, device, 4, 2048)
    assert advice.situation.memory_bytes == device.memory_bytes
    assert recommend(str(stories), abilities="nlp", device="h100", memory="1GB").situation.memory_bytes == 10**9
    assert recommend(str(stories), abilities="nlp").candidate("W8").decode_seconds is None


def test_measured_losses_go_before_published_ones_and_before_advice(stories, measured):
    plain = recommend(str(stories), abilities="dialogue")
    assert plain.candidate("W3").avoided == "W3"
    advice = recommend(str(stories), abilities="dialogue", measured=measured)
    loss = advice.candidate("W3").loss
    assert (loss.kind, loss.percent, advice.candidate("W3").avoided) == ("measured", 0, "")
    assert advice.candidate("KV4").loss.kind == "published", "what was not measured"
    assert advice.candidate("W4").loss.kind == "measured"
    by_method = advice.candidate("W3+gptq")
    assert by_method.loss.percent == pytest.approx(100 / 90)
    assert by_method.total_bytes == advice.candidate("W3").total_bytes
    assert advice.scheme == "W3"
    assert advice.measured == str(measured)
    assert loss.stderr > 0
    assert "was measured on this model, +- " in " ".join(str(advice).split())
    page = str(advice).split("Measured losses")[1].split("Schemes at")[0]
    assert [line.split()[0] for line in page.splitlines() if line.startswith("  W")] == ["W4", "W3", "W3+gptq"]
    assert "Measured losses" not in str(plain)


def test_measured_tasks_speak_of_their_topic_only(stories, measured):
    maths = recommend(str(stories), abilities="mr", measured=measured).candidate("W4").loss
    learning = recommend(str(stories), abilities="icl", measured=measured).candidate("W4").loss
    other = recommend(str(stories), abilities="nlp", measured=measured).candidate("W4").loss
    assert (maths.kind, maths.percent) == ("measured", pytest.approx(20))
    assert (learning.kind, learning.percent) == ("measured", 0)
    assert other.kind == "published"
    both = recommend(str(stories), abilities="dialogue,mr", measured=measured)
    assert both.candidate("W3").avoided == "W3", "maths was not measured at W3"


def test_partial_scores_are_said_to_be_partial(stories, tmp_path):
    scores = {("FP16", "nlp", "mini_cloze"): 0.9, ("W4", "nlp", "mini_cloze"): 0.9}
    folder = write_results(tmp_path, str(stories), scores, limit=400)
    notes = recommend(str(stories), abilities="nlp", measured=folder).notes
    assert "Some measured scores are of the first items only." in notes


def test_results_of_another_model_are_refused(stories, tmp_path):
    folder = write_results(tmp_path, "reference", {("FP16", "nlp", "mini_cloze"): 0.9})
    with pytest.raises(CheckpointError, match=r"are of 'reference', not of .*stories260K.* qllm-hf sweep"):
        recommend(str(stories), abilities="nlp", measured=folder)


def test_results_are_of_a_folder_however_it_is_written(stories, measured, monkeypatch):
    monkeypatch.chdir(stories.parent)
    assert recommend("./stories260K", abilities="dialogue", measured=measured).measured


def test_an_empty_folder_of_results_is_refused(stories, tmp_path):
    with pytest.raises(CheckpointError, match="there are no results in"):
        recommend(str(stories), abilities="nlp", measured=tmp_path)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "give a model, or a number of parameters"),
        ({"model": "reference", "params": 7}, "not both"),
        ({"model": "reference", "moe": True}, "moe goes with params"),
        ({"params": 7, "measured": "results"}, "name it, in place of its number of parameters"),
        ({"params": 7, "abilities": "longg"}, "Did you mean 'long'"),
        ({"params": 7, "abilities": ""}, "no abilities"),
        ({"params": 7, "family": "lama2"}, "Did you mean 'LLaMA2'"),
        ({"params": 7, "device": "RTX 9999"}, "there is no device 'RTX 9999'"),
        ({"params": 7, "memory": "0GB"}, "give more than 0"),
        ({"params": 7, "memory": "-4GB"}, "give more than 0"),
        ({"params": 7, "memory": "24"}, "write a unit"),
        ({"params": 7, "context": "0"}, "give a positive number of tokens"),
        ({"params": 7, "batch": 0}, "batch=0"),
        ({"params": -7}, "params_b=-7"),
        ({"params": 7, "tolerance": "-1%"}, "tolerance"),
    ],
)
def test_what_cannot_be_asked(values, message):
    with pytest.raises(ConfigError, match=message):
        recommend(**values)


def test_a_quantized_model_is_refused(stories, tmp_path):
    config = json.loads((stories / "config.json").read_text())
    config["quantization_config"] = QllmConfig.from_scheme("W4").to_dict()
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=r"is quantized already \(W4\)"):
        recommend(str(tmp_path), abilities="nlp")


def test_a_context_beyond_the_model_is_said(stories):
    assert not [note for note in recommend(str(stories), abilities="nlp", context=512).notes if "made for" in note]
    assert [
        note for note in recommend(str(stories), abilities="nlp", context="8k").notes if "made for at most 512" in note
    ]


@pytest.mark.parametrize(
    ("name", "architecture", "family"),
    [
        ("lmsys/longchat-7b-16k", "llama", ""),
        ("lmsys/vicuna-7b-v1.5", "llama", "Vicuna"),
        ("meta-llama/Llama-2-7b-hf", "llama", "LLaMA2"),
        ("my/own", "llama", ""),
        ("my/own", "mistral", "Mistral"),
        ("my/own", "opt", "OPT"),
        ("my/own", "gpt2", ""),
    ],
)
def test_families_by_name_or_architecture(name, architecture, family):
    assert family_of(name, float_model(architecture)) == family
