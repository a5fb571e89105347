"""Calibration text: from a file, a dataset, the built-in curriculum or a list, to blocks of tokens."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import torch
from torch import Tensor

from ..curriculum.tasks import TASKS, training_item
from ..errors import CalibrationError, ConfigError, MissingExtraError
from ..files import read_text
from ..shown import is_cut, short_text

CURRICULUM = "curriculum"
"""The name of the built-in source: texts like those that the reference model was trained on, none of a test."""
SEED = 42
"""Of the order of texts; the study's number."""
_LONGEST_TASK = 512  # tokens; longer texts of the curriculum would leave room for few others
_HOW = (
    "Give --calibration FILE (.txt, or .jsonl with a field 'text'), a dataset on the Hub (owner/name, or "
    f"owner/name:config:split), or '{CURRICULUM}', which comes with qllm_hf."
)


@dataclass(frozen=True)
class Calibration:
    """Blocks of tokens, and where they are from.

    Attributes:
        ids: int64 [N, T].
        source: a file name, an id on the Hub, or a word for what was given in memory.
    """

    ids: Tensor
    source: str

    def digest(self) -> str:
        """A short hash of the tokens: the same text and tokenizer give the same one on every machine."""
        content = self.ids.contiguous().numpy().astype("<i8").tobytes()
        return hashlib.blake2b(content, digest_size=8).hexdigest()

    def summary(self) -> dict[str, Any]:
        """What a saved config says of it."""
        samples, seqlen = self.ids.shape
        return {"source": self.source, "samples": samples, "seqlen": seqlen, "digest": self.digest()}


def read_calibration(source: Any, tokenizer: Any, *, samples: int, seqlen: int) -> Calibration:
    """At most `samples` blocks of `seqlen` tokens of a source.

    Args:
        source: what `QllmConfig.calibration` takes. Token ids are used as they are.
        tokenizer: of the model; not needed for token ids.

    Raises:
        CalibrationError: no text, fewer tokens than one block, or a source that cannot be read.
    """
    if isinstance(source, Calibration):
        return source
    if isinstance(source, Tensor):
        return Calibration(_checked_ids(source), "token ids")
    if tokenizer is None and source is not None:
        raise CalibrationError("calibration text needs the model's tokenizer. Give tokenizer=..., or token ids [N, T].")
    if source is None or isinstance(source, str | Path):
        texts, name = texts_of(source, samples * seqlen)
    elif isinstance(source, Sequence) and all(isinstance(text, str) for text in source):
        texts, name = iter(source), "texts"
    else:
        raise CalibrationError(f"calibration={type(source).__name__} is nothing that text can be read from. {_HOW}")
    return Calibration(token_blocks(texts, tokenizer, samples=samples, seqlen=seqlen, source=name), name)


def texts_of(source: str | Path | None, tokens: int) -> tuple[Iterator[str], str]:
    """The texts of a named source, at least about `tokens` tokens if it has them, and the name to remember.

    Raises:
        CalibrationError: nothing of that name, or nothing that can be read.
    """
    if source is None or not str(source).strip():
        raise CalibrationError(f"this method looks at text before it chooses codes, and none was given. {_HOW}")
    path = Path(source).expanduser()
    if path.is_file():
        return iter(_read_file(path)), path.name
    if str(source) == CURRICULUM:
        return _curriculum_texts(tokens), CURRICULUM
    if path.exists():
        raise CalibrationError(f"{str(source)!r} is a folder. {_HOW}")
    if path.suffix or str(source).startswith((".", "/", "~")) or str(source).count("/") > 1:
        raise CalibrationError(f"there is no file {str(source)!r}. {_HOW}")
    return _dataset_texts(str(source)), str(source)


