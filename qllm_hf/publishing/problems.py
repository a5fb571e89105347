"""What can go wrong between a folder and the Hub, as one kind of error."""

from __future__ import annotations

from ..errors import QllmError


class PublishError(QllmError):
    """A card that cannot be written truthfully, or a push that the Hub does not take."""
