"""Judges in this process, and what `open_judge` takes for a judge."""

import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from qllm_hf.builtin import reference_model
from qllm_hf.errors import CheckpointError, JudgeError
from qllm_hf.evaluation.judge.http import HttpJudge
from qllm_hf.evaluation.judge.local import LocalJudge, open_judge
from qllm_hf.evaluation.judge.mt_bench import Answered, Question, rate, summarise
from qllm_hf.evaluation.judge.prompts import DEFAULT_PROMPTS

MESSAGES = [{"role": "system", "content": "Be fair."}, {"role": "user", "content": "What is 3 + 4?"}]


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(reference_model())


@pytest.fixture(scope="module")
def model():
    return AutoModelForCausalLM.from_pretrained(reference_model(), dtype=torch.float32).eval()


class Spoken:
    """A model that notes what it is given and always says the same."""

    def __init__(self, tokenizer, says: str, positions: int | None = 100) -> None:
        config = SimpleNamespace(max_position_embeddings=positions)
        self.config = SimpleNamespace(get_text_config=lambda: config)
        self.generation_config = SimpleNamespace(eos_token_id=[2, 7])
        self.device = torch.device("cpu")
        self.says = torch.tensor([[*tokenizer(says, add_special_tokens=False)["input_ids"], 2]])

    def generate(self, input_ids, **options):
        self.prompt, self.options = input_ids[0].tolist(), options
        return torch.cat([input_ids, self.says], dim=1)


def test_greedy_judgement_of_a_real_model(model, tokenizer):
    judge = LocalJudge(model, tokenizer, "reference", max_tokens=20)
    assert judge.name == "reference"
    text = "<|begin|><|system|>\nBe fair.<|end|>\n<|user|>\nWhat is 3 + 4?<|end|>\n<|assistant|>\n"
    ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
    expected = model.generate(ids, max_new_tokens=20, do_sample=False, eos_token_id=2)[0, ids.shape[1] :]
    assert judge.ask(MESSAGES) == judge.ask(MESSAGES) == tokenizer.decode(expected, skip_special_tokens=True)


def test_judgement_holds_no_prompt_and_no_special_tokens(tokenizer):
    model = Spoken(tokenizer, "Good. [[7]]")
    assert LocalJudge(model, tokenizer, "m").ask(MESSAGES) == "Good. [[7]]"
    assert model.options["do_sample"] is False and model.options["eos_token_id"] == [2, 7]
    # what is left of 100 positions
    assert model.options["max_new_tokens"] == 100 - len(model.prompt)


def test_longest_judgement(tokenizer):
    model = Spoken(tokenizer, "Good.", positions=None)
    LocalJudge(model, tokenizer, "m").ask(MESSAGES)
    assert model.options["max_new_tokens"] == 2048
    LocalJudge(model, tokenizer, "m", max_tokens=7).ask(MESSAGES)
    assert model.options["max_new_tokens"] == 7


def test_prompt_that_does_not_fit(tokenizer):
    judge = LocalJudge(Spoken(tokenizer, "Good."), tokenizer, "m")
    with pytest.raises(
        JudgeError, match=r"a prompt of \d{3} tokens does not fit the judge 'm', which has 100 positions"
    ):
        judge.ask([{"role": "user", "content": "0 1 2 3 4 5 6 7 8 9 " * 20}])


def test_family_without_system_messages(tokenizer):
    refusing = AutoTokenizer.from_pretrained(reference_model())
    refusing.chat_template = (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system message') }}{% endif %}"
        + tokenizer.chat_template
    )
    model = Spoken(tokenizer, "Good.")
    LocalJudge(model, refusing, "m").ask(MESSAGES)
    assert "<|user|>\nBe fair.\n\nWhat is 3 + 4?<|end|>" in tokenizer.decode(model.prompt)
    refusing.chat_template = "{{ raise_exception('nothing pleases me') }}"
    with pytest.raises(Exception, match="nothing pleases me"):
        LocalJudge(model, refusing, "m").ask(MESSAGES)


def test_no_chat_template(stories):
    with pytest.raises(JudgeError, match=r"stories260K' has no chat template.*instruction-tuned"):
        open_judge(str(stories))


def test_reference_model_is_no_judge():
    """It writes something, but no rating: that is said rather than scored."""
    judge = open_judge("reference", max_tokens=16, dtype="float32")
    assert isinstance(judge, LocalJudge)
    answered = [Answered(Question(1, "math", ("What is 3 + 4?", "And 5 + 6?")), ("7", ""))]
    with pytest.raises(JudgeError, match="the judge 'reference' gave no rating in 2 answers"):
        summarise(rate(judge, answered, DEFAULT_PROMPTS))


def test_behind_an_address():
    judge = open_judge("http://localhost:8000", "gpt-4", timeout=3, retries=1, max_tokens=9, key_variable="KEY")
    assert isinstance(judge, HttpJudge)
    assert (judge.name, judge.timeout, judge.retries, judge.max_tokens, judge.key_variable) == ("gpt-4", 3, 1, 9, "KEY")


@pytest.mark.parametrize(
    ("spec", "model", "message"),
    [
        ("http://localhost:8000", None, "needs the name of a model"),
        ("ftp://localhost", "m", "no address of a judge"),
        ("localhost:8000", "m", r"'localhost:8000' is no model\. If it is a server, give http://localhost:8000"),
        ("127.0.0.1:80/v1", None, "give http://127"),
        ("reference", "m", "the judge 'reference' is loaded here, so it has no other name 'm'"),
    ],
)
def test_no_judge(spec, model, message):
    with pytest.raises(JudgeError, match=message):
        open_judge(spec, model)


def test_no_such_model():
    with pytest.raises(CheckpointError, match="Did you mean 'reference'"):
        open_judge("refrence")


def test_a_judge_behind_an_address_needs_no_torch(tmp_path):
    code = (
        "import sys\nfrom qllm_hf.evaluation.judge.local import open_judge\n"
        "import qllm_hf.evaluation.judge.mt_bench, qllm_hf.evaluation.judge.cost\n"
        "open_judge('http://localhost:1', 'm')\n"
        "heavy = {'torch', 'transformers'} & set(sys.modules)\nassert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
