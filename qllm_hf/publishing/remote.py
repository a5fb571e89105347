"""What is on the Hub before a push: one commit with its files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha1
from pathlib import Path
from typing import Any

from ..files import read_text as read_file
from .files import Content
from .hub import explained, retried
from .problems import PublishError
from .quantized import sha256_of

GIT_ATTRIBUTES = ".gitattributes"


@dataclass(frozen=True)
class RemoteFile:
    """A file on the Hub: bytes, its git hash, and the SHA-256 of its content where that is in large file storage."""

    size: int
    blob: str
    sha256: str | None


@dataclass(frozen=True)
class Remote:
    """A commit of a repository.

    Attributes:
        commit: 40 hexadecimal digits.
        files: {path: file}.
    """

    commit: str
    files: Mapping[str, RemoteFile]

    @property
    def is_empty(self) -> bool:
        """Whether nothing was put there yet: a new repository has one file of git's."""
        return not self.files.keys() - {GIT_ATTRIBUTES}


def read_remote(api: Any, repo: str, revision: str) -> Remote | None:
    """A branch as it is now; None if there is no such repository.

    Raises:
        PublishError: the Hub does not tell, or there is no such branch.
    """
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    with explained("the repository", repo):
        try:
            commit = str(retried(api.model_info, repo, revision=revision).sha)
        except GatedRepoError:
            raise
        except RepositoryNotFoundError:
            return None
        return Remote(commit, read_files(api, repo, commit))


def read_files(api: Any, repo: str, revision: str) -> dict[str, RemoteFile]:
    """{path: file} of a commit or branch."""
    entries = retried(lambda: list(api.list_repo_tree(repo, recursive=True, revision=revision)))
    return {
        entry.path: RemoteFile(int(entry.size), str(entry.blob_id), entry.lfs.sha256 if entry.lfs else None)
        for entry in entries
        if hasattr(entry, "blob_id")
    }


def read_text(api: Any, repo: str, revision: str, path: str) -> str:
    """A text file of a commit."""
    with explained(path, repo):
        return read_file(Path(retried(api.hf_hub_download, repo, path, revision=revision)), error=PublishError)


def is_same(content: Content, remote: RemoteFile) -> bool:
    """Whether a file on the Hub has this content."""
    if size_of(content) != remote.size:
        return False
    if remote.sha256 is not None:
        return remote.sha256 == (sha256_of(content) if isinstance(content, Path) else _sha256(content))
    data = content.read_bytes() if isinstance(content, Path) else content
    return sha1(b"blob %d\x00" % len(data) + data).hexdigest() == remote.blob


def size_of(content: Content) -> int:
    """Bytes."""
    return content.stat().st_size if isinstance(content, Path) else len(content)


def _sha256(content: bytes) -> str:
    from hashlib import sha256

    return sha256(content).hexdigest()
