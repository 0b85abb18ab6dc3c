"""The HTTP side of the Hub: routes, authorisation and ranges.

Paths, fields and headers are those that huggingface_hub 2.4 sends and reads, with large files by Git LFS (HF_HUB_DISABLE_XET=1).
"""

from __future__ import annotations

import base64
import json
import re
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from .faults import Cut, Faults, Flipped, Race, Shorter, Slow, Status
from .store import LFS, Blob, Commit, Repo, Store

TOKEN = "hf_of_the_tests"
NAME = r"(?P<repo>[^/]+/[^/]+)"
PIECE = 1 << 20


class Refused(Exception):
    """An error reply."""

    def __init__(self, code: int, error: str = "", message: str = "", commit: str = "") -> None:
        self.code, self.error, self.message, self.commit = code, error, message, commit


class Server(ThreadingHTTPServer):
    """Listens on a free port of the loopback device."""

    daemon_threads = True

    def __init__(self, store: Store, faults: Faults) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.store, self.faults = store, faults
        self.requests: list[str] = []
        """`METHOD path` of everything that was asked, in order."""

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that are killed close their connections."""


class Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: `Server.requests` is the log."""

    def do_GET(self) -> None:
        self._answer("GET")

    def do_HEAD(self) -> None:
        self._answer("HEAD")

    def do_POST(self) -> None:
        self._answer("POST")

    def do_PUT(self) -> None:
        self._answer("PUT")

    def do_DELETE(self) -> None:
        self._answer("DELETE")

    def _answer(self, method: str) -> None:
        address = urlsplit(self.path)
        self.query = {key: values[0] for key, values in parse_qs(address.query).items()}
        path = address.path
        self.server.requests.append(f"{method} {path}")
        self.fault = self.server.faults.take(method, path)
        try:
            if isinstance(self.fault, Status):
                raise Refused(self.fault.code, self.fault.headers.get("X-Error-Code", ""), "as the test asks")
            for wanted, pattern, action in ROUTES:
                if wanted == ("GET" if method == "HEAD" else method) and (match := re.fullmatch(pattern, path)):
                    action(self, **{key: unquote(value) for key, value in match.groupdict().items() if value is not None})
                    return
            raise Refused(404, "", f"no route {method} {path}")
        except Refused as refused:
            self._refuse(refused)
        except ConnectionError:
            self.close_connection = True

    def _refuse(self, refused: Refused) -> None:
        headers = {"X-Error-Code": refused.error, "X-Error-Message": refused.message, "X-Repo-Commit": refused.commit}
        if isinstance(self.fault, Status):
            headers |= self.fault.headers
        self.close_connection = True
        self._send(refused.code, json.dumps({"error": refused.message}).encode(), {k: v for k, v in headers.items() if v})

    def _send(self, code: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(code)
        for name, value in {"Content-Length": str(len(body)), "Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(name, value)
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _json(self, data: Any, headers: dict[str, str] | None = None) -> None:
        self._send(200, json.dumps(data).encode(), headers)

    def _body(self) -> bytes:
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            return b"".join(iter(self._chunk, b""))
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _chunk(self) -> bytes:
        size = int(self.rfile.readline().split(b";")[0], 16)
        data = self.rfile.read(size)
        self.rfile.readline()
        return data

    def _known(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def _writer(self) -> None:
        if not self._known():
            raise Refused(401, "", "Invalid username or password.")

    def _repo(self, repo: str) -> Repo:
        found = self.server.store.repos.get(repo)
        if found is None or (found.private and not self._known()):
            raise Refused(404 if self._known() else 401, "RepoNotFound", "Repository not found")
        return found

    def _commit(self, repo: Repo, revision: str) -> Commit:
        if (commit := repo.commit(revision)) is None:
            raise Refused(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return commit

    def harness(self) -> None:
        raise Refused(404)

    def whoami(self) -> None:
        self._writer()
        self._json({"name": "tester", "type": "user", "orgs": [], "auth": {"accessToken": {"role": "write"}}})

    def create(self) -> None:
        self._writer()
        asked = json.loads(self._body())
        name = f"{asked.get('organization') or 'tester'}/{asked['name']}"
        url = {"url": f"{self.server.endpoint}/{name}"}
        with self.server.store.lock:
            if name in self.server.store.repos:
                self._send(409, json.dumps(url | {"error": "You already created this model repo"}).encode())
                return
            self.server.store.create(name, private=asked.get("visibility") == "private" or bool(asked.get("private")))
        self._json(url)

    def info(self, repo: str, revision: str = "main") -> None:
        found = self._repo(repo)
        commit = self._commit(found, revision)
        siblings = [{"rfilename": path, "size": b.size, "blobId": b.sha1, **_lfs(b)} for path, b in commit.files.items()]
        self._json(
            {
                "id": repo,
                "sha": commit.id,
                "private": found.private,
                "siblings": siblings,
                "tags": [],
                "downloads": 0,
                "likes": 0,
                **self._card(commit),
            }
        )

    def _card(self, commit: Commit) -> dict[str, Any]:
        """The header of a README, as the real Hub reads it."""
        if (blob := commit.files.get("README.md")) is None:
            return {}
        text = self.server.store.path(blob.sha256).read_text()
        found = re.match(r"---\n(.*?)\n---", text, re.DOTALL)
        pairs = [line.partition(": ") for line in found[1].splitlines() if re.match(r"\w+: \S", line)] if found else []
        return {"cardData": {key: value for key, _, value in pairs}}

    def tree(self, repo: str, revision: str, path: str = "") -> None:
        found = self._repo(repo)
        commit = self._commit(found, revision)
        files = {name: blob for name, blob in commit.files.items() if not path or name.startswith(f"{path}/")}
        rows = [{"type": "file", "path": name, "size": b.size, "oid": b.sha1, **_lfs(b)} for name, b in files.items()]
        self._json(rows, {"X-Repo-Commit": commit.id})

    def paths_info(self, repo: str, revision: str) -> None:
        asked = parse_qs(self._body().decode()).get("paths", [])
        commit = self._commit(self._repo(repo), revision)
        held = [(name, commit.files[name]) for name in asked if name in commit.files]
        self._json([{"type": "file", "path": name, "size": b.size, "oid": b.sha1, **_lfs(b)} for name, b in held])

    def models(self) -> None:
        words = self.query.get("search", "").lower()
        shown = [r for r in self.server.store.walk() if words in r.id.lower() and (not r.private or self._known())]
        rows = [{"id": r.id, "private": r.private, "downloads": 7, "likes": 3, "tags": ["safetensors"]} for r in shown]
        self._json(rows[: int(self.query.get("limit", 1000))])

    def refs(self, repo: str) -> None:
        found = self._repo(repo)
        branches = [{"name": n, "ref": f"refs/heads/{n}", "targetCommit": c} for n, c in found.branches.items()]
        tags = [{"name": n, "ref": f"refs/tags/{n}", "targetCommit": c} for n, c in found.tags.items()]
        self._json({"branches": branches, "tags": tags, "converts": []})

    def branch(self, repo: str, name: str) -> None:
        self._writer()
        found, start = self._repo(repo), json.loads(self._body() or b"{}").get("startingPoint") or "main"
        if name in found.branches:
            raise Refused(409, "", "Reference already exists")
        found.branches[name] = self._commit(found, start).id
        self._json({})

    def tag(self, repo: str, revision: str) -> None:
        self._writer()
        found = self._repo(repo)
        found.tags[json.loads(self._body())["tag"]] = self._commit(found, revision).id
        self._json({})

    def validate(self) -> None:
        self._body()
        self._json({"errors": [], "warnings": []})

    def preupload(self, repo: str, revision: str) -> None:
        self._writer()
        found = self._repo(repo)
        held = self._commit(found, revision).files
        rows = []
        for asked in json.loads(self._body())["files"]:
            row = {"path": asked["path"], "uploadMode": "lfs" if asked["path"].endswith(LFS) else "regular", "shouldIgnore": False}
            if asked["path"] in held:
                row["oid"] = held[asked["path"]].etag
            rows.append(row)
        self._json({"files": rows})

    def batch(self, repo: str) -> None:
        self._writer()
        self._repo(repo)
        rows = []
        for asked in json.loads(self._body())["objects"]:
            row = {"oid": asked["oid"], "size": asked["size"]}
            if not self.server.store.path(asked["oid"]).exists():
                row["actions"] = {"upload": {"href": f"{self.server.endpoint}/lfs/{asked['oid']}"}}
            rows.append(row)
        self._json({"transfer": "basic", "objects": rows})

    def upload(self, oid: str) -> None:
        size = int(self.headers["Content-Length"])
        if isinstance(self.fault, Cut):
            self.rfile.read(min(self.fault.after, size))
            raise ConnectionError
        if isinstance(self.fault, Slow):
            time.sleep(self.fault.pause)
        blob = self.server.store.keep(self.rfile, size, lfs=True)
        if blob.sha256 != oid:
            self.server.store.path(blob.sha256).unlink()
            raise Refused(400, "", "the content has another checksum")
        self._json({})

    def commit(self, repo: str, revision: str) -> None:
        self._writer()
        found = self._repo(repo)
        lines = [json.loads(line) for line in self._body().splitlines()]
        with self.server.store.lock:
            if isinstance(self.fault, Race):
                found.add(revision, {**self._commit(found, revision).files}, "someone else's")
            head = self._commit(found, revision)
            told = lines[0]["value"]
            if told.get("parentCommit") and told["parentCommit"] != head.id:
                raise Refused(412, "", "The repository was updated since")
            files = dict(head.files)
            for line in lines[1:]:
                self._apply(files, line["key"], line["value"])
            branch, url = revision, None
            if self.query.get("create_pr"):
                branch = f"refs/pr/{len(found.requests) + 1}"
                found.requests[branch] = head.id
                url = f"{self.server.endpoint}/{repo}/discussions/{len(found.requests)}"
            made = found.add(branch, files, told["summary"])
        self._json({"commitUrl": f"{self.server.endpoint}/{repo}/commit/{made.id}", "commitOid": made.id, "pullRequestUrl": url})

    def _apply(self, files: dict[str, Blob], key: str, value: dict[str, Any]) -> None:
        import io

        match key:
            case "file":
                data = base64.b64decode(value["content"])
                files[value["path"]] = self.server.store.keep(io.BytesIO(data), len(data), lfs=False)
            case "lfsFile":
                if not self.server.store.path(value["oid"]).exists():
                    raise Refused(400, "", f"{value['path']} was not uploaded")
                files[value["path"]] = Blob(value["oid"], value["oid"][:40], value["size"], lfs=True)
            case "deletedFile":
                files.pop(value["path"], None)
            case _:
                raise Refused(400, "", f"unknown operation {key}")

    def resolve(self, repo: str, revision: str, path: str) -> None:
        commit = self._commit(self._repo(repo), revision)
        if (blob := commit.files.get(path)) is None:
            raise Refused(404, "EntryNotFound", "Entry not found", commit.id)
        self._file(blob, commit.id)

    def _file(self, blob: Blob, commit: str) -> None:
        start, stop, code = 0, blob.size, 200
        if asked := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            start, stop, code = int(asked[1]), min(int(asked[2] or blob.size - 1) + 1, blob.size), 206
            if start >= blob.size:
                raise Refused(416)
        data = self.server.store.path(blob.sha256).read_bytes()[start:stop]
        if isinstance(self.fault, Shorter):
            data = data[: -self.fault.by]
        if isinstance(self.fault, Flipped):
            data = bytes([data[0] ^ 1]) + data[1:]
        self.send_response(code)
        told = {"X-Repo-Commit": commit, "ETag": f'"{blob.etag}"', "Content-Length": str(len(data)), "Accept-Ranges": "bytes"}
        if blob.lfs:
            told |= {"X-Linked-Etag": f'"{blob.etag}"', "X-Linked-Size": str(blob.size)}
        if code == 206:
            told["Content-Range"] = f"bytes {start}-{stop - 1}/{blob.size}"
        for name, value in told.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self._stream(data)

    def _stream(self, data: bytes) -> None:
        if isinstance(self.fault, Cut):
            self.wfile.write(data[: self.fault.after])
            raise ConnectionError
        piece = self.fault.piece if isinstance(self.fault, Slow) else PIECE
        for start in range(0, len(data), piece):
            if isinstance(self.fault, Slow):
                time.sleep(self.fault.pause)
            self.wfile.write(data[start : start + piece])


def _lfs(blob: Blob) -> dict[str, Any]:
    return {"lfs": {"oid": blob.sha256, "sha256": blob.sha256, "size": blob.size, "pointerSize": 134}} if blob.lfs else {}


API, REV = rf"/api/models/{NAME}", r"(?P<revision>[^/]+)"
ROUTES: list[tuple[str, str, Callable[..., None]]] = [
    ("GET", "/api/agent-harnesses", Handler.harness),
    ("GET", "/api/whoami-v2", Handler.whoami),
    ("GET", "/api/models", Handler.models),
    ("POST", "/api/repos/create", Handler.create),
    ("POST", "/api/validate-yaml", Handler.validate),
    ("GET", f"{API}/refs", Handler.refs),
    ("GET", f"{API}/revision/{REV}", Handler.info),
    ("GET", f"{API}/tree/{REV}(?:/(?P<path>.+))?", Handler.tree),
    ("GET", API, Handler.info),
    ("POST", f"{API}/paths-info/{REV}", Handler.paths_info),
    ("POST", f"{API}/preupload/{REV}", Handler.preupload),
    ("POST", f"{API}/commit/{REV}", Handler.commit),
    ("POST", f"{API}/branch/(?P<name>[^/]+)", Handler.branch),
    ("POST", f"{API}/tag/{REV}", Handler.tag),
    ("POST", rf"/{NAME}\.git/info/lfs/objects/batch", Handler.batch),
    ("PUT", "/lfs/(?P<oid>[0-9a-f]{64})", Handler.upload),
    ("GET", rf"/{NAME}/resolve/{REV}/(?P<path>.+)", Handler.resolve),
]
