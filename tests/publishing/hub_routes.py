"""What the local Hub answers, as a table of addresses; see `hub_server`."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from email.message import Message
from hashlib import sha256
from typing import Any
from urllib.parse import unquote

from publishing.hub_store import MAIN, Commit, Entry, Repository, Request, Store

LARGEST_REGULAR = 10 * 1024 * 1024
REPO = r"(?P<repo>[\w.-]+/[\w.-]+)"
REVISION = r"(?P<revision>[^/]+)"
DATE = "2026-01-01T00:00:00.000Z"


@dataclass(frozen=True)
class Answer:
    """An HTTP answer."""

    status: int
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def json(cls, value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Answer:
        return cls(status, json.dumps(value).encode(), {"Content-Type": "application/json", **(headers or {})})

    @classmethod
    def error(cls, status: int, message: str, headers: Mapping[str, str]) -> Answer:
        named = {"X-Error-Message": message} if message else {}
        return cls.json({"error": message}, status, {**named, **headers})


class Refused(Exception):
    """The Hub says no; `code` is what its clients know the reason by."""

    def __init__(self, status: int, message: str, code: str = "") -> None:
        super().__init__(message)
        self.status, self.message = status, message
        self.headers = {"X-Error-Code": code} if code else {}


@dataclass(frozen=True)
class Asked:
    """A request."""

    store: Store
    url: str
    user: str | None
    query: Mapping[str, str]
    headers: Message
    body: bytes
    parts: Mapping[str, str]

    @property
    def storage(self) -> str:
        """Where large files are: under another name, as the Hub's are on another host that gets no token."""
        return self.url.replace("127.0.0.1", "localhost")

    @property
    def json(self) -> Any:
        return json.loads(self.body or b"{}")

    @property
    def repository(self) -> Repository:
        """The one that is asked for, if the user may see it."""
        found = self.store.repositories.get(self.parts["repo"])
        if found is None or (found.private and self.user not in found.writers):
            raise Refused(404 if self.user else 401, "Repository not found", "RepoNotFound")
        return found

    @property
    def oid(self) -> str:
        """The commit that is asked for."""
        revision = unquote(self.parts.get("revision") or MAIN)
        found = self.repository.resolve(revision)
        if found is None:
            raise Refused(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return found

    @property
    def commit(self) -> Commit:
        return self.repository.commits[self.oid]

    def check_writer(self) -> None:
        if self.user is None:
            raise Refused(401, "Invalid username or password.")
        if self.user not in self.repository.writers:
            raise Refused(403, f"you have no write access to {self.parts['repo']}")


def answer_to(
    store: Store, url: str, user: str | None, method: str, path: str, query: Mapping[str, str], headers: Message,
    body: bytes,
) -> Answer:  # fmt: skip
    """The answer to a request.

    Raises:
        Refused: the Hub says no.
    """
    for methods, pattern, route in ROUTES:
        if method in methods.split() and (match := re.fullmatch(pattern, path)):
            return route(Asked(store, url, user, query, headers, body, match.groupdict()))
    raise Refused(404, f"the local Hub does not know {method} {path}")


def who(asked: Asked) -> Answer:
    if asked.user is None:
        raise Refused(401, "Invalid username or password.")
    return Answer.json({"name": asked.user, "type": "user", "orgs": [], "auth": {"type": "access_token"}})


def create(asked: Asked) -> Answer:
    wanted = asked.json
    if asked.user is None:
        raise Refused(401, "Invalid username or password.")
    owner = wanted.get("organization") or asked.user
    name = f"{owner}/{wanted['name']}"
    if name in asked.store.repositories:
        return Answer.json({"error": "You already created this model repo", "url": f"{asked.url}/{name}"}, 409)
    if owner != asked.user:
        raise Refused(403, f"you do not have the rights to create a model under the namespace {owner}")
    private = wanted.get("visibility") == "private" or bool(wanted.get("private"))
    asked.store.create(name, asked.user, private=private)
    return Answer.json({"url": f"{asked.url}/{name}", "name": name, "id": name})


def info(asked: Asked) -> Answer:
    repository = asked.repository
    return Answer.json(
        {
            "_id": "1",
            "id": repository.id,
            "modelId": repository.id,
            "sha": asked.oid,
            "private": repository.private,
            "gated": "manual" if repository.gated else False,
            "disabled": False,
            "downloads": 0,
            "likes": 0,
            "tags": [],
            "siblings": [{"rfilename": path} for path in sorted(asked.commit.files)],
            "lastModified": DATE,
            "createdAt": DATE,
        }
    )


def tree(asked: Asked) -> Answer:
    below = unquote(asked.parts.get("folder") or "").strip("/")
    start = f"{below}/" if below else ""
    files = {path: entry for path, entry in asked.commit.files.items() if path.startswith(start)}
    if below and not files:
        raise Refused(404, f"{below} does not exist on {asked.parts['revision']}", "EntryNotFound")
    deep = asked.query.get("recursive", "").lower() in ("1", "true")
    found: dict[str, dict[str, Any]] = {}
    for path, entry in sorted(files.items()):
        first, slash, _ = path.removeprefix(start).partition("/")
        if slash and not deep:
            found[start + first] = {"type": "directory", "path": start + first, "oid": "0" * 40, "size": 0}
        else:
            found[path] = _described(path, entry)
    return Answer.json(list(found.values()))


def paths_info(asked: Asked) -> Answer:
    from urllib.parse import parse_qs

    given = asked.headers.get("Content-Type", "")
    wanted = asked.json["paths"] if "json" in given else parse_qs(asked.body.decode()).get("paths", [])
    files = asked.commit.files
    return Answer.json([_described(path, files[path]) for path in wanted if path in files])


def _described(path: str, entry: Entry) -> dict[str, Any]:
    found = {"type": "file", "path": path, "size": entry.size, "oid": entry.blob}
    if entry.lfs:
        found["lfs"] = {"oid": entry.lfs, "size": entry.size, "pointerSize": len(entry.in_git)}
    return found


def refs(asked: Asked) -> Answer:
    named = asked.repository.refs
    branches = [{"name": name, "ref": f"refs/heads/{name}", "targetCommit": oid} for name, oid in named.items()
                if not name.startswith("refs/")]  # fmt: skip
    requests = [{"name": name, "ref": name, "targetCommit": oid} for name, oid in named.items() if "/pr/" in name]
    return Answer.json({"branches": branches, "tags": [], "converts": [], "pullRequests": requests})


def discussions(asked: Asked) -> Answer:
    requests = [each for each in asked.repository.requests if each.status == asked.query.get("status", each.status)]
    listed = [
        {
            "num": each.number,
            "title": each.title,
            "status": each.status,
            "isPullRequest": True,
            "author": {"name": each.author},
            "createdAt": DATE,
            "repo": {"name": asked.parts["repo"], "type": "model"},
        }
        for each in requests
    ]
    return Answer.json({"discussions": listed, "count": len(listed), "start": 0})


def validate_yaml(asked: Asked) -> Answer:
    """Like the Hub: errors for a block that it cannot read, and for a licence that is no word."""
    import yaml

    content = asked.json["content"]
    match = re.match(r"\A---\n(.*?)\n---", content, re.S)
    problems = []
    try:
        front = yaml.safe_load(match[1]) if match else {}
        if not isinstance(front.get("license", ""), str):
            problems.append({"message": '"license" must be a string'})
    except yaml.YAMLError as error:
        problems.append({"message": str(error)})
    return Answer.json({"errors": problems, "warnings": []}, 400 if problems else 200)


def preupload(asked: Asked) -> Answer:
    if asked.query.get("create_pr") != "1":
        asked.check_writer()
    elif asked.user is None:
        raise Refused(401, "Invalid username or password.")
    there = asked.commit.files
    answers = []
    for file in asked.json["files"]:
        is_large = file["path"].endswith(".safetensors") or file["size"] > LARGEST_REGULAR
        known = there.get(file["path"])
        oid = None if known is None else known.lfs or known.blob
        mode = "lfs" if is_large else "regular"
        answers.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid})
    return Answer.json({"files": answers})


