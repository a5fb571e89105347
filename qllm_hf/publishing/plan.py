"""What a push would do, before it does anything: files, bytes, the card's difference, and scores that would change."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from ..checkpoint import INDEX
from .benchmarks import FOLDER
from .files import Content, Package
from .frontmatter import CARD, check_front, read_card, write_card
from .frontmatter import INDEX as MODEL_INDEX
from .merge import merge_cards, section
from .model_index import ChangedResult, changed_results, index_of
from .problems import PublishError
from .quantized import Quantized
from .remote import Remote, is_same, read_text, size_of
from .sections import renamed

MAIN: Final = "main"
LARGEST_REGULAR: Final = 10 * 1024 * 1024
"""Bytes; the Hub keeps larger files in large file storage."""
State = Literal["new", "changed", "same", "deleted", "not compared"]
_REPO: Final = re.compile(r"\w[\w.-]*/\w[\w.-]*")
_WEIGHTS: Final = re.compile(r"model(-\d+-of-\d+)?\.safetensors|" + re.escape(INDEX))


@dataclass(frozen=True)
class PlannedFile:
    """A file of a push; `storage` is the Hub's choice, predicted for a new file."""

    path: str
    size: int
    storage: Literal["lfs", "regular"]
    state: State
    content: Content | None = field(repr=False, default=None)


@dataclass(frozen=True)
class PushPlan:
    """What a push would do.

    Attributes:
        repo, revision: where to.
        parent: the commit that it was compared with; "" if there is no repository, or nothing was compared.
        creates_repo: there is none yet.
        opens_pull_request: instead of a commit on the branch.
        files: all that belong there, and weights that go from there.
        left_out: files of the folder that stay.
        card_difference: unified diff of README.md.
        changed_results: scores on the Hub that would be replaced.
        notes: what the user should know.
        message: of the commit.
    """

    repo: str
    revision: str
    parent: str
    creates_repo: bool
    opens_pull_request: bool
    files: tuple[PlannedFile, ...]
    left_out: tuple[str, ...]
    card_difference: str
    changed_results: tuple[ChangedResult, ...]
    notes: tuple[str, ...]
    message: str

    @property
    def to_send(self) -> tuple[PlannedFile, ...]:
        """The files whose content is not there yet."""
        return tuple(file for file in self.files if file.state in ("new", "changed", "not compared"))

    @property
    def deleted(self) -> tuple[PlannedFile, ...]:
        """Weights that would be left over and be read instead of the new ones."""
        return tuple(file for file in self.files if file.state == "deleted")

    @property
    def bytes_to_send(self) -> int:
        """At most: what an earlier push that broke has sent already is not sent again."""
        return sum(file.size for file in self.to_send)

    @property
    def is_empty(self) -> bool:
        """Whether all of it is there already."""
        return not self.to_send and not self.deleted

    def check_results(self) -> None:
        """Raises PublishError if a score on the Hub would be replaced."""
        if self.changed_results:
            changes = "; ".join(map(str, self.changed_results))
            raise PublishError(
                f"{self.repo} has other results: {changes}. If the new ones are right, say --overwrite-results."
            )

    def to_dict(self) -> dict[str, Any]:
        """The same as JSON holds it, without the contents."""
        return {
            "repo": self.repo,
            "revision": self.revision,
            "parent": self.parent or None,
            "creates_repo": self.creates_repo,
            "opens_pull_request": self.opens_pull_request,
            "files": [
                {"path": file.path, "size": file.size, "storage": file.storage, "state": file.state}
                for file in self.files
            ],
            "bytes_to_send": self.bytes_to_send,
            "left_out": list(self.left_out),
            "card_difference": self.card_difference,
            "changed_results": [
                {"task": each.task, "there": each.there, "here": each.here or None} for each in self.changed_results
            ],
            "notes": list(self.notes),
        }


