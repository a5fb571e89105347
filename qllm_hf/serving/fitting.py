"""Requests that the model, or the engine under it, cannot answer as asked: refused, where transformers would go on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

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


class Fitting:
    """A generation manager of transformers' server that answers as asked, or says why not.

    Past its last position a model goes on, with noise or an index error in the middle of an answer. And requests that
    are decoded together are all sampled as the first one asked, whatever the others did.

    Args:
        positions: tokens the model was made for, or None where there is no such number.
        alike: raises for a request that cannot be decoded beside the earlier ones.
    """

    def __init__(self, manager: Any, positions: int | None, alike: Callable[[Any], None]) -> None:
        self._manager, self._positions, self._alike = manager, positions, alike

    def __getattr__(self, name: str) -> Any:
        return getattr(self._manager, name)

    def generate_streaming(self, model: Any, processor: Any, inputs: Any, gen_config: Any, **others: Any) -> Any:
        """As the manager's own. Raises HTTPException (400) for what cannot be answered as asked."""
        self._fit(inputs, gen_config)
        return self._manager.generate_streaming(model, processor, inputs, gen_config, **others)

    async def generate_non_streaming(
        self, model: Any, processor: Any, inputs: Any, gen_config: Any, **others: Any
    ) -> Any:
        """As the manager's own. Raises HTTPException (400) for what cannot be answered as asked."""
        self._fit(inputs, gen_config)
        return await self._manager.generate_non_streaming(model, processor, inputs, gen_config, **others)

    def _fit(self, inputs: Any, gen_config: Any) -> None:
        from fastapi import HTTPException

        self._alike(gen_config)
        ids = inputs["input_ids"]
        length = len(ids) if isinstance(ids, list) else ids.shape[-1]  # lists where requests are decoded together
        if length == 0:
            raise HTTPException(400, "the prompt is empty.")
        if self._positions is None:
            return
        room = self._positions - length
        if room <= 0:
            raise HTTPException(
                400, f"the prompt has {length} tokens. This model takes {self._positions - 1} at most, and then writes."
            )
        gen_config.max_new_tokens = min(gen_config.max_new_tokens or room, room)


class Alike:
    """Holds requests that are decoded together to what the first of them asked for."""

    def __init__(self) -> None:
        self.first: dict[str, Any] | None = None

    def __call__(self, gen_config: Any) -> None:
        """Raises HTTPException (400) for a request that would be answered otherwise than it asks."""
        from fastapi import HTTPException

        asked = {name: getattr(gen_config, name, None) or usual for name, usual in SHARED.items()}
        if not asked["do_sample"]:  # these mean nothing then
            asked |= {name: SHARED[name] for name in ("temperature", "top_p", "top_k")}
        self.first = self.first or asked
        differs = [name for name in SHARED if asked[name] != self.first[name]]
        if differs:
            raise HTTPException(
                400,
                "requests that are decoded together are sampled as the first one asked: "
                + ", ".join(f"{name}={self.first[name]!r}" for name in differs)
                + f". This one asks for {', '.join(f'{name}={asked[name]!r}' for name in differs)}. "
                "Ask alike, or serve without --continuous-batching.",
            )


def any_way(gen_config: Any) -> None:
    """Requests that are worked on one after another may ask for what they like."""