def lfs_batch(asked: Asked) -> Answer:
    if asked.user is None:
        raise Refused(401, "Invalid username or password.")
    objects = []
    for wanted in asked.json["objects"]:
        entry = {"oid": wanted["oid"], "size": wanted["size"]}
        if wanted["oid"] not in asked.store.objects:
            entry["actions"] = {
                "upload": {"href": f"{asked.storage}/storage/{wanted['oid']}"},
                "verify": {"href": f"{asked.url}/{asked.parts['repo']}.git/info/lfs/objects/verify"},
            }
        objects.append(entry)
    return Answer.json({"transfer": "basic", "objects": objects})


def lfs_put(asked: Asked) -> Answer:
    if sha256(asked.body).hexdigest() != asked.parts["oid"]:
        raise Refused(400, "the content does not have this hash")
    asked.store.objects[asked.parts["oid"]] = asked.body
    return Answer(200)


def lfs_verify(asked: Asked) -> Answer:
    stored = asked.store.objects.get(asked.json["oid"])
    if stored is None or len(stored) != asked.json["size"]:
        raise Refused(404, "the object was not uploaded")
    return Answer.json({})


def storage(asked: Asked) -> Answer:
    """A large file, whole or a range of it, as a content network delivers it."""
    data = asked.store.objects[asked.parts["oid"]]
    return _ranged(asked, data, {"ETag": f'"{asked.parts["oid"]}"'})