def token_blocks(
    texts: Iterable[str], tokenizer: Any, *, samples: int, seqlen: int, source: str = "the text"
) -> Tensor:
    """int64 [N, seqlen], N at most `samples`: the texts in a seeded order, end to end, cut into blocks.

    Each text is encoded with the special tokens that the tokenizer adds, as in AWQ's own calibration.

    Raises:
        CalibrationError: fewer tokens than one block.
    """
    wanted = samples * seqlen
    tokens: list[int] = []
    count = 0
    for text in _in_order(texts):
        count += 1
        # some tokenizers warn of texts that are longer than their model: these are cut below
        tokens += tokenizer(text, verbose=False)["input_ids"]
        if len(tokens) >= wanted:
            break
    blocks = min(samples, len(tokens) // seqlen)
    if blocks == 0:
        found = f"{count} texts with {len(tokens)} tokens" if count else "no text at all"
        raise CalibrationError(
            f"{source} holds {found}, less than one block of {seqlen} tokens. Give more text, or a smaller "
            f"seqlen ({max(len(tokens), 1)} at most)."
        )
    return torch.tensor(tokens[: blocks * seqlen], dtype=torch.int64).view(blocks, seqlen)


def _in_order(texts: Iterable[str]) -> Iterator[str]:
    """Shuffled with a seed, ten thousand at a time: a dataset may be longer than memory."""
    rng, window = Random(SEED), []
    for text in texts:
        if text.strip():
            window.append(text)
        if len(window) == 10_000:
            rng.shuffle(window)
            yield from window
            window = []
    rng.shuffle(window)
    yield from window


def _checked_ids(ids: Tensor) -> Tensor:
    if ids.dim() != 2 or ids.dtype != torch.int64 or 0 in ids.shape:
        raise CalibrationError(
            f"token ids of shape {tuple(ids.shape)} and {ids.dtype}: give int64 [N, T], N blocks of T tokens."
        )
    return ids.cpu()


def _read_file(path: Path) -> list[str]:
    content = read_text(path, error=CalibrationError)
    if path.suffix != ".jsonl":
        return [part for part in content.split("\n\n") if part.strip()]
    texts = []
    for number, line in enumerate(content.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            raise CalibrationError(f"{path}, line {number}: no valid JSON. Is the file cut short?") from None
        if not isinstance(row, dict) or not isinstance(row.get("text"), str):
            found = short_text(", ".join(row)) if isinstance(row, dict) else type(row).__name__
            raise CalibrationError(f"{path}, line {number}: no field 'text' (found: {found}).")
        if is_cut(row["text"]):
            raise CalibrationError(f"{path}, line {number}: its text holds half a character, which no tokenizer takes.")
        texts.append(row["text"])
    return texts


def _dataset_texts(name: str) -> Iterator[str]:
    try:
        import datasets
    except ImportError:
        raise MissingExtraError(
            f"reading {name!r} from the Hub needs the package datasets. Run: pip install 'qllm-hf[eval]'"
        ) from None
    repository, config, split = (*name.split(":"), "", "")[:3]
    try:
        rows = datasets.load_dataset(repository, config or None, split=split or "train", streaming=True)
        first = next(iter(rows))
    except (OSError, ValueError, ConnectionError, StopIteration) as error:
        reason = (str(error).strip().split("\n") or [""])[0] or type(error).__name__
        raise CalibrationError(
            f"there is no file {name!r}, and as a dataset it cannot be read: {reason} {_HOW}"
        ) from None
    column = next((key for key in ("text", "content") if isinstance(first.get(key), str)), None)
    if column is None:
        raise CalibrationError(f"dataset {name!r} has no column 'text' or 'content' (found: {', '.join(first)}).")
    return (row[column] for row in rows)


def _curriculum_texts(tokens: int) -> Iterator[str]:
    """Items of all short tasks in turn, none of which is in a test. About `tokens` tokens, then an end."""
    rng = Random(SEED)
    tasks = [task for task in TASKS.values() if task.longest <= _LONGEST_TASK]
    made = 0
    # twice as many words as tokens are asked for is plenty; another factor would give other digests
    while made < 2 * tokens:
        for task in tasks:
            item = training_item(task, rng)
            text = f"{item.prompt}{item.answer}\n"
            made += len(text.split())
            yield text


def calibration_for(config: Any, name_or_path: str | None) -> Calibration:
    """The calibration that a QllmConfig asks for, with its tokenizer or that of the model.

    Raises:
        CalibrationError: as `read_calibration`, or the model comes without a tokenizer.
    """
    if isinstance(config.calibration, dict):
        raise ConfigError(
            "calibration is the summary of an earlier run, not text. Give the text itself, for example "
            f"calibration={config.calibration.get('source')!r}."
        )
    tokenizer = config.tokenizer
    if tokenizer is None and name_or_path and not isinstance(config.calibration, Tensor | Calibration | type(None)):
        from transformers import AutoTokenizer

        try:
            # said, since transformers would ask at the terminal
            tokenizer = AutoTokenizer.from_pretrained(name_or_path, trust_remote_code=False)
        except (OSError, ValueError, KeyError) as error:
            first = str(error).strip().split("\n")[0]
            raise CalibrationError(
                f"no tokenizer came with {name_or_path!r} to read the calibration text with ({first}). Give "
                "QllmConfig(tokenizer=...), or token ids as calibration."
            ) from None
    return read_calibration(config.calibration, tokenizer, samples=config.samples, seqlen=config.seqlen)


def check_fits(model: Any, calibration: Calibration) -> None:
    """Raises CalibrationError if a model cannot read the tokens: another vocabulary, or blocks that are too long."""
    ids, vocabulary = calibration.ids, model.get_input_embeddings().weight.shape[0]
    if int(ids.max()) >= vocabulary or int(ids.min()) < 0:
        raise CalibrationError(
            f"calibration tokens go up to {int(ids.max())}, and the model knows {vocabulary}: they were made with the "
            "tokenizer of another model."
        )
    longest = getattr(model.config, "max_position_embeddings", None)
    if isinstance(longest, int) and ids.shape[1] > longest:
        raise CalibrationError(
            f"blocks of {ids.shape[1]} tokens, and the model reads {longest}. Give seqlen={longest} or less."
        )
