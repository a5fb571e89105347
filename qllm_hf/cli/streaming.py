"""Text on a terminal while a model writes it."""

from __future__ import annotations

from transformers import TextStreamer

from ..shown import printable


class TerminalStreamer(TextStreamer):
    """transformers' streamer, whose text does not act on the terminal: a model may write any character."""

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Print a part of the text, and at its end a line feed."""
        super().on_finalized_text(printable(text), stream_end)
