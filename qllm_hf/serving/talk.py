"""A conversation in the terminal: transformers' own, with a server that is there already."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

from huggingface_hub import constants
from transformers.utils.import_utils import is_rich_available

from ..errors import MissingExtraError


def require_talking() -> None:
    """Raises MissingExtraError if what transformers draws conversations with is not installed."""
    if not is_rich_available():
        raise MissingExtraError("a conversation in the terminal needs rich. Run: pip install 'qllm-hf[serve]'")


def talk(name: str, address: str, flags: Sequence[str] = (), system: str | None = None) -> None:
    """Talk with the model that a server at `address` calls `name`, until the user leaves.

    Args:
        flags: of `transformers chat`, such as max_new_tokens=100.
        system: what the model is told first.
    """
    from transformers.cli.chat import Chat

    with _reaching_this_machine():
        Chat(
            name,
            base_url=address,
            generate_flags=list(flags),
            user=None,
            system_prompt=system,
            save_folder="./chat_history/",
            examples_path=None,
            generation_config=None,
        )


@contextlib.contextmanager
def _reaching_this_machine() -> Iterator[None]:
    """HF_HUB_OFFLINE=1 closes every address to the client that the chat uses, this machine's too."""
    offline, constants.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE, False
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = offline
