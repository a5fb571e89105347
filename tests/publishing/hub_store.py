"""What the local Hub keeps: repositories as git sees them, and large files by their SHA-256."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from hashlib import sha1, sha256

MAIN = "main"
GIT_ATTRIBUTES = ".gitattributes"
DEFAULT_ATTRIBUTES = b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n"


@dataclass(frozen=True)
class Entry:
    """A file of a commit: its bytes in git, or of a large file its SHA-256 and size."""

    data: bytes = b""
    lfs: str | None = None
    lfs_size: int = 0

    @property
    def size(self) -> int:
        return self.lfs_size if self.lfs else len(self.data)

    @property
    def in_git(self) -> bytes:
        """What git stores: the file, or a pointer."""
        if self.lfs is None:
            return self.data
        return f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.lfs}\nsize {self.lfs_size}\n".encode()

    @property
    def blob(self) -> str:
        data = self.in_git
        return sha1(b"blob %d\x00" % len(data) + data).hexdigest()


@dataclass(frozen=True)
class Commit:
    """A tree of files, and the commit before it."""

    files: dict[str, Entry]
    parent: str | None
    title: str

    @property
    def oid(self) -> str:
        tree = sorted((path, entry.blob) for path, entry in self.files.items())
        return sha1(json.dumps([tree, self.parent, self.title]).encode()).hexdigest()


@dataclass
class Request:
    """A pull request."""

    number: int
    title: str
    author: str
    status: str = "open"


@dataclass
class Repository:
    """Branches and commits. `gated` files are for nobody, `writers` are the users that may push."""

    id: str
    private: bool = False
    gated: bool = False
    writers: set[str] = field(default_factory=set)
    commits: dict[str, Commit] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    requests: list[Request] = field(default_factory=list)

    def resolve(self, revision: str) -> str | None:
        """The commit that a branch, a pull request or a hash means."""
        return self.refs.get(revision) or (revision if revision in self.commits else None)

    def commit(self, changes: dict[str, Entry | None], title: str, onto: str | None, ref: str) -> str:
        """A new commit on top of another one, and the name that now means it."""
        files = dict(self.commits[onto].files) if onto else {}
        for path, entry in changes.items():
            if entry is None:
                files.pop(path, None)
            else:
                files[path] = entry
        made = Commit(files, onto, title)
        self.commits[made.oid] = made
        self.refs[ref] = made.oid
        return made.oid


class Store:
    """All repositories, and the storage of large files."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.objects: dict[str, bytes] = {}

    def create(self, name: str, owner: str, *, private: bool = False, gated: bool = False) -> Repository:
        """A repository as the Hub makes one: with a file of git's."""
        repository = Repository(name, private, gated, {owner})
        repository.commit({GIT_ATTRIBUTES: Entry(DEFAULT_ATTRIBUTES)}, "initial commit", None, MAIN)
        self.repositories[name] = repository
        return repository

    def put(self, name: str, files: dict[str, bytes | None], title: str = "a change") -> str:
        """A commit that somebody else makes, past all checks; None deletes a file."""
        repository = self.repositories[name]
        changes: dict[str, Entry | None] = {}
        for path, data in files.items():
            if data is not None and path.endswith(".safetensors"):
                oid = sha256(data).hexdigest()
                self.objects[oid] = data
                changes[path] = Entry(lfs=oid, lfs_size=len(data))
            else:
                changes[path] = None if data is None else Entry(data)
        return repository.commit(changes, title, repository.refs[MAIN], MAIN)

    def read(self, name: str, path: str, revision: str = MAIN) -> bytes:
        """The content of a file."""
        repository = self.repositories[name]
        entry = repository.commits[repository.resolve(revision) or ""].files[path]
        return self.objects[entry.lfs] if entry.lfs else entry.data

    def paths(self, name: str, revision: str = MAIN) -> set[str]:
        """The files of a commit."""
        repository = self.repositories[name]
        return set(repository.commits[repository.resolve(revision) or ""].files)
