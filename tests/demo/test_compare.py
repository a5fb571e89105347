"""Two answers, step by step, without a page."""

import resource
from pathlib import Path

import pytest
import torch

from qllm_hf.demo.answers import both, marked, verdict
from qllm_hf.demo.compare import Question, Side, compare
from qllm_hf.demo.holder import Holder
from qllm_hf.demo.limits import Limits
from qllm_hf.demo.writing import encode, write
from qllm_hf.errors import ConfigError, ModelError
from qllm_hf.loading import load_model, load_tokenizer

HELLO = ({"role": "user", "content": "I am Mia. I have a red kite and a blue drum."},)
LARGE = 10**9
STATM = Path("/proc/self/statm")


@pytest.fixture(scope="module")
def holder():
    return Holder(LARGE)


def ask(left="FP16", right="W2KV2", *, messages=HELLO, **options):
    return Question("reference", left, right, (messages, messages), **options)


def last(question, holder, limits=None, **options):
    *_, step = compare(question, holder, limits or Limits(), **options)
    return step


def test_the_same_tokens_as_generate(holder):
    """On the float side and on the quantized one, with its packed cache."""
    tokenizer = load_tokenizer("reference")
    ids = encode(tokenizer, HELLO, chat=True, longest=500)
    step = last(ask("FP16", "W4KV4", new_tokens=40), holder)
    for side in (step.left, step.right):
        model = holder.take("reference", side.scheme, ("FP16", "W4KV4")).model
        with torch.inference_mode():
            made = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=40, do_sample=False)[0]
        text = tokenizer.decode(made[ids.shape[1] :], skip_special_tokens=True)
        assert text.startswith(side.text)
        assert side.text
        assert side.finished == "end"


def test_what_the_sides_take_is_counted(holder):
    step = last(ask("FP16", "W4KV2", new_tokens=8), holder)
    assert step.left.weight_bytes > 3 * step.right.weight_bytes
    assert step.left.cache_bytes > 4 * step.right.cache_bytes > 0
    assert step.left.tokens_per_second > 0
    assert step.left.first_token_seconds > 0


def test_the_cache_grows_while_it_is_shown(holder):
    story = ({"role": "user", "content": "Once upon a time"},)
    steps = list(compare(ask(messages=story, chat=False, new_tokens=60), holder, Limits()))
    sizes = [step.left.cache_bytes for step in steps]
    assert len(steps) > 2
    assert sizes == sorted(sizes)
    assert sizes[-1] > sizes[0]
    assert not steps[0].left.finished and steps[-1].left.finished


def test_the_same_scheme_twice_writes_the_same(holder):
    step = last(ask("W4", "W4", temperature=1.0, seed=3, new_tokens=30), holder)
    assert step.left.text == step.right.text
    assert not any(differs for _, differs in step.right.pieces)
    assert "wrote the same" in verdict(step)


def test_seeds_count_above_temperature_0(holder):
    story = ({"role": "user", "content": "Once upon a time"},)
    texts = {
        last(ask(messages=story, chat=False, temperature=1.5, seed=seed, new_tokens=20), holder).left.text
        for seed in (1, 1, 2)
    }
    assert len(texts) == 2


def test_differences_are_marked_on_both_sides(holder):
    step = last(ask("FP16", "W2KV2", new_tokens=30), holder)
    assert any(differs for _, differs in step.left.pieces)
    assert any(differs for _, differs in step.right.pieces)
    assert "<mark>" in marked(step.left)


def test_one_after_the_other_where_both_do_not_fit():
    """The same texts, with one model in memory at any time."""
    small = Holder(7 * 10**6)
    alone, seen = None, 0
    for step in compare(ask("FP16", "W3", new_tokens=40), small, Limits()):
        alone = step
        assert small.nbytes <= small.limit
        seen = max(seen, len(small.held))
    together = last(ask("FP16", "W3", new_tokens=40), Holder(LARGE))
    assert seen == 1
    assert (alone.together, together.together) == (False, True)
    assert (alone.left.text, alone.right.text) == (together.left.text, together.right.text)
    assert "One after the other" in verdict(alone)


def test_a_model_that_is_too_large_is_refused_before_it_is_read(monkeypatch):
    monkeypatch.setattr("qllm_hf.demo.holder.load_model", lambda *args, **options: pytest.fail("it was read"))
    with pytest.raises(ModelError, match=r"as FP16 this model takes 6\.49 MB of weights, and this page has 2\.00 MB"):
        last(ask(), Holder(2 * 10**6))


