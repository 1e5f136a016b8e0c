"""A small Hub on loopback, for the real `huggingface_hub` client: repositories, commits, LFS, branches, private ones."""

import base64
import contextlib
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

import huggingface_hub
import yaml
from huggingface_hub import constants


TOKEN = "hf_loopback"
USER = "me"


class LoopbackHub:
    """
    Serves on 127.0.0.1 at a free port while in use as a context manager.

    Attributes:
        endpoint (`str`): For `HF_ENDPOINT`.
        requests (`list[str]`): Method and path of every request.
    """

    def __init__(self):
        self.repos: dict[str, dict] = {}  # name -> {"private": bool, "branches": {name: sha}}
        self.commits: dict[str, dict[str, bytes]] = {}  # sha -> {path: content}
        self.messages: dict[str, str] = {}  # sha -> commit message
        self.large: dict[str, bytes] = {}  # LFS objects by their SHA-256
        self.requests: list[str] = []
        hub = self

        class Handler(_Handler):
            pass

        Handler.hub = hub
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.endpoint = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self):
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *error):
        self._server.shutdown()
        self._server.server_close()

    def create(self, name: str, private: bool = False) -> None:
        self.repos[name] = {"private": private, "branches": {}}
        self.commit(name, {}, "initial commit")

    def commit(self, name: str, files: dict[str, bytes], message: str = "a commit", branch: str = "main") -> str:
        """Add files to a branch, as someone else might have."""
        branches = self.repos[name]["branches"]
        tree = {**self.commits.get(branches.get(branch), {}), **files}
        digest = hashlib.sha1(f"{name} {len(self.commits)} {message}".encode()).hexdigest()
        self.commits[digest], self.messages[digest], branches[branch] = tree, message, digest
        return digest

    def put(self, name: str, **files: str | bytes) -> str:
        """Make a repository, with files whose names have `__` for a dot."""
        if name not in self.repos:
            self.create(name)
        contents = {
            file.replace("__", "."): content.encode() if isinstance(content, str) else content
            for file, content in files.items()
        }
        return self.commit(name, contents)

    def files(self, name: str, branch: str = "main") -> dict[str, bytes]:
        return self.commits[self.repos[name]["branches"][branch]]


def connect(hub: LoopbackHub, monkeypatch, cache: str) -> None:
    """Connect the client of this process, which read the environment variables when it was imported."""
    monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", cache)
    monkeypatch.setattr(huggingface_hub.hf_api.api, "endpoint", hub.endpoint)
    monkeypatch.setattr("transformers.utils.hub._hf_api", None, raising=False)  # keeps the endpoint of its first use
    monkeypatch.setenv("HF_TOKEN", TOKEN)


class _Refused(Exception):
    def __init__(self, status: int, message: str, code: str | None = None):
        self.status, self.message, self.code = status, message, code


