"""Requests that the model, or the engine under it, cannot answer as asked: refused, where transformers would go on."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from .batched import cancel, drop_outputs_of_nobody
from .caller import TOLD, Caller, Reason, current
from .faults import RefusedError
from .sampling import check_sampling
from .stopping import Stoppable, Told, error_in_stream

SHARED: Final = {
    "do_sample": False,
    "temperature": 1.0,
    "top_p": 1.0,
    "top_k": 50,
    "repetition_penalty": 1.0,
    "stop_strings": None,
    "sequence_bias": None,
}
"""What transformers takes from the first of all requests that are decoded together and gives to the others, and what it
takes where nothing is said."""


@dataclass(frozen=True)
class Room:
    """Tokens of prompt and answer together, and of an answer alone; None where there is no bound.

    Attributes:
        positions: that the model was made for.
        cache: that all requests share. One that does not fit in it alone would stop the engine for all.
        answer: that the host allows.
    """

    positions: int | None = None
    cache: int | None = None
    answer: int | None = None

    @property
    def tokens(self) -> int | None:
        """Of prompt and answer together."""
        return min((each for each in (self.positions, self.cache) if each is not None), default=None)


class Fitting:
    """A generation manager of transformers' server that answers as asked, or says why not.

    Past its last position a model goes on, with noise or an index error in the middle of an answer. Requests that
    are decoded together are all sampled as the first one asked, whatever the others did. And what nobody waits for any
    more would be written to its end.

    Args:
        alike: raises for a request that cannot be decoded beside the earlier ones.
    """

    def __init__(self, manager: Any, room: Room, alike: Callable[[Any], None]) -> None:
        self.manager, self._room, self._alike = manager, room, alike

    def __getattr__(self, name: str) -> Any:
        return getattr(self.manager, name)

    def init_cb(self, model: Any, gen_config: Any) -> None:
        """As the manager's own: the first request sets the engine up. Raises RefusedError (400) if it must not."""
        check_sampling(gen_config, model)
        self.manager.init_cb(model, gen_config)
        drop_outputs_of_nobody(self.manager)

    def generate_streaming(
        self, model: Any, processor: Any, inputs: Any, gen_config: Any, **others: Any
    ) -> tuple[Any, Any]:
        """As the manager's own. Raises RefusedError (400) for what cannot be answered as asked."""
        caller, key = self._begin(model, inputs, gen_config)
        queue, streamer = self.manager.generate_streaming(
            Stoppable(model, caller), processor, inputs, gen_config, **others | {"request_id": key}
        )

        def end(reason: Reason) -> None:
            cancel(self.manager, key)
            queue.put_nowait(error_in_stream(TOLD[reason][1]))

        caller.on_stop(end)
        return Told(queue), streamer

    async def generate_non_streaming(
        self, model: Any, processor: Any, inputs: Any, gen_config: Any, **others: Any
    ) -> Any:
        """As the manager's own. Raises RefusedError (400) for what cannot be answered as asked."""
        caller, key = self._begin(model, inputs, gen_config)
        work = self.manager.generate_non_streaming(
            Stoppable(model, caller), processor, inputs, gen_config, **others | {"request_id": key}
        )
        try:
            return await caller.wait(work)
        except BaseException:
            # now that the engine surely knows of the request: told any earlier, it would forget nothing, and go on
            cancel(self.manager, key)
            raise

    def _begin(self, model: Any, inputs: Any, gen_config: Any) -> tuple[Caller, str]:
        """Who asks, and a name for the request: that which clients give may be another client's."""
        check_sampling(gen_config, model)
        self._alike(gen_config)
        self._fit(inputs, gen_config)
        caller = current()
        caller.check()
        caller.began = True
        return caller, uuid.uuid4().hex

    def _fit(self, inputs: Any, gen_config: Any) -> None:
        ids = inputs["input_ids"]
        length = len(ids) if isinstance(ids, list) else ids.shape[-1]  # lists where requests are decoded together
        if length == 0:
            raise RefusedError(400, "the prompt is empty.")
        bounds = [gen_config.max_new_tokens, self._room.answer]
        if self._room.tokens is not None:
            bounds.append(self._room.tokens - length)
            if self._room.tokens <= length:
                raise RefusedError(
                    400,
                    f"the prompt has {length} tokens. This model takes {self._room.tokens - 1} at most, and then "
                    "writes.",
                )
        gen_config.max_new_tokens = min((each for each in bounds if each is not None), default=None)


class Alike:
    """Holds requests that are decoded together to what the first of them asked for."""

    def __init__(self) -> None:
        self.first: dict[str, Any] | None = None

    def __call__(self, gen_config: Any) -> None:
        """Raises RefusedError (400) for a request that would be answered otherwise than it asks."""
        asked = {name: getattr(gen_config, name, None) or usual for name, usual in SHARED.items()}
        if not asked["do_sample"]:  # these mean nothing then
            asked |= {name: SHARED[name] for name in ("temperature", "top_p", "top_k")}
        self.first = self.first or asked
        differs = [name for name in SHARED if asked[name] != self.first[name]]
        if differs:
            raise RefusedError(
                400,
                "requests that are decoded together are sampled as the first one asked: "
                + ", ".join(f"{name}={self.first[name]!r}" for name in differs)
                + f". This one asks for {', '.join(f'{name}={asked[name]!r}' for name in differs)}. "
                "Ask alike, or serve without --continuous-batching.",
            )


def any_way(gen_config: Any) -> None:
    """Requests that are worked on one after another may ask for what they like."""
