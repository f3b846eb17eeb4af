"""A hub of one repository on the loopback interface, which notes down the files that it is asked for or given."""

import base64
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

COMMIT = "a" * 40
TOKEN = "hf_of_a_test"


class FakeHub:
    """Serves the folder `model` as the repository `repo`, a model or a data set, and takes what `TOKEN` commits."""

    def __init__(self, repo: str, model: Path, kind: str = "models"):
        self.repo, self.model, self.kind = repo, model, kind
        self.gated = False
        self.commit = COMMIT
        self.requested: list[str] = []  # files of the model, as often as they were asked for
        self.created: list[dict[str, object]] = []  # what was asked of it to create
        self.may_write = True
        self.address = ""

    @contextmanager
    def serving(self) -> Iterator["FakeHub"]:
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                status, headers, body = hub.answer(self.path.partition("?")[0])
                self.send_response(status)
                for name, value in (headers | {"Content-Length": str(len(body))}).items():
                    self.send_header(name, value)
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(body)

            do_HEAD = do_GET

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                status, answer = hub.take(self.path.partition("?")[0], self.headers.get("Authorization"), body)
                content = json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: object) -> None:
                pass

        with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
            self.address = f"http://127.0.0.1:{server.server_address[1]}"
            Thread(target=server.serve_forever, daemon=True).start()
            yield self
            server.shutdown()

    def answer(self, path: str) -> tuple[int, dict[str, str], bytes]:
        """The status, headers and body for a path of the hub's API or of a file."""
        listed = [str(file.relative_to(self.model)) for file in self.model.rglob("*") if file.is_file()]
        if self.gated:
            return 403, {"X-Error-Code": "GatedRepo"}, b""
        _, is_file, name = path.partition(f"/{self.repo}/resolve/")
        if is_file:
            name = name.partition("/")[2]
            self.requested.append(name)
            if name not in listed:
                return 404, {"X-Error-Code": "EntryNotFound"}, b""
            body = (self.model / name).read_bytes()
            digest = hashlib.sha1(body, usedforsecurity=False).hexdigest()
            return 200, {"ETag": f'"{digest}"', "X-Repo-Commit": self.commit}, body
        if not path.startswith(f"/api/{self.kind}/{self.repo}"):
            return 404, {"X-Error-Code": "RepoNotFound"}, b""
        found: object = {"id": self.repo, "sha": self.commit, "siblings": [{"rfilename": name} for name in listed]}
        if "/tree/" in path:
            sizes = {name: (self.model / name).stat().st_size for name in listed}
            found = [{"type": "file", "path": name, "size": size, "oid": "b" * 40} for name, size in sizes.items()]
        return 200, {"Content-Type": "application/json"}, json.dumps(found).encode()

    def take(self, path: str, authorization: str | None, body: bytes) -> tuple[int, object]:
        """The status and answer to what is sent: a repository to create, a card to look at, files to commit."""
        if authorization != f"Bearer {TOKEN}":
            return 401, {"error": "Invalid username or password."}
        if path == "/api/validate-yaml":
            return 200, {"errors": [], "warnings": []}
        if not self.may_write:
            return 403, {"error": "You don't have the rights to do that"}
        if path == "/api/repos/create":
            self.created.append(json.loads(body))
            return 200, {"url": f"{self.address}/{self.repo}"}
        if path == f"/api/models/{self.repo}/preupload/main":
            files = [
                {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                for file in json.loads(body)["files"]
            ]
            return 200, {"files": files}
        assert path == f"/api/models/{self.repo}/commit/main", path
        for line in map(json.loads, body.splitlines()):
            if line["key"] == "file":
                file = self.model / line["value"]["path"]
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(base64.b64decode(line["value"]["content"]))
        return 200, {"commitUrl": f"{self.address}/{self.repo}/commit/{self.commit}", "commitOid": self.commit}