def make_push_plan(
    api: Any, model: Quantized, package: Package, remote: Remote | None, *, repo: str, revision: str = MAIN,
    direct: bool = False, compared: bool = True,
) -> PushPlan:  # fmt: skip
    """The plan of a push.

    A new or empty repository is filled directly: a pull request on nothing has nobody to review it against.

    Args:
        remote: what is there; None if there is no repository.
        direct: commit on the branch itself.
        compared: False if the Hub was not asked.

    Raises:
        PublishError: the names are none, or the card that is there cannot be read.
    """
    check_repo(repo)
    if remote is None and compared and revision != MAIN:
        raise PublishError(f"there is no {repo} yet, so it has no branch {revision!r}. Push without --revision first.")
    name = repo.rpartition("/")[2]
    there = read_text(api, repo, remote.commit, CARD) if remote is not None and CARD in remote.files else None
    text, changed, notes = _card(_text(package.contents[CARD]), there, repo, name, model.digest)
    contents = {**package.contents, CARD: text.encode("utf-8")}
    files = [_planned(path, content, remote, compared) for path, content in sorted(contents.items())]
    if remote is not None:
        changed += _changed_leaderboard(api, repo, remote, files)
        files += [
            PlannedFile(path, file.size, "lfs" if file.sha256 else "regular", "deleted")
            for path, file in sorted(remote.files.items())
            if _WEIGHTS.fullmatch(path) and path not in contents
        ]
    before, after = (there or "").splitlines(keepends=True), text.splitlines(keepends=True)
    difference = difflib.unified_diff(before, after, f"{CARD} on the Hub", f"{CARD} here") if compared else ()
    return PushPlan(
        repo=repo,
        revision=revision,
        parent="" if remote is None else remote.commit,
        creates_repo=remote is None and compared,
        opens_pull_request=not direct and remote is not None and not remote.is_empty,
        files=tuple(files),
        left_out=package.left_out,
        card_difference="".join(difference),
        changed_results=changed,
        notes=(*package.notes, *notes),
        message=f"{model.scheme} weights and card, made with qllm_hf",
    )


def check_repo(repo: str) -> None:
    """Raises PublishError if this can be no id of a repository."""
    if not _REPO.fullmatch(repo) or ".." in repo:
        raise PublishError(f"{repo!r} is no id on the Hub. Give owner/name, such as my-name/my-model-w4kv8.")


def _card(
    ours: str, there: str | None, repo: str, name: str, weights: str
) -> tuple[str, tuple[ChangedResult, ...], tuple[str, ...]]:
    """README.md as it will be, the scores that change, and remarks."""
    card = read_card(renamed(ours, repo))
    for model in index_of(card.front) or []:
        model["name"] = name
    if there is None:
        check_front(card.front)
        return write_card(card), (), ()
    remote = read_card(there, f"{CARD} of {repo}")
    merged = merge_cards(remote, card, weights, name)
    check_front(merged.front)
    outside = card.text.replace(section(card.text), "").strip()
    notes: tuple[str, ...] = ()
    if outside and outside not in remote.text:
        notes = (
            "text outside of the markers differs: that of the Hub stays. To replace it, edit it there, or delete the "
            "card there first.",
        )
    return write_card(merged), changed_results(index_of(remote.front), merged.front.get(MODEL_INDEX), weights), notes


def _planned(path: str, content: Content, remote: Remote | None, compared: bool) -> PlannedFile:
    size, found = size_of(content), None if remote is None else remote.files.get(path)
    if found is not None:
        state: State = "same" if is_same(content, found) else "changed"
        return PlannedFile(path, size, "lfs" if found.sha256 else "regular", state, content)
    is_large = path.endswith(".safetensors") or size > LARGEST_REGULAR
    return PlannedFile(path, size, "lfs" if is_large else "regular", "new" if compared else "not compared", content)


def _changed_leaderboard(api: Any, repo: str, remote: Remote, files: list[PlannedFile]) -> tuple[ChangedResult, ...]:
    """Scores of `.eval_results` that have another value on the Hub."""
    changed = []
    for file in files:
        if file.state == "changed" and file.path.startswith(f"{FOLDER}/") and file.content is not None:
            there = _values(read_text(api, repo, remote.commit, file.path))
            here = _values(_text(file.content))
            for key, value in here.items():
                if key in there and there[key] != value:
                    changed.append(ChangedResult(f"{file.path} ({key})", str(there[key]), str(value)))
    return tuple(changed)


def _values(text: str) -> Mapping[str, Any]:
    import yaml  # type: ignore[import-untyped]

    try:
        entries = yaml.safe_load(text) or []
        return {f"{each['dataset']['id']}, {each['dataset']['task_id']}": each["value"] for each in entries}
    except (yaml.YAMLError, KeyError, TypeError, ValueError, RecursionError):
        return {}


def _text(content: Content) -> str:
    return content.decode("utf-8") if isinstance(content, bytes) else content.read_text(encoding="utf-8")
