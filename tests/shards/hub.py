"""The endpoints of the Hugging Face Hub that its client uses to push and read a dataset."""

from __future__ import annotations

import base64
import hashlib
import http.server
import json
import re
import threading
from typing import Any
from urllib.parse import unquote


class Hub:
    """One Hub with an empty account; used as a context manager, `endpoint` is its address.

    repositories: name -> branch -> commits, each a dict of files; objects: the large files by
    their sha256; leaked: requests that brought the token to the host of large files.
    """

    def __init__(self) -> None:
        self.repositories: dict[str, dict[str, list[dict[str, bytes]]]] = {}
        self.objects: dict[str, bytes] = {}
        self.uploads, self.leaked = 0, 0
        handler = type("Handler", (_Handler,), {"hub": self})
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"
        self.large_files = f"http://localhost:{self._server.server_port}/large"

    def __enter__(self) -> Hub:
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def commit(self, repository: str, revision: str) -> tuple[str, dict[str, bytes]] | None:
        """Return the name and the files of a branch's last commit, or of a commit by its name."""
        for branch, commits in self.repositories.get(repository, {}).items():
            for number in range(len(commits) - 1, -1, -1):
                text = f"{repository}/{branch}/{number}"
                name = hashlib.sha1(text.encode()).hexdigest()
                if revision == name or (revision == branch and number == len(commits) - 1):
                    return name, commits[number]
        return None


class _Handler(http.server.BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        return

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _send(self, status: int, data: object, **headers: str) -> None:
        body = data if isinstance(data, bytes) else json.dumps(data).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        hub, path = self.hub, unquote(self.path.partition("?")[0])
        if found := re.fullmatch(r"/large/(\w+)", path):
            hub.leaked += "Authorization" in self.headers
            return self._send(200, hub.objects[found[1]])
        if found := re.fullmatch(r"/api/datasets/(\w+/[\w-]+)(?:/revision/(\w+))?", path):
            commit = hub.commit(found[1], found[2] or "main")
            if commit is None:
                known = found[1] in hub.repositories
                return self._send(
                    404, {}, X_Error_Code="RevisionNotFound" if known else "RepoNotFound"
                )
            return self._send(200, {"id": found[1], "sha": commit[0], "siblings": []})
        found = re.fullmatch(r"/datasets/(\w+/[\w-]+)/resolve/(\w+)/(.+)", path)
        commit = hub.commit(found[1], found[2]) if found else None
        if found is None or commit is None or found[3] not in commit[1]:
            return self._send(404, {}, X_Error_Code="EntryNotFound")
        data = commit[1][found[3]]
        if data.startswith(b"lfs:"):
            return self._send(302, b"", Location=f"{hub.large_files}/{data[4:].decode()}")
        return self._send(200, data)

    def do_PUT(self) -> None:
        data = self._body()
        self.hub.uploads += 1
        self.hub.objects[hashlib.sha256(data).hexdigest()] = data
        self._send(200, b"")

    def do_POST(self) -> None:
        hub, path, body = self.hub, unquote(self.path.partition("?")[0]), self._body()
        if self.headers.get("Authorization") != "Bearer hf_secret":
            return self._send(401, {})
        if path == "/api/repos/create":
            values = json.loads(body)
            name = f"{values.get('organization') or 'me'}/{values['name']}"
            new = name not in hub.repositories
            hub.repositories.setdefault(name, {"main": [{}]})
            return self._send(200 if new else 409, {"url": f"{hub.endpoint}/datasets/{name}"})
        if path == "/api/validate-yaml":
            return self._send(200, {"errors": [], "warnings": []})
        if found := re.fullmatch(r"/api/datasets/(\w+/[\w-]+)/branch/(\w+)", path):
            branches = hub.repositories[found[1]]
            branches.setdefault(found[2], list(branches["main"]))
            return self._send(200, {})
        if re.fullmatch(r"/api/datasets/\w+/[\w-]+/preupload/\w+", path):
            files = [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if file["path"].endswith(".tar") else "regular",
                    "shouldIgnore": False,
                }
                for file in json.loads(body)["files"]
            ]
            return self._send(200, {"files": files})
        if path.endswith(".git/info/lfs/objects/batch"):
            objects = json.loads(body)["objects"]
            for item in objects:
                if item["oid"] not in hub.objects:  # the Hub asks only for what it has not
                    item["actions"] = {"upload": {"href": f"{hub.endpoint}/put/{item['oid']}"}}
            return self._send(200, {"transfer": "basic", "objects": objects})
        if found := re.fullmatch(r"/api/datasets/(\w+/[\w-]+)/commit/(\w+)", path):
            commits = hub.repositories[found[1]][found[2]]
            files = dict(commits[-1])
            for line in map(json.loads, body.splitlines()):
                value = line["value"]
                if line["key"] == "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                elif line["key"] == "lfsFile":
                    assert value["oid"] in hub.objects
                    files[value["path"]] = b"lfs:" + value["oid"].encode()
            commits.append(files)
            name = hub.commit(found[1], found[2])
            assert name is not None
            url = f"{hub.endpoint}/datasets/{found[1]}/commit/{name[0]}"
            return self._send(200, {"commitUrl": url, "commitOid": name[0], "hookOutput": ""})
        return self._send(404, {})
