"""The way from a request to the engine, where a client may leave at any moment."""

import asyncio
import threading
from types import SimpleNamespace

import pytest
from transformers import GenerationConfig
from transformers.utils.import_utils import is_serve_available

from qllm_hf.loading import load_model
from qllm_hf.serving.caller import Caller, StoppedError, calling
from qllm_hf.serving.fitting import Fitting, Room, any_way
from qllm_hf.serving.stopping import Stoppable

pytestmark = pytest.mark.skipif(not is_serve_available(), reason="needs `pip install 'qllm-hf[serve]'`")


class Engine:
    """A manager with an engine that keeps what it is told, in order."""

    def __init__(self) -> None:
        self.log: list[str] = []
        router = SimpleNamespace(_lock=threading.Lock(), result_handlers={})
        self._cb = SimpleNamespace(cancel_request=lambda key: self.log.append("cancelled"), output_router=router)

    async def generate_non_streaming(self, model, processor, inputs, gen_config, request_id):
        self._cb.output_router.result_handlers[request_id] = "told of its tokens"
        self.log.append("added")
        await asyncio.sleep(3600)


@pytest.fixture(scope="module")
def model():
    return load_model("reference")


@pytest.mark.parametrize("ticks", [0, 1, 2, 3])
def test_who_leaves_while_a_request_is_handed_over(model, ticks):
    """The engine is told to forget a request after it was told of it, and not before."""

    async def work():
        caller, engine = Caller(), Engine()
        calling(caller)

        def leave(left: int) -> None:
            asyncio.get_running_loop().call_soon(leave, left - 1) if left else caller.stop("left")

        asyncio.get_running_loop().call_soon(leave, ticks)
        fitting = Fitting(engine, Room(), any_way)
        with pytest.raises(StoppedError):
            await fitting.generate_non_streaming(model, None, {"input_ids": [1]}, GenerationConfig(max_new_tokens=2))
        assert engine.log in (["added", "cancelled"], ["cancelled"])
        assert not engine._cb.output_router.result_handlers

    asyncio.run(work())


def test_who_has_left_before_is_not_handed_over(model):
    async def work():
        caller, engine = Caller(), Engine()
        calling(caller)
        caller.stop("left")
        with pytest.raises(StoppedError):
            await Fitting(engine, Room(), any_way).generate_non_streaming(
                model, None, {"input_ids": [1]}, GenerationConfig(max_new_tokens=2)
            )
        assert engine.log == []

    asyncio.run(work())


@pytest.mark.parametrize(
    ("room", "length", "asked", "given"),
    [
        (Room(), 5, None, None),
        (Room(positions=100), 5, None, 95),
        (Room(positions=100), 5, 10**30, 95),
        (Room(positions=100, cache=50), 5, 60, 45),
        (Room(positions=100, answer=7), 5, 60, 7),
        (Room(answer=7), 5, 3, 3),
    ],
)
def test_answers_fit(room, length, asked, given):
    config = GenerationConfig(max_new_tokens=asked)
    Fitting(None, room, any_way)._fit({"input_ids": [1] * length}, config)
    assert config.max_new_tokens == given


def test_what_breaks_holds_no_cache():
    """The error that leaves has none of the frames of `generate`, in which keys and values are."""

    async def work():
        def broken(**options):
            keys_and_values = [0] * 1000
            raise ValueError(keys_and_values)

        with pytest.raises(RuntimeError, match="Others are not affected") as found:
            Stoppable(SimpleNamespace(generate=broken), Caller()).generate()
        assert found.value.__context__ is None and found.value.__cause__ is None

    asyncio.run(work())
