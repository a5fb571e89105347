"""The work folder: what has been done of a calibration, so that a run that was killed goes on where it stopped.

    progress.json                what this run is, and how many blocks are done
    block-00003.safetensors      the finished block: packed weights, scaled norms, biases
    qllm-offload-.../            weights that a running process rewrote
    hidden-00004/00000...        what the next block gets, a file for each batch
    float-00004/00000...         and what it gets in the float model, if the method compares the two

A block counts when progress.json says so, and that is written last. Every file appears under its name when it is whole,
holds checksums, and says which run and place it belongs to: a run does not go on with what was
damaged or exchanged meanwhile.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import zlib
from pathlib import Path
from typing import Any, Literal

from safetensors.torch import load_file, save_file
from torch import Tensor

from ..checksums import as_metadata
from ..errors import CheckpointError
from ..files import check_file, read_bytes
from ..header import read_header
from ..safetensors_stream import state_checksums
from ..shown import short, short_text
from ..strict_json import parse_object, with_checksum, without_checksum
from ..whole import whole_file, write_whole

FORMAT = 1
_PLACE = "qllm_work"
_PROGRESS = "progress.json"
SCRATCH = "qllm-offload-"
"""What the names of folders begin with that are removed when a process ends."""
_OURS = re.compile(rf"\.|progress\.json|block-|hidden-|float-|{SCRATCH}")


class Work:
    """A work folder.

    Args:
        folder: is made by `begin`.
        identity: what this run is; a folder of another run is refused.
        restart: forget what an earlier run has done.

    Raises:
        CheckpointError: the folder belongs to another run, or is damaged.
    """

    def __init__(self, folder: Path, identity: dict[str, Any], *, restart: bool = False) -> None:
        self.folder = folder
        self.notes: dict[str, Any] = {}
        self.done = 0
        if restart:
            self.remove()
        self._identity: dict[str, Any] = json.loads(json.dumps(identity))
        self._run = f"{zlib.crc32(json.dumps(self._identity, sort_keys=True).encode('ascii')):08x}"
        path = folder / _PROGRESS
        if folder.exists() and not folder.is_dir():
            raise CheckpointError(
                f"{str(folder)!r} is no folder, and a calibration keeps its work there. Move it away."
            )
        if path.exists() or path.is_symlink():
            self._read(path)
        elif folder.exists() and not all(_OURS.match(found.name) for found in folder.iterdir()):
            raise CheckpointError(f"{str(folder)!r} is no work folder of a calibration. Move it away.")
        if not self.done:  # nothing counts: it was left by a run that was stopped at its beginning or its end
            self.remove()

    def _read(self, path: Path) -> None:
        try:
            found = without_checksum(parse_object(read_bytes(path)))
            identity, done, notes = found["identity"], found["done"], found["notes"]
            if found["format"] != FORMAT or type(done) is not int or done < 0:
                raise ValueError(f"format={short(found['format'])}, done={short(done)}")
            identity, self.done, self.notes = dict(identity), done, dict(notes)
            for name, kind in (("lengths", list), ("input_scales", list), ("unscaled", dict)):
                if not isinstance(notes.get(name, kind()), kind):
                    raise ValueError(f"{name}={short(notes[name])}")
        except CheckpointError:
            raise
        except FileNotFoundError:
            raise CheckpointError(f"{path} is a link to nothing. Begin again with --restart.") from None
        except (ValueError, KeyError, TypeError) as error:
            raise CheckpointError(
                f"{path} is damaged ({short_text(str(error))}). Begin again with --restart."
            ) from None
        different = sorted(key for key in {*identity, *self._identity} if identity.get(key) != self._identity.get(key))
        if different and self.done:
            raise CheckpointError(
                f"{str(self.folder)!r} holds {self.done} blocks of another run; it differs in {', '.join(different)}. "
                "Repeat that run's options to go on with it, or begin again with --restart."
            )

    def begin(self) -> None:
        """Make the folder, if this is the beginning."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if not self.done:  # a run may be stopped before its first block is done: the folder says whose it is
            self.advance(0, {})

    def advance(self, done: int, notes: dict[str, Any]) -> None:
        """Say that the first `done` blocks and the hidden states after them are there."""
        self.done, self.notes = done, notes
        content = {"format": FORMAT, "identity": self._identity, "done": done, "notes": notes}
        write_whole(self.folder / _PROGRESS, json.dumps(with_checksum(content)).encode("utf-8"))
        for old in [*self.folder.glob("hidden-*"), *self.folder.glob("float-*")]:
            if int(old.name.partition("-")[2]) < done:
                shutil.rmtree(old, ignore_errors=True)

    def block_file(self, index: int) -> Path:
        """Where a finished block is."""
        return self.folder / f"block-{index:05d}.safetensors"

    def save_block(self, index: int, state: dict[str, Tensor]) -> None:
        """Keep a finished block."""
        # a weight that is tied within the block may be stored once only
        self._save({name: tensor.contiguous() for name, tensor in state.items()}, self.block_file(index))

    def load_block(self, index: int) -> dict[str, Tensor]:
        """A finished block. Raises CheckpointError if it is missing, damaged, or another one."""
        return self._load(self.block_file(index))

    def save_hidden(self, kind: str, index: int, batch: int, hidden: Tensor) -> None:
        """Keep what block `index` gets for one batch."""
        folder = self.folder / f"{kind}-{index:05d}"
        folder.mkdir(exist_ok=True)
        self._save({"hidden": hidden.cpu().contiguous()}, folder / f"{batch:05d}.safetensors")

    def load_hidden(self, kind: str, index: int, batch: int) -> Tensor:
        """What block `index` gets for one batch."""
        return self._load(self.folder / f"{kind}-{index:05d}" / f"{batch:05d}.safetensors")["hidden"]

    def scratch(self) -> Path:
        """The folder, for what is needed while this process runs; a process that was killed may have left some."""
        for old in self.folder.glob(f"{SCRATCH}*"):
            shutil.rmtree(old, ignore_errors=True)
        self.folder.mkdir(parents=True, exist_ok=True)
        return self.folder

    def remove(self) -> None:
        """The run is over: its result is elsewhere."""
        # first what says that blocks are there: a run that is stopped in between must not be believed
        with contextlib.suppress(OSError):
            (self.folder / _PROGRESS).unlink(missing_ok=True)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _metadata(self, tensors: dict[str, Tensor], path: Path) -> dict[str, str]:
        """What tells this file from one of another run, another place, or with other numbers."""
        place = f"{self._run} {path.relative_to(self.folder).as_posix()}"
        return {_PLACE: place, **as_metadata(state_checksums(tensors))}

    def _save(self, tensors: dict[str, Tensor], path: Path) -> None:
        with whole_file(path) as partial:
            save_file(tensors, partial, metadata=self._metadata(tensors, path))

    def _load(self, path: Path) -> dict[str, Tensor]:
        try:
            check_file(path, largest=2**60)
            _, metadata = read_header(path)
        except FileNotFoundError:
            raise CheckpointError(f"{path} is missing. Begin again with --restart.") from None
        except CheckpointError as error:
            raise CheckpointError(f"{error} Or begin again with --restart.") from None
        tensors: dict[str, Tensor] = load_file(path)
        if metadata != self._metadata(tensors, path):
            raise CheckpointError(f"{path} is damaged, or of another run. Begin again with --restart.")
        return tensors


class Hidden:
    """The hidden states of all batches, in memory or in a work folder.

    Args:
        kind: "hidden" for the model that is being rounded, "float" for the one it is compared with.
    """

    def __init__(self, work: Work | None, kind: Literal["hidden", "float"] = "hidden") -> None:
        self._work, self._kind = work, kind
        self._kept: dict[tuple[int, int], Tensor] = {}

    def save(self, index: int, batch: int, hidden: Tensor) -> None:
        """Keep what block `index` gets for one batch."""
        if self._work is not None:
            self._work.save_hidden(self._kind, index, batch, hidden)
        else:
            self._kept[index, batch] = hidden
            self._kept.pop((index - 2, batch), None)

    def load(self, index: int, batch: int) -> Tensor:
        """What block `index` gets for one batch."""
        return self._kept[index, batch] if self._work is None else self._work.load_hidden(self._kind, index, batch)
