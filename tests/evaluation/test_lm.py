"""The model as lm_eval sees it: the same numbers as plain lm_eval, and the same bits however the work is divided."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import qllm_hf
from qllm_hf.errors import ConfigError, ModelError
from qllm_hf.evaluation import lm as module
from qllm_hf.evaluation.answers import Journal
from qllm_hf.evaluation.harness import quiet_lm_eval
from qllm_hf.evaluation.lm import QllmLM, _halving
from qllm_hf.evaluation.ranks import Ranks

PAIRS = [
    ("Once upon a time", " there was a girl"),
    ("Once upon a time", " there was a dog."),
    ("", "A whole text without a context."),
    ("The cat", " sat"),
    ("The cat", " ran"),
    ("Tom and Mia went to the park. They", " played with a ball and were happy."),
    ("A context that ends with a space ", "moves it"),
    ("x" * 900, " longer than the model reads"),
]
TEXTS = ["One day, a little girl found a needle.", "word " * 700, "A"]
PROMPTS = ["Once upon a time", "The big dog", 'Lily said: "I', "x" * 900]
TALK = (
    ("user", "I am Mia. I have a red kite and a blue drum."),
    ("assistant", "Hello Mia. So you have a kite and a drum."),
    ("user", "What colour is my kite?"),
)


@pytest.fixture(scope="module")
def tokenizer(stories):
    return AutoTokenizer.from_pretrained(stories)


@pytest.fixture(scope="module", params=["float32", "float64"])
def model(stories, request):
    return AutoModelForCausalLM.from_pretrained(stories, dtype=request.param).eval()


@pytest.fixture(scope="module")
def small(stories):
    return AutoModelForCausalLM.from_pretrained(stories).eval()


def requests(*arguments):
    return [SimpleNamespace(args=each, task_name=None) for each in arguments]


def plain(model, tokenizer, **options):
    from lm_eval.models.huggingface import HFLM

    with quiet_lm_eval():
        return HFLM(pretrained=model, tokenizer=tokenizer, batch_size=1, **options)


def ours(model, tokenizer, **options):
    with quiet_lm_eval():
        return QllmLM(model, tokenizer=tokenizer, **options)


@pytest.mark.oldest
@pytest.mark.parametrize("rows", ["auto", 1, 3])
def test_log_likelihoods_are_lm_evals(model, tokenizer, rows):
    """One by one as lm_eval has them; in float64 to 1e-10, whatever shares a batch."""
    with quiet_lm_eval():
        theirs = plain(model, tokenizer).loglikelihood(requests(*PAIRS), disable_tqdm=True)
    found = ours(model, tokenizer, batch_size=rows).loglikelihood(requests(*PAIRS))
    tolerance = 1e-10 if model.dtype == torch.float64 else 1e-4
    for mine, other, (_, text) in zip(found, theirs, PAIRS, strict=True):
        assert mine[0] == pytest.approx(other[0], abs=tolerance)
        assert mine[1] == other[1]
        assert mine.tokens >= len(text.split())


def test_log_likelihood_is_that_of_the_tokens(small, tokenizer):
    """Against the sum of log-probabilities of one forward, written out."""
    context, text = PAIRS[5]
    ids = tokenizer(context + text, return_tensors="pt").input_ids
    start = tokenizer(context, return_tensors="pt").input_ids.shape[1]
    with torch.no_grad():
        logits = small(ids).logits[0].double().log_softmax(-1)
    expected = logits[torch.arange(start - 1, ids.shape[1] - 1), ids[0, start:]].sum().item()
    (found,) = ours(small, tokenizer).loglikelihood(requests((context, text)))
    assert found[0] == pytest.approx(expected, abs=1e-5)
    assert found.tokens == ids.shape[1] - start


def test_whole_texts_predict_each_token_once(model, tokenizer):
    """lm_eval predicts the bos token from itself as well, unless it is told that there is none."""
    with quiet_lm_eval():
        without = plain(model, tokenizer, add_bos_token=False).loglikelihood_rolling(requests(*zip(TEXTS)), True)
        with_mistake = plain(model, tokenizer).loglikelihood_rolling(requests(*zip(TEXTS)), True)
    found = ours(model, tokenizer).loglikelihood_rolling(requests(*zip(TEXTS)))
    assert found == pytest.approx(without, rel=1e-12 if model.dtype == torch.float64 else 1e-5)
    assert abs(found[0] - with_mistake[0]) > 1


@pytest.mark.oldest
@pytest.mark.parametrize("rows", ["auto", 1, 2])
def test_texts_are_lm_evals(small, tokenizer, rows):
    arguments = {"until": ["."], "max_gen_toks": 24, "do_sample": False}
    asked = requests(*((prompt, dict(arguments)) for prompt in PROMPTS))
    with quiet_lm_eval():
        theirs = plain(small, tokenizer).generate_until(asked, disable_tqdm=True)
    assert ours(small, tokenizer, batch_size=rows).generate_until(asked) == theirs
    assert len(set(theirs)) == len(theirs)


def test_usage_counts_what_was_asked(small, tokenizer):
    lm = ours(small, tokenizer)
    lm.loglikelihood(requests(("The cat", " sat"), ("The cat", " sat"), ("x" * 900, " y")))
    assert (lm.usage["requests"], lm.usage["cut"]) == (3, 1)
    lm.start_counting()
    lm.loglikelihood(requests(("x" * 900, " y"), ("x" * 900, " no"), ("x" * 901, " y")))
    assert (lm.usage["requests"], lm.usage["cut"]) == (3, 2)  # prompts are counted, not their choices
    lm.start_counting()
    lm.generate_until(
        requests(("The cat", {"until": [], "max_gen_toks": 5}), ("x" * 900, {"until": [], "max_gen_toks": 5}))
    )
    assert (lm.usage["requests"], lm.usage["cut"], lm.usage["generated_tokens"]) == (2, 1, 10)


def test_an_answer_gets_at_most_half_of_the_model(small, tokenizer):
    lm = ours(small, tokenizer)
    lm.generate_until(requests(("The cat", {"until": [], "max_gen_toks": 100_000})))
    assert lm.usage["generated_tokens"] <= lm.max_length // 2


def test_empty_choices_are_refused(small, tokenizer):
    with pytest.raises(ConfigError, match="a choice or an answer is empty"):
        ours(small, tokenizer)._loglikelihood_tokens([(("a", ""), [1, 2], [])])


def test_outputs_that_are_no_numbers_are_no_scores(stories, tokenizer):
    broken = AutoModelForCausalLM.from_pretrained(stories).eval()
    with torch.no_grad():
        broken.model.norm.weight[0] = float("nan")
    with pytest.raises(ModelError, match=r"no numbers \(nan\) in torch.float32"):
        ours(broken, tokenizer).loglikelihood(requests(*PAIRS))
    with pytest.raises(ModelError, match=r"logits of token \d+ are NaN"):
        ours(broken, tokenizer).write([("Once", {"until": ["."], "max_gen_toks": 3})])


def test_models_without_logits_to_keep(small, tokenizer):
    lm = ours(small, tokenizer)
    expected = lm.loglikelihood(requests(*PAIRS))
    lm._keeps_logits = False
    assert lm.loglikelihood(requests(*PAIRS)) == expected or [pair[0] for pair in expected] == pytest.approx(
        [pair[0] for pair in lm.loglikelihood(requests(*PAIRS))], abs=1e-4
    )


def test_out_of_memory_halves_the_batch():
    seen = []

    def compute(batch):
        seen.append(len(batch))
        if len(batch) > 2:
            raise torch.OutOfMemoryError("made up")
        return [10 * item for item in batch]

    assert _halving([1, 2, 3, 4, 5], compute) == [10, 20, 30, 40, 50]
    assert seen == [5, 2, 3, 1, 2]
    with pytest.raises(torch.OutOfMemoryError):
        _halving([1], lambda batch: compute([1, 2, 3]))


class Split(Ranks):
    """Processes one after another in one: what they share is collected by hand."""

    def share(self, mine):
        return mine


def test_processes_share_the_batches(small, tokenizer, monkeypatch):
    """Each of three answers its own batches, together all, and the same bits as one alone."""
    lm = ours(small, tokenizer, batch_size=2)
    alone = lm.loglikelihood(requests(*PAIRS))
    journal = Journal()
    for rank in range(3):
        part = ours(small, tokenizer, batch_size=2, journal=journal, ranks=Split(rank, 3))
        with pytest.raises(KeyError):  # the other processes' answers are not there
            part.loglikelihood(requests(*PAIRS))
    assert 0 < len(journal) <= len(PAIRS) // 2 + 1
    monkeypatch.setattr(module, "score", None)  # everything is known by now
    assert ours(small, tokenizer, batch_size=2, journal=journal).loglikelihood(requests(*PAIRS)) == alone


def test_a_stopped_run_goes_on_with_the_same_bits(small, tokenizer, tmp_path, monkeypatch):
    complete = ours(small, tokenizer, batch_size=2).loglikelihood(requests(*PAIRS))
    score, calls = module.score, []

    def dies(*arguments):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return score(*arguments)

    monkeypatch.setattr(module, "score", dies)
    with pytest.raises(KeyboardInterrupt):
        ours(small, tokenizer, batch_size=2, journal=Journal(tmp_path)).loglikelihood(requests(*PAIRS))
    assert len(Journal(tmp_path)) == 2
    again = ours(small, tokenizer, batch_size=2, journal=Journal(tmp_path))
    assert again.loglikelihood(requests(*PAIRS)) == complete
    assert len(calls) - 1 == len(Journal(tmp_path))  # none was asked twice


def test_answers_belong_to_their_model(small, tokenizer, tmp_path, monkeypatch):
    """Another fingerprint (scheme, revision, versions) does not find them."""
    ours(small, tokenizer, journal=Journal(tmp_path), fingerprint="W4").loglikelihood(requests(*PAIRS))
    monkeypatch.setattr(module, "score", lambda *arguments: pytest.fail("asked"))
    ours(small, tokenizer, journal=Journal(tmp_path), fingerprint="W4").loglikelihood(requests(*PAIRS))
    with pytest.raises(pytest.fail.Exception, match="asked"):
        ours(small, tokenizer, journal=Journal(tmp_path), fingerprint="W8").loglikelihood(requests(*PAIRS))


def test_conversations_with_and_without_a_template(small, tokenizer):
    reference = qllm_hf.reference_model()
    talker = ours(AutoModelForCausalLM.from_pretrained(reference).eval(), AutoTokenizer.from_pretrained(reference))
    said = [{"role": role, "content": content} for role, content in TALK]
    assert talker.chat([said[:1]], 0.0, 16) != talker.chat([said], 0.0, 16)
    assert "red" in talker.chat([said], 0.0, 16)[0]
    asked = []
    lm = ours(small, tokenizer)
    lm.write = lambda requests: asked.extend(requests) or [""] * len(requests)
    lm.chat([said], 0.7, 16, chat=False)
    (text, arguments), *_ = asked
    assert text.startswith("User: I am Mia. I have a red kite and a blue drum.\n\nAssistant: Hello")
    assert text.endswith("What colour is my kite?\n\nAssistant:")
    assert arguments == {"until": ["\nUser:"], "max_gen_toks": 16, "do_sample": True, "temperature": 0.7, "seed": 0}


def test_sampled_texts_are_the_same_again(small, tokenizer):
    said = [[{"role": "user", "content": f"Tell me story {number}."}] for number in range(3)]
    texts = [ours(small, tokenizer).chat(said, 0.7, 20, chat=False) for _ in range(2)]
    assert texts[0] == texts[1] and len(set(texts[0])) == 3


def test_a_scheme_needs_something_to_load(small, stories, tokenizer):
    with pytest.raises(ConfigError, match="already loaded has its scheme"):
        ours(small, tokenizer, scheme="W4")
    lm = ours(str(stories), None, scheme="W4KV4")
    assert str(lm.model.hf_quantizer.quantization_config.scheme) == "W4KV4"


def test_lm_eval_knows_it_by_name(stories, shared):
    """`lm_eval.simple_evaluate(model="qllm", model_args=...)`, with KV bits in the log-likelihoods."""
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    from qllm_hf.evaluation.harness import TASK_FOLDER

    values = {}
    with quiet_lm_eval():
        manager = TaskManager(include_path=TASK_FOLDER, include_defaults=False)
        for scheme in ("FP16", "KV2"):
            found = simple_evaluate(
                model="qllm",
                model_args=f"pretrained={stories},scheme={scheme}",
                tasks=["mini_stories"],
                limit=4,
                task_manager=manager,
                bootstrap_iters=0,
            )
            values[scheme] = found["results"]["mini_stories"]["nats_per_word,none"]
    assert values["KV2"] > values["FP16"] + 0.5


@pytest.mark.filterwarnings("ignore:.*is damaged in line")
def test_journal_ignores_a_torn_line(tmp_path):
    journal = Journal(tmp_path)
    from qllm_hf.evaluation.answers import Answered

    journal.add("a", Answered([1.5], 0.1))
    file = tmp_path / "process0.jsonl"
    whole = file.read_bytes()
    file.write_bytes(whole + b'{"key": "b", "seconds": 0.1, "ans')
    torn = Journal(tmp_path)
    assert (len(torn), torn.get("b")) == (1, None)
    torn.add("c", Answered([2.5], 0.1))
    again = Journal(tmp_path, rank=1)
    assert again.get("a").answers == [1.5] and again.get("c").answers == [2.5] and len(again) == 2
    again.add("d", Answered([], 0.0))
    assert sorted(path.name for path in Path(tmp_path).iterdir()) == ["process0.jsonl", "process1.jsonl"]
    assert json.loads((tmp_path / "process1.jsonl").read_text())["key"] == "d"
    again.drop()
    assert not tmp_path.exists() or not any(tmp_path.iterdir())
