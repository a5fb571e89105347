"""Carrying out a push plan: one commit, or one pull request, that is there whole or not at all.

Large files are sent first; a file that is complete on the Hub is never sent again, neither in a second attempt nor by
the next run of the command. The commit names the one that the plan was compared with, so a change in between is
noticed. If the answer to a commit is lost, the Hub is asked whether it has it, before it is sent again.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from .hub import ATTEMPTS, FIRST_WAIT, changed_meanwhile, explained, may_pass, retried
from .plan import PushPlan
from .problems import PublishError
from .remote import is_same, read_files, read_remote


@dataclass(frozen=True)
class Pushed:
    """What a push has made.

    Attributes:
        commit: its hash; "" if nothing had to be sent.
        url: of the pull request, the commit, or the repository.
        was_there: the Hub had it already.
    """

    commit: str
    url: str
    was_there: bool = False


def push(api: Any, plan: PushPlan, *, private: bool | None = None) -> Pushed:
    """Send what the plan says.

    Args:
        private: of a repository that is made.

    Raises:
        PublishError: the Hub refused, somebody else pushed, or the connection broke for good.
    """
    home = f"{api.endpoint}/{plan.repo}"
    if plan.is_empty:
        return Pushed("", home, was_there=True)
    if plan.creates_repo:
        plan = _create(api, plan, private)
    elif plan.opens_pull_request and (found := _open_request(api, plan)):
        return found
    with explained("what you push", plan.repo):
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete

        additions = []
        for file in plan.to_send:
            assert file.content is not None
            content = file.content if isinstance(file.content, bytes) else str(file.content)
            additions.append(CommitOperationAdd(file.path, content))
        options = {"revision": plan.revision, "create_pr": plan.opens_pull_request}
        # the client asks the Hub first which files it has; it tries again by itself, but not after every failure
        retried(api.preupload_lfs_files, plan.repo, additions, free_memory=False, **options)
        deletions = [CommitOperationDelete(file.path, is_folder=False) for file in plan.deleted]
        return _commit(api, plan, [*additions, *deletions], options)


def _create(api: Any, plan: PushPlan, private: bool | None) -> PushPlan:
    with explained("a new repository", plan.repo):
        retried(api.create_repo, plan.repo, private=private, exist_ok=True)
    remote = read_remote(api, plan.repo, plan.revision)
    if remote is not None and not remote.is_empty:  # somebody made it since the plan was, and was faster
        raise PublishError(changed_meanwhile(plan.repo))
    return replace(plan, parent="" if remote is None else remote.commit, creates_repo=False)


def _commit(api: Any, plan: PushPlan, operations: list[Any], options: dict[str, Any]) -> Pushed:
    for attempt in range(1, ATTEMPTS + 1):
        try:
            made = api.create_commit(
                plan.repo, operations, commit_message=plan.message, parent_commit=plan.parent or None, **options
            )
            return Pushed(str(made.oid), str(made.pr_url or made.commit_url))
        except Exception as error:
            if not may_pass(error):
                raise
            if found := _arrived(api, plan):
                return found
            if attempt == ATTEMPTS:
                raise
            time.sleep(FIRST_WAIT * 2 ** (attempt - 1))
    raise AssertionError


def _arrived(api: Any, plan: PushPlan) -> Pushed | None:
    """The commit whose answer was lost, if the Hub has it."""
    if plan.opens_pull_request:
        return _open_request(api, plan)
    remote = read_remote(api, plan.repo, plan.revision)
    if remote is None or remote.commit == plan.parent or not _holds(plan, remote.files):
        return None
    return Pushed(remote.commit, f"{api.endpoint}/{plan.repo}/commit/{remote.commit}", was_there=True)


def _open_request(api: Any, plan: PushPlan) -> Pushed | None:
    """An open pull request that holds just this, so that a second run does not open a second one."""
    with explained("pull requests", plan.repo):
        requests = retried(lambda: list(api.get_repo_discussions(plan.repo, discussion_type="pull_request",
                                                                 discussion_status="open")))  # fmt: skip
        for request in requests:
            if request.title != plan.message:
                continue
            revision = f"refs/pr/{request.num}"
            if _holds(plan, read_files(api, plan.repo, revision)):
                commit = str(retried(api.model_info, plan.repo, revision=revision).sha)
                return Pushed(commit, f"{api.endpoint}/{plan.repo}/discussions/{request.num}", was_there=True)
    return None


def _holds(plan: PushPlan, files: dict[str, Any] | Any) -> bool:
    """Whether files on the Hub are those of the plan."""
    sent = all(file.path in files and is_same(_known(file.content), files[file.path]) for file in plan.to_send)
    return sent and not any(file.path in files for file in plan.deleted)


def _known(content: Path | bytes | None) -> Path | bytes:
    assert content is not None
    return content