def test_stop_ends_both_sides(holder):
    story = ({"role": "user", "content": "Once upon a time"},)
    calls = iter([False] * 5 + [True] * 50)
    step = last(ask(messages=story, chat=False, new_tokens=200), holder, stopped=lambda: next(calls))
    assert (step.left.finished, step.right.finished) == ("stopped", "stopped")
    assert step.left.tokens == step.right.tokens == 5


def test_time_ends_an_answer(holder):
    story = ({"role": "user", "content": "Once upon a time"},)
    step = last(ask(messages=story, chat=False, new_tokens=200), holder, Limits(seconds=0.0))
    assert step.left.finished == "time"


def test_long_conversations_and_missing_templates_are_refused(holder):
    with pytest.raises(ConfigError, match=r"this page takes 10\. Shorten it"):
        last(ask(), holder, Limits(prompt_tokens=10))
    tokenizer = load_tokenizer("reference")
    tokenizer.chat_template = None
    with pytest.raises(ConfigError, match="no chat template"):
        encode(tokenizer, HELLO, chat=True, longest=100)


def test_html_of_visitors_and_models_is_text(holder):
    evil = "<img src=x onerror=alert(1)>"
    messages = ({"role": "user", "content": evil},)
    step = last(ask(messages=messages, new_tokens=4), holder)
    turns = [{"user": evil, "left": evil, "right": "</section><script>"}]
    for column in both(step, turns, evil):
        assert "<img" not in column and "<script" not in column
        assert column.count("&lt;img src=x") >= 2


@pytest.mark.parametrize("differs", [False, True])
def test_tokens_are_text_marked_or_not(differs):
    shown = marked(Side("W2", pieces=(("<b>", differs), ("&", not differs))))
    assert "<b>" not in shown and "&lt;b&gt;" in shown and "&amp;" in shown
    assert shown.count("<mark>") == 1


def test_a_packed_checkpoint_runs_as_it_is_stored(tmp_path):
    from qllm_hf.config import QllmConfig
    from qllm_hf.loading import save_model

    place = str(save_model(load_model("reference", QllmConfig(w=4)), load_tokenizer("reference"), tmp_path / "packed"))
    packed = Holder(LARGE)
    question = Question(place, "W4", "W4KV2", (HELLO, HELLO), new_tokens=10)
    step = last(question, packed)
    assert step.left.weight_bytes == step.right.weight_bytes < 3 * 10**6
    assert step.left.cache_bytes > 4 * step.right.cache_bytes
    with pytest.raises(ModelError, match=r"stored as W4, and its float weights are not here.*W4KV4"):
        last(Question(place, "FP16", "W4", (HELLO, HELLO)), packed)


def test_models_without_keys_and_values_write_too(tmp_path):
    from transformers import MambaConfig, MambaForCausalLM

    from qllm_hf.demo.holder import Twin

    config = MambaConfig(vocab_size=1152, hidden_size=16, num_hidden_layers=2, state_size=4)
    model = MambaForCausalLM(config).eval()
    twin = Twin("mamba", "FP16", model, load_tokenizer("reference"), 1)
    ids = torch.arange(1, 9)[None]
    tokens = write(twin, ids, temperature=0, seed=0)
    got = [next(tokens).id for _ in range(4)]
    assert got == model.generate(ids, max_new_tokens=4, do_sample=False, eos_token_id=None)[0, 8:].tolist()


def resident() -> int:
    """Bytes of this process in memory."""
    return int(STATM.read_text().split()[1]) * resource.getpagesize()


@pytest.mark.skipif(not STATM.exists(), reason="needs /proc")
def test_switches_of_model_leave_no_memory_behind(stories):
    switching = Holder(LARGE)

    def use(place, scheme):
        last(Question(place, scheme, "FP16", (HELLO, HELLO), chat=False, new_tokens=4), switching)

    use("reference", "W4")
    use(str(stories), "W4KV4")
    before = resident()
    for number in range(10):
        use(("reference", str(stories))[number % 2], ("W4KV4", "W3")[number % 3 > 0])
        assert {place for place, _ in switching.held} == {("reference", str(stories))[number % 2]}
    assert resident() < 1.1 * before
    switching.clear()
    assert switching.nbytes == 0
