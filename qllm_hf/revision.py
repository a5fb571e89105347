"""Which files a model came from: its commit on the Hub, or a digest of the files in its folder."""

from __future__ import annotations

import os
from collections.abc import Iterable
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

from transformers import PreTrainedConfig
from transformers.utils.hub import extract_commit_hash

from .builtin import BUILTIN
from .compat import resolve_revision

_EDGE: Final = 1 << 20
_COMMIT: Final = "_commit_hash"  # transformers' own name in its configs, which it never saves; 5.18 left it empty


def revision_of(name_or_path: str, model: Any) -> str:
    """Which files a model came from: its commit on the Hub, or a digest of the files in its folder; "" if unknown.

    The commit is known of what this package loaded or quantized while it was loaded. transformers from 5.18 on does not
    say it of a float model that it loaded by itself.
    """
    folder = BUILTIN.get(name_or_path, Path(name_or_path).expanduser())
    if name_or_path and folder.is_dir():
        return folder_revision(folder)
    return str(getattr(getattr(model, "config", None), _COMMIT, None) or "")


def folder_revision(folder: Path) -> str:
    """A digest of a model's files, such as files:3691e477cdda.

    Of a file of weights, the size and the first and last megabyte are taken: the header with all names and shapes, and
    enough numbers to tell two trainings apart.
    """
    found = sha256()
    for path in sorted(folder.iterdir()):
        if path.suffix not in {".json", ".safetensors", ".model", ".jinja", ".txt"} or not path.is_file():
            continue
        size = path.stat().st_size
        found.update(f"{path.name} {size}\n".encode())
        with path.open("rb") as file:
            found.update(file.read(_EDGE))
            if size > 2 * _EDGE:
                file.seek(-_EDGE, os.SEEK_END)
            found.update(file.read(_EDGE))
    return f"files:{found.hexdigest()[:12]}"


def at_one_commit(name: str) -> dict[str, Any]:
    """The option of `from_pretrained` by which all files of a model on the Hub are of one commit; {} if unknown.

    The Hub is asked. What cannot be found out is left to `from_pretrained`, and to its error messages.
    """
    revision = None if resolve_revision is None else resolve_revision(name)
    return {} if revision is None else {"revision": revision}


def note_commit_(config: PreTrainedConfig, *, options: dict[str, Any] | None = None, files: Iterable[Any] = ()) -> None:
    """Keep the commit that a model was loaded from, for `revision_of`, where transformers does not.

    Args:
        options: of `at_one_commit`.
        files: of weights, as they lie in the cache of the Hub.
    """
    commit = getattr((options or {}).get("revision"), "resolved", None)
    commit = commit or next(filter(None, (extract_commit_hash(str(file), None) for file in files)), None)
    if commit is not None and not getattr(config, _COMMIT, None):
        setattr(config, _COMMIT, commit)