def commit(asked: Asked) -> Answer:
    opens = asked.query.get("create_pr") == "1"
    if not opens:
        asked.check_writer()
    elif asked.user is None:
        raise Refused(401, "Invalid username or password.")
    lines = [json.loads(line) for line in asked.body.splitlines() if line.strip()]
    header = lines[0]["value"]
    repository, revision, parent = asked.repository, unquote(asked.parts["revision"]), header.get("parentCommit")
    if parent and not opens and repository.refs.get(revision) != parent:
        raise Refused(412, "A commit has happened since. Please refresh and try again.")
    changes = dict(_change(asked, line["key"], line["value"]) for line in lines[1:])
    onto = parent if parent in repository.commits else asked.oid
    ref, url = revision, None
    if opens:
        number = len(repository.requests) + 1
        repository.requests.append(Request(number, header["summary"], asked.user or ""))
        ref, url = f"refs/pr/{number}", f"{asked.url}/{repository.id}/discussions/{number}"
    oid = repository.commit(changes, header["summary"], onto, ref)
    return Answer.json(
        {
            "success": True,
            "commitOid": oid,
            "commitUrl": f"{asked.url}/{repository.id}/commit/{oid}",
            "hookOutput": "",
            **({"pullRequestUrl": url} if url else {}),
        }
    )


def _change(asked: Asked, kind: str, value: Mapping[str, Any]) -> tuple[str, Entry | None]:
    if kind == "file":
        return value["path"], Entry(base64.b64decode(value["content"]))
    if kind == "lfsFile":
        stored = asked.store.objects.get(value["oid"])
        if stored is None:
            raise Refused(400, f"{value['path']} points to an object that was not uploaded")
        return value["path"], Entry(lfs=value["oid"], lfs_size=len(stored))
    if kind == "deletedFile":
        if value["path"] not in asked.commit.files:
            raise Refused(404, "A file with this name doesn't exist", "EntryNotFound")
        return value["path"], None
    raise Refused(400, f"the local Hub does not know the operation {kind}")


def resolve(asked: Asked) -> Answer:
    if asked.repository.gated:
        message = f"Access to model {asked.parts['repo']} is restricted. Visit its page to ask for access."
        raise Refused(403 if asked.user else 401, message, "GatedRepo")
    path = unquote(asked.parts["path"])
    entry = asked.commit.files.get(path)
    headers = {"X-Repo-Commit": asked.oid}
    if entry is None:
        refused = Refused(404, "Entry not found", "EntryNotFound")
        refused.headers = {**refused.headers, **headers}
        raise refused
    if entry.lfs:
        headers |= {
            "X-Linked-ETag": f'"{entry.lfs}"',
            "X-Linked-Size": str(entry.size),
            "ETag": f'"{entry.blob}"',
            "Location": f"{asked.storage}/storage/{entry.lfs}",
        }
        return Answer(302, b"", headers)
    return _ranged(asked, entry.data, {**headers, "ETag": f'"{entry.blob}"'})


def _ranged(asked: Asked, data: bytes, headers: Mapping[str, str]) -> Answer:
    plain = {**headers, "Accept-Ranges": "bytes", "Content-Type": "application/octet-stream"}
    wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", asked.headers.get("Range", ""))
    if wanted is None:
        return Answer(200, data, plain)
    first, last = int(wanted[1]), int(wanted[2] or len(data) - 1)
    if first >= len(data):
        raise Refused(416, "the range is outside of the file")
    part = data[first : last + 1]
    return Answer(206, part, {**plain, "Content-Range": f"bytes {first}-{first + len(part) - 1}/{len(data)}"})


ROUTES: tuple[tuple[str, str, Callable[[Asked], Answer]], ...] = (
    ("GET", r"/api/whoami-v2", who),
    ("POST", r"/api/repos/create", create),
    ("POST", r"/api/validate-yaml", validate_yaml),
    ("GET", rf"/api/models/{REPO}", info),
    ("GET", rf"/api/models/{REPO}/revision/{REVISION}", info),
    ("GET", rf"/api/models/{REPO}/tree/{REVISION}(?P<folder>/.*)?", tree),
    ("GET", rf"/api/models/{REPO}/refs", refs),
    ("GET", rf"/api/models/{REPO}/discussions", discussions),
    ("POST", rf"/api/models/{REPO}/paths-info/{REVISION}", paths_info),
    ("POST", rf"/api/models/{REPO}/preupload/{REVISION}", preupload),
    ("POST", rf"/api/models/{REPO}/commit/{REVISION}", commit),
    ("POST", rf"/{REPO}\.git/info/lfs/objects/batch", lfs_batch),
    ("POST", rf"/{REPO}\.git/info/lfs/objects/verify", lfs_verify),
    ("PUT", r"/storage/(?P<oid>[0-9a-f]{64})", lfs_put),
    ("GET HEAD", r"/storage/(?P<oid>[0-9a-f]{64})", storage),
    ("GET HEAD", rf"/{REPO}/resolve/{REVISION}/(?P<path>.+)", resolve),
)
