"""A few lines of the Hugging Face hub on 127.0.0.1, so that its real client can be used where there is no hub.

Repositories are dictionaries of path -> bytes at one commit. Served are what huggingface_hub and datasets ask for: the
information on a repository, its tree, and its files with their digests and byte ranges; and what an upload asks for.
"""

import base64
import hashlib
import json
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

LARGE_SUFFIXES = (".parquet", ".safetensors", ".bin")


@dataclass
class Repository:
    """One repository at one commit."""

    commit: str
    files: Mapping[str, bytes]
    gated: bool = False


@dataclass
class FakeHub:
    """The server, its repositories by (`models` or `datasets`, id), and what it was asked for."""

    repositories: dict[tuple[str, str], Repository] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    tokens: set[str] = field(default_factory=set)
    cut_after: int | None = None
    """Break off the body of every large file after this many bytes."""
    private: dict[str, bool] = field(default_factory=dict)
    """Repositories that were asked for, and whether only their owner is to see them."""
    claimed: dict[str, int] = field(default_factory=dict)
    """Sizes to claim for files, by path, in place of their own."""

    def __enter__(self) -> "FakeHub":
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()

    @property
    def endpoint(self) -> str:
        """What HF_ENDPOINT is to be."""
        return f"http://127.0.0.1:{self.server.server_address[1]}"

    def add(self, kind: str, name: str, commit: str, files: Mapping[str, bytes], gated: bool = False) -> None:
        """Put a repository up."""
        self.repositories[kind, name] = Repository(commit, files, gated)


class _Handler(BaseHTTPRequestHandler):
    hub: FakeHub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_POST(self) -> None:
        path = unquote(urlsplit(self.path).path).strip("/")
        body = self.rfile.read(int(self.headers["Content-Length"])) if "Content-Length" in self.headers else self._chunks()
        self.hub.requests.append(f"POST {path}")
        if path == "api/validate-yaml":
            return self._json({"errors": [], "warnings": []})
        if not path.startswith(("api/repos/create", "api/models/")):
            return self._refuse(404, "EntryNotFound", "not served here")
        if self._token() not in self.hub.tokens:
            return self._refuse(401, "Unauthorized", "a token that may write is needed")
        if path == "api/repos/create":
            asked = json.loads(body)
            name = "/".join(filter(None, [asked.get("organization"), asked["name"]]))
            self.hub.private[name] = asked.get("visibility") == "private" or bool(asked.get("private"))
            self.hub.repositories.setdefault(("models", name), Repository("0" * 40, {}))
            return self._json({"url": f"{self.hub.endpoint}/{name}", "id": name})
        name, _, verb = path.removeprefix("api/models/").rpartition("/main")[0].rpartition("/")
        if verb == "preupload":
            files = [{"path": each["path"], "uploadMode": "regular", "shouldIgnore": False} for each in json.loads(body)["files"]]
            return self._json({"files": files})
        entries = [json.loads(line) for line in body.splitlines()]
        sent = {each["value"]["path"]: base64.b64decode(each["value"]["content"]) for each in entries if each["key"] == "file"}
        commit = hashlib.sha1(body).hexdigest()
        known = self.hub.repositories["models", name].files
        self.hub.repositories["models", name] = Repository(commit, {**known, **sent})
        self._json({"commitOid": commit, "commitUrl": f"{self.hub.endpoint}/{name}/commit/{commit}", "pullRequestUrl": None})

    def _chunks(self) -> bytes:
        """Read a body that is sent in chunks, each after its length."""
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path).strip("/")
        self.hub.requests.append(f"{self.command} {path}")
        api = path.startswith("api/")
        parts = path.removeprefix("api/").split("/")
        kind = parts.pop(0) if parts[0] in ("models", "datasets") else "models"
        name, rest = "/".join(parts[:2]), parts[2:]
        repository = self.hub.repositories.get((kind, name))
        if repository is None:
            return self._refuse(401, "RepoNotFound", "Repository not found")
        if repository.gated and not api and self._token() not in self.hub.tokens:
            return self._refuse(403, "GatedRepo", "Access to this repository is restricted")
        verb, revision, inner = (*rest[:2], "/".join(rest[2:])) if len(rest) > 1 else ("revision", "main", "")
        if revision not in ("main", repository.commit):
            return self._refuse(404, "RevisionNotFound", f"no revision {revision}")
        if verb == "revision":
            return self._json(
                {
                    "id": name,
                    "sha": repository.commit,
                    "siblings": [{"rfilename": path, "size": len(content)} for path, content in repository.files.items()],
                }
            )
        if verb == "tree":
            return self._tree(repository, inner)
        return self._file(repository, inner)

    def _token(self) -> str:
        return self.headers.get("Authorization", "").removeprefix("Bearer ")

    def _tree(self, repository: Repository, folder: str) -> None:
        under = f"{folder}/" if folder else ""
        inside = {path: content for path, content in repository.files.items() if path.startswith(under)}
        if not inside:
            return self._refuse(404, "EntryNotFound", f"no folder {folder}")
        if "recursive=true" in self.path.lower():
            return self._json([self._entry(path, content) for path, content in inside.items()])
        folders = {under + path.removeprefix(under).split("/")[0] for path in inside} - set(inside)
        self._json(
            [{"type": "directory", "path": path, "oid": "0" * 40, "size": 0} for path in sorted(folders)]
            + [self._entry(path, content) for path, content in inside.items() if "/" not in path.removeprefix(under)]
        )

    def _file(self, repository: Repository, path: str) -> None:
        if path not in repository.files:
            return self._refuse(404, "EntryNotFound", f"no file {path}", commit=repository.commit)
        content = repository.files[path]
        start = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").split("-")[0])
        end = self.headers.get("Range", "bytes=0-").split("-")[1]
        body = content[start : int(end) + 1] if end else content[start:]
        self.send_response(206 if "Range" in self.headers else 200)
        self.send_header("Content-Length", str(len(body)))
        if "Range" in self.headers:
            self.send_header("Content-Range", f"bytes {start}-{start + len(body) - 1}/{len(content)}")
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("ETag", f'"{_etag(path, content)}"')
        self.send_header("X-Repo-Commit", repository.commit)
        if path in self.hub.claimed:
            self.send_header("X-Linked-Size", str(self.hub.claimed[path]))
        self.end_headers()
        if self.command == "GET":
            cut = self.hub.cut_after if path.endswith(LARGE_SUFFIXES) else None
            self.wfile.write(body if cut is None else body[:cut])
            self.close_connection = cut is not None

    def _entry(self, path: str, content: bytes) -> dict[str, Any]:
        size = self.hub.claimed.get(path, len(content))
        entry = {"type": "file", "path": path, "size": size, "oid": _etag(path, content)}
        if path.endswith(LARGE_SUFFIXES):
            entry |= {"oid": "0" * 40, "lfs": {"oid": _etag(path, content), "size": size, "pointerSize": 130}}
        return entry

    def _json(self, value: Any) -> None:
        body = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _refuse(self, status: int, code: str, message: str, commit: str | None = None) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("X-Error-Message", message)
        if commit:
            self.send_header("X-Repo-Commit", commit)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        pass


def _etag(path: str, content: bytes) -> str:
    """The digest that the hub gives a file: SHA-256 where it is large, git's own where it is not."""
    if path.endswith(LARGE_SUFFIXES):
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
