"""What a judge is told: four prompts, with or without a reference answer, about the first turn or the second."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Final, NamedTuple

from ...errors import ConfigError
from ...files import read_text
from ...shown import is_cut, short_text
from .judge import Messages

_FIRST: Final = ("question", "answer")
_BOTH: Final = ("question_1", "answer_1", "question_2", "answer_2")
FIELDS: Final[dict[str, tuple[str, ...]]] = {
    "single-v1": _FIRST,
    "single-math-v1": (*_FIRST, "ref_answer_1"),
    "single-v1-multi-turn": _BOTH,
    "single-math-v1-multi-turn": (*_BOTH, "ref_answer_1", "ref_answer_2"),
}
"""{name of a prompt: what is filled in}. The names are those of the study's file."""

_JUDGED: Final = {name: "answer_2" if name.endswith("-multi-turn") else "answer" for name in FIELDS}
_FIELD: Final = re.compile(
    r"\{(" + "|".join(dict.fromkeys(field for fields in FIELDS.values() for field in fields)) + r")\}"
)


class JudgePrompt(NamedTuple):
    """One prompt: the system message, and the user message with {fields} to be filled in."""

    system: str
    template: str


@dataclass(frozen=True)
class JudgePrompts:
    """The prompts of one judge, by the names in `FIELDS`."""

    prompts: Mapping[str, JudgePrompt]

    @cached_property
    def digest(self) -> str:
        """12 hexadecimal digits that change with any character of the prompts: ratings are comparable within one."""
        text = json.dumps({name: list(self.prompts[name]) for name in FIELDS})
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def messages(self, name: str, values: Mapping[str, str]) -> Messages:
        """The conversation to put before a judge.

        Fields are replaced in one pass, so an answer that itself contains "{answer}" or any other brace stays as it
        is, and so do braces in the template that are no field.
        """
        system, template = self.prompts[name]
        filled = _FIELD.sub(lambda field: values[field[1]], template)
        asked = [{"role": "user", "content": filled}]
        return [{"role": "system", "content": system}, *asked] if system.strip() else asked


def read_prompts(path: str | Path) -> JudgePrompts:
    """The prompts in a JSONL file: one object a line, with `name`, `system_prompt` and `prompt_template`.

    Lines of other names, such as those that compare two answers, are not read.

    Raises:
        ConfigError: the file cannot be read, lacks one of the four prompts, or a prompt has a field that is not known
            in its place, or does not show the answer that it is to judge.
    """
    try:
        lines = read_text(Path(path), error=ConfigError).split("\n")
        rows = [json.loads(line) for line in lines if line.strip()]
        found = {
            row["name"]: JudgePrompt(row["system_prompt"], row["prompt_template"]) for row in rows if _is_ours(row)
        }
    except ConfigError as error:
        raise ConfigError(f"judge prompts: {error}") from None
    except OSError as error:
        raise ConfigError(f"judge prompts {str(path)!r} cannot be read: {error.strerror or error}.") from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ConfigError(
            f"judge prompts {str(path)!r} are no JSON lines with name, system_prompt and prompt_template: "
            f"{short_text(str(error))}."
        ) from error
    missing = [name for name in FIELDS if name not in found]
    if missing:
        raise ConfigError(
            f"judge prompts {str(path)!r} lack {', '.join(missing)}. A file needs all of: {', '.join(FIELDS)}."
        )
    for name, prompt in found.items():
        _check(name, prompt, path)
    return JudgePrompts(found)


def _is_ours(row: object) -> bool:
    return isinstance(row, dict) and row.get("name") in FIELDS


def _check(name: str, prompt: JudgePrompt, path: str | Path) -> None:
    if not all(isinstance(part, str) and not is_cut(part) for part in prompt):
        raise ConfigError(f"judge prompts {str(path)!r}: {name} holds something else than text.")
    used, known = set(_FIELD.findall(prompt.template)), FIELDS[name]
    allowed = ", ".join(f"{{{field}}}" for field in known)
    if unknown := sorted(used - set(known)):
        raise ConfigError(
            f"judge prompts {str(path)!r}: {name} has {{{unknown[0]}}}, which it is not given. Allowed: {allowed}."
        )
    if _JUDGED[name] not in used:
        raise ConfigError(
            f"judge prompts {str(path)!r}: {name} does not show {{{_JUDGED[name]}}}, the answer it is to judge. "
            f"Allowed: {allowed}."
        )


_ROLE: Final = (
    "You grade what chat assistants write. Be strict and fair: neither length nor a polite tone earns points, and an "
    "answer that is empty, cut off or repeats itself loses them."
)
_GENERAL: Final = (
    "Look at whether the answer does what was asked, whether what it says is true, how well it covers the matter, and "
    "how well it is written."
)
_REFERENCE: Final = (
    "A correct solution is given for comparison. Check the answer against it step by step and name each mistake. "
    "Another way to the same result is as good."
)
_SECOND: Final = (
    "Two turns of a conversation follow. Grade the answer to the second question only; the first is context."
)
_FORMAT: Final = (
    "First say in two or three sentences what is good and what is bad. Then end with one line that holds nothing but "
    "a grade from 1 (useless) to 10 (could not be better), in double square brackets, such as: Rating: [[4]]"
)
_CONVERSATION: Final = (
    "<first question>\n{question_1}\n</first question>\n\n<first answer>\n{answer_1}\n</first answer>\n\n"
    "<second question>\n{question_2}\n</second question>\n\n<second answer>\n{answer_2}\n</second answer>"
)

DEFAULT_PROMPTS: Final = JudgePrompts(
    {
        "single-v1": JudgePrompt(
            f"{_ROLE} {_GENERAL}\n\n{_FORMAT}",
            "<question>\n{question}\n</question>\n\n<answer>\n{answer}\n</answer>",
        ),
        "single-math-v1": JudgePrompt(
            f"{_ROLE} {_REFERENCE}\n\n{_FORMAT}",
            "<question>\n{question}\n</question>\n\n<solution>\n{ref_answer_1}\n</solution>\n\n"
            "<answer>\n{answer}\n</answer>",
        ),
        "single-v1-multi-turn": JudgePrompt(f"{_ROLE} {_GENERAL} {_SECOND}\n\n{_FORMAT}", _CONVERSATION),
        "single-math-v1-multi-turn": JudgePrompt(
            f"{_ROLE} {_REFERENCE} {_SECOND}\n\n{_FORMAT}",
            "<solution of the first question>\n{ref_answer_1}\n</solution of the first question>\n\n"
            "<solution of the second question>\n{ref_answer_2}\n</solution of the second question>\n\n" + _CONVERSATION,
        ),
    }
)
"""For whoever has no file: the same four situations, in this package's words. Its ratings and those of the study's
prompts are not comparable."""
