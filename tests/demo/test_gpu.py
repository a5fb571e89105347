"""Where the package `spaces` is, answers are written on a lent GPU."""

import pickle
import sys
from types import ModuleType

from qllm_hf.demo.compare import Question
from qllm_hf.demo.conversation import writer
from qllm_hf.demo.gpu import SECONDS, on_gpu
from qllm_hf.demo.host import make_host

HELLO = ({"role": "user", "content": "hi"},)


def test_functions_are_marked_where_the_package_is(monkeypatch):
    spaces = ModuleType("spaces")
    spaces.GPU = lambda duration: lambda function: ("lent", duration, function)
    monkeypatch.setitem(sys.modules, "spaces", spaces)
    assert on_gpu(len) == ("lent", SECONDS, len)


def test_a_folder_of_that_name_is_no_package(monkeypatch):
    """The one of this repository can be imported where Python was started in it."""
    monkeypatch.setitem(sys.modules, "spaces", ModuleType("spaces"))
    assert on_gpu(len) is len


def test_without_the_package_functions_stay(monkeypatch):
    monkeypatch.setitem(sys.modules, "spaces", None)
    assert on_gpu(len) is len


def test_what_goes_to_another_process_can_go_there():
    question = Question("reference", "FP16", "W2", (HELLO, HELLO), new_tokens=3)
    *_, step = writer(make_host())(pickle.loads(pickle.dumps(question)), "somebody")
    assert pickle.loads(pickle.dumps(step)) == step