class _Handler(BaseHTTPRequestHandler):
    hub: LoopbackHub
    protocol_version = "HTTP/1.1"

    # Routes: method, pattern of the path, name of what answers.
    routes = [
        ("POST", r"/api/repos/create", "create_repo"),
        ("POST", r"/api/validate-yaml", "validate_yaml"),
        ("GET", r"/api/whoami-v2", "whoami"),
        ("GET", r"/api/models/([^/]+/[^/]+)(?:/revision/([^/]+))?", "model_info"),
        ("POST", r"/api/models/([^/]+/[^/]+)/preupload/([^/]+)", "preupload"),
        ("POST", r"/api/models/([^/]+/[^/]+)/commit/([^/]+)", "create_commit"),
        ("POST", r"/api/models/([^/]+/[^/]+)/branch/([^/]+)", "create_branch"),
        ("POST", r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch", "lfs_batch"),
        ("PUT", r"/lfs/([0-9a-f]+)", "lfs_upload"),
        ("HEAD", r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", "resolve"),
        ("GET", r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", "resolve"),
    ]

    def handle_one_request(self):
        with contextlib.suppress(ConnectionError):
            super().handle_one_request()

    def answer(self):
        path = urlsplit(self.path).path
        self.hub.requests.append(f"{self.command} {path}")
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Transfer-Encoding") == "chunked":
            self.body = self._chunks()
        try:
            for method, pattern, name in self.routes:
                match = re.fullmatch(pattern, path)
                if method == self.command and match:
                    return getattr(self, name)(*(unquote(part) if part else part for part in match.groups()))
            raise _Refused(501, f"the loopback Hub has no {self.command} {path}")
        except _Refused as refused:
            headers = {"X-Error-Message": refused.message}
            if refused.code:
                headers["X-Error-Code"] = refused.code
            self.send({"error": refused.message}, refused.status, headers)

    do_GET = do_HEAD = do_POST = do_PUT = answer

    def _chunks(self) -> bytes:
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def send(self, content, status: int = 200, headers: dict[str, str] | None = None):
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *arguments):
        pass

    # ------------------------------------------------------------------------------------------------ answers

    def _authorized(self) -> bool:
        token = self.headers.get("Authorization")
        if token is not None and token != f"Bearer {TOKEN}":
            raise _Refused(401, "Invalid credentials in Authorization header")
        return token is not None

    def _repo(self, name: str, write: bool = False) -> dict:
        repo, authorized = self.hub.repos.get(name), self._authorized()
        if repo is None or (repo["private"] and not authorized):  # as the Hub, which does not say which
            raise _Refused(404 if authorized else 401, "Repository not found", "RepoNotFound")
        if write and not authorized:
            raise _Refused(401, "Unauthorized")
        return repo

    def _sha(self, repo: dict, revision: str | None) -> str:
        revision = revision or "main"
        sha = repo["branches"].get(revision, revision)
        if sha not in self.hub.commits:
            raise _Refused(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return sha

    def create_repo(self):
        if not self._authorized():
            raise _Refused(401, "Unauthorized")
        asked = json.loads(self.body)
        name = f"{asked.get('organization') or USER}/{asked['name']}"
        known = name in self.hub.repos
        if not known:
            self.hub.create(name, bool(asked.get("private") or asked.get("visibility") == "private"))
        content = {"url": f"{self.hub.endpoint}/{name}", "name": name, "id": name}
        if known:
            content["error"] = "You already created this model repo"
        self.send(content, 409 if known else 200)

    def validate_yaml(self):
        match = re.match(r"---\n(.*?)\n---\n", json.loads(self.body)["content"], re.DOTALL)
        try:
            data = yaml.safe_load(match[1]) if match else None
        except yaml.YAMLError as error:
            return self.send({"errors": [{"message": str(error)}], "warnings": []}, 400)
        warnings = [] if isinstance(data, dict) else [{"message": "empty or missing yaml metadata in repo card"}]
        self.send({"errors": [], "warnings": warnings})

    def whoami(self):
        if not self._authorized():
            raise _Refused(401, "Unauthorized")
        self.send({"type": "user", "name": USER, "orgs": []})

    def model_info(self, name, revision):
        repo = self._repo(name)
        sha = self._sha(repo, revision)
        siblings = [{"rfilename": path} for path in self.hub.commits[sha]]
        self.send(
            {"id": name, "modelId": name, "sha": sha, "private": repo["private"], "siblings": siblings, "tags": []}
        )

    def preupload(self, name, revision):
        repo = self._repo(name, write=True)
        tree = self.hub.commits[self._sha(repo, revision)]
        files = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["path"].endswith((".npz", ".safetensors", ".bin")) else "regular",
                "shouldIgnore": False,
                "oid": _git_oid(tree[file["path"]]) if file["path"] in tree else None,
            }
            for file in json.loads(self.body)["files"]
        ]
        self.send({"files": files})

    def lfs_batch(self, name):
        self._repo(name, write=True)
        objects = []
        for asked in json.loads(self.body)["objects"]:
            upload = {"href": f"{self.hub.endpoint}/lfs/{asked['oid']}", "header": {}}
            objects.append({**asked, "authenticated": True, "actions": {"upload": upload}})
        self.send({"transfer": "basic", "objects": objects})

    def lfs_upload(self, oid):
        if hashlib.sha256(self.body).hexdigest() != oid:
            raise _Refused(400, "the content is not that of the SHA-256")
        self.hub.large[oid] = self.body
        self.send(b"")

    def create_commit(self, name, revision):
        repo = self._repo(name, write=True)
        self._sha(repo, revision)
        lines = [json.loads(line) for line in self.body.splitlines() if line]
        message, files = lines[0]["value"]["summary"], {}
        for line in lines[1:]:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.hub.large[value["oid"]]
            else:
                raise _Refused(501, f"the loopback Hub can't commit a {line['key']}")
        query = urlsplit(self.path).query
        branch = "refs/pr/1" if "create_pr=1" in query else revision
        if branch != revision:
            repo["branches"][branch] = repo["branches"][revision]
        sha = self.hub.commit(name, files, message, branch)
        url = f"{self.hub.endpoint}/{name}"
        pull_request = f"{url}/discussions/1" if branch != revision else None
        self.send({"commitUrl": f"{url}/commit/{sha}", "commitOid": sha, "pullRequestUrl": pull_request})

    def create_branch(self, name, branch):
        repo = self._repo(name, write=True)
        if branch.startswith("refs"):
            raise _Refused(403, "Only the Hub makes these")
        if branch in repo["branches"]:
            raise _Refused(409, "Reference already exists")
        repo["branches"][branch] = repo["branches"]["main"]
        self.send({})

    def resolve(self, name, revision, path):
        sha = self._sha(self._repo(name), revision)
        tree = self.hub.commits[sha]
        if path not in tree:
            raise _Refused(404, "Entry not found", "EntryNotFound")
        etag = f'"{hashlib.sha256(tree[path]).hexdigest()}"'
        self.send(tree[path], headers={"ETag": etag, "X-Repo-Commit": sha, "Content-Type": "application/octet-stream"})


def _git_oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
