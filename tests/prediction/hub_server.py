"""A stand-in for the Hugging Face hub on this machine, which answers the requests of huggingface_hub."""

import base64
import hashlib
import http.server
import json
import threading
from contextlib import contextmanager
from urllib.parse import unquote, urlparse

TOKEN = "hf_of_a_test"


class Hub:
    """Repositories by name, each a list of commits: files by path.

    ``asked`` are the methods and paths of all requests.
    """

    def __init__(self):
        self.repositories = {}
        self.private = {}
        self.objects = {}  # of LFS, by their SHA-256
        self.asked = []

    def files(self, name):
        return self.repositories[name][-1]

    @staticmethod
    def commit_id(number):
        return hashlib.sha1(str(number).encode()).hexdigest()

    def at(self, name, revision):
        """Files and commit of a revision."""
        commits = self.repositories[name]
        ids = [self.commit_id(number) for number in range(len(commits))]
        number = ids.index(revision) if revision in ids else len(commits) - 1
        return commits[number], ids[number]


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    @property
    def hub(self):
        return self.server.hub

    def log_message(self, *args):
        pass

    def answer(self, status, content=b"", **headers):
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        headers.setdefault("Content-Length", str(len(body)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def body(self):
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def handle_request(self):
        path = unquote(urlparse(self.path).path)
        self.hub.asked.append(f"{self.command} {path}")
        body = self.body()
        parts = path.strip("/").split("/")
        if self.command != "PUT" and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self.answer(401, {"error": "Invalid username or password."})
        if path == "/api/repos/create":
            return self.create(json.loads(body))
        if path == "/api/validate-yaml":
            return self.answer(200, {"errors": [], "warnings": []})
        if self.command == "PUT":
            self.hub.objects[parts[-1]] = body
            return self.answer(200)
        if parts[-1] == "batch":
            return self.lfs(json.loads(body))
        name = "/".join(parts[2:4] if parts[0] == "api" else parts[:2])
        if name not in self.hub.repositories:
            return self.answer(404, {"error": "Repository not found"}, X_Error_Code="RepoNotFound")
        if parts[:2] == ["api", "models"]:
            return self.api(name, parts[4] if len(parts) > 4 else "", parts[5:], body)
        if parts[2] == "resolve":
            return self.resolve(name, parts[3], "/".join(parts[4:]))
        return self.answer(404)

    do_GET = do_HEAD = do_POST = do_PUT = handle_request

    def create(self, wanted):
        name = f"{wanted['organization']}/{wanted['name']}"
        if wanted["organization"] != "me":
            return self.answer(403, {"error": "You don't have the rights to create a model there"})
        if name in self.hub.repositories:
            return self.answer(409, {"error": "exists", "url": f"{self.server.url}/{name}"})
        self.hub.repositories[name] = [{".gitattributes": b"*.safetensors filter=lfs\n"}]
        self.hub.private[name] = wanted.get("visibility") == "private" or bool(wanted.get("private"))
        return self.answer(200, {"url": f"{self.server.url}/{name}", "name": name, "id": name})

    def lfs(self, wanted):
        objects = [
            {**each, "actions": {"upload": {"href": f"{self.server.url}/lfs/{each['oid']}"}}}
            for each in wanted["objects"]
        ]
        return self.answer(200, {"transfer": "basic", "objects": objects})

    def api(self, name, kind, rest, body):
        files, commit = self.hub.at(name, rest[0] if rest else "main")
        if kind in ("", "revision"):
            siblings = [{"rfilename": path} for path in files]
            return self.answer(200, {"id": name, "modelId": name, "sha": commit, "siblings": siblings})
        if kind == "tree":
            tree = [
                {"type": "file", "path": path, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                for path, data in files.items()
            ]
            return self.answer(200, tree)
        if kind == "preupload":
            uploads = [
                {
                    "path": each["path"],
                    "uploadMode": "lfs" if each["path"].endswith(".safetensors") else "regular",
                    "shouldIgnore": False,
                }
                for each in json.loads(body)["files"]
            ]
            return self.answer(200, {"files": uploads})
        if kind == "commit":
            return self.commit(name, [json.loads(line) for line in body.splitlines()])
        return self.answer(404)

    def commit(self, name, lines):
        files = dict(self.hub.files(name))
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.hub.objects[value["oid"]]
        self.hub.repositories[name].append(files)
        commit = self.hub.commit_id(len(self.hub.repositories[name]) - 1)
        return self.answer(
            200,
            {"success": True, "commitOid": commit, "commitUrl": f"{self.server.url}/{name}/commit/{commit}"},
        )

    def resolve(self, name, revision, path):
        files, commit = self.hub.at(name, revision)
        if path not in files:
            return self.answer(404, {"error": "Entry not found"}, X_Error_Code="EntryNotFound")
        data = files[path]
        return self.answer(200, data, ETag=f'"{hashlib.sha256(data).hexdigest()}"', X_Repo_Commit=commit)


@contextmanager
def hub_server():
    """Serves an empty hub; gives its URL and the hub."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.url, server.hub = f"http://127.0.0.1:{server.server_port}", Hub()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield server.url, server.hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
