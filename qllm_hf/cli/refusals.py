"""What the system refuses, as one sentence: which file, why, and what to do."""

from __future__ import annotations

import errno

_KEPT = "What was there is as it was"
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_WHAT_TO_DO = {
    errno.ENOSPC: f"{_KEPT}: make room, and run the same command again.",
    errno.EDQUOT: f"{_KEPT}: make room, and run the same command again.",
    errno.EFBIG: f"{_KEPT}: write smaller files (--max-shard-size), or to another disk.",
    errno.EACCES: f"{_KEPT}: give another place, or ask who owns it.",
    errno.EPERM: f"{_KEPT}: give another place, or ask who owns it.",
    errno.EROFS: f"{_KEPT}: give another place.",
    errno.ENAMETOOLONG: "Give a shorter name.",
    errno.EIO: f"{_KEPT}, as far as the disk can be read: look at its health, and run the same command again.",
    errno.ENOENT: "Was it removed while the command ran? Run the same command again.",
    errno.EMFILE: "Allow more open files: ulimit -n 4096.",
}


def refusal(error: OSError) -> str | None:
    """One sentence for what the system refused; None if it does not say which file and why."""
    if error.errno is None or error.filename is None:
        return None
    place, copy = str(error.filename), error.filename2
    if copy:  # there is no room for the copy; any other error may be of either
        place = str(copy) if error.errno in _NO_ROOM else f"{place} -> {copy}"
    why = (error.strerror or str(error)).rstrip(".")
    advice = _WHAT_TO_DO.get(error.errno, f"{_KEPT}.")
    return f"{place!r}: {why[:1].lower()}{why[1:]}. {advice}"
