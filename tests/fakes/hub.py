"""A hub on loopback, by the hub's documented HTTP API, with repositories of the test's own making.

It knows what huggingface_hub asks when it lists, heads and downloads; and how the hub says no.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
Files = dict[str, bytes]


class FakeHub:
    """`repositories`: id -> files. `gated`: ids that need `token`. `ranges` and `paths` are what was asked for."""

    def __init__(self) -> None:
        self.repositories: dict[str, Files] = {}
        self.gated: set[str] = set()
        self.token = "hf_test"
        self.paths: list[str] = []
        self.ranges: list[str] = []
        self.claimed_sizes: dict[str, int] = {}
        self.cut_after: int | None = None
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                hub.answer(self, body=True)

            def do_HEAD(self) -> None:
                hub.answer(self, body=False)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def answer(self, request: BaseHTTPRequestHandler, *, body: bool) -> None:
        path = unquote(urlsplit(request.path).path)
        self.paths.append(path)
        found = re.match(
            r"/api/models/(?P<api>[^/]+/[^/]+)(?P<rest>/.*)?$|/(?P<repo>[^/]+/[^/]+)/resolve/[^/]+/(?P<file>.+)$", path
        )
        if found is None:
            return send(request, 404, {}, b"", body)
        name = found["api"] or found["repo"]
        files = self.repositories.get(name)
        if files is None:
            return send(request, 401, {"x-error-code": "RepoNotFound"}, b"", body)
        allowed = request.headers.get("authorization") == f"Bearer {self.token}"
        if name in self.gated and not allowed and (found["file"] or "/tree/" in (found["rest"] or "")):
            return send(request, 403, {"x-error-code": "GatedRepo"}, b"", body)
        if found["api"]:
            return send(request, 200, {}, json.dumps(self._described(name, files, found["rest"] or "")).encode(), body)
        data = files.get(found["file"])
        if data is None:
            return send(request, 404, {"x-error-code": "EntryNotFound", "x-repo-commit": COMMIT}, b"", body)
        return self._send_file(request, data, body)

    def _described(self, name: str, files: Files, rest: str) -> Any:
        sizes = {path: self.claimed_sizes.get(path, len(data)) for path, data in files.items()}
        if rest.startswith("/tree/"):
            return [{"type": "file", "path": p, "size": s, "oid": etag(files[p])} for p, s in sizes.items()]
        siblings = [{"rfilename": p, "size": s, "blobId": etag(files[p])} for p, s in sizes.items()]
        gated = "manual" if name in self.gated else False
        return {"id": name, "modelId": name, "sha": COMMIT, "siblings": siblings, "tags": [], "gated": gated}

    def _send_file(self, request: BaseHTTPRequestHandler, data: bytes, body: bool) -> None:
        headers = {"etag": f'"{etag(data)}"', "x-repo-commit": COMMIT, "accept-ranges": "bytes"}
        wanted = re.match(r"bytes=(\d+)-(\d*)$", request.headers.get("range", ""))
        if wanted is None:
            if self.cut_after is not None and body and len(data) > self.cut_after:
                return send(request, 200, headers, data, body, cut_after=self.cut_after)
            return send(request, 200, headers, data, body)
        self.ranges.append(wanted[0])
        first, last = int(wanted[1]), min(int(wanted[2] or len(data) - 1), len(data) - 1)
        if first >= len(data):
            return send(request, 416, headers, b"", body)
        headers["content-range"] = f"bytes {first}-{last}/{len(data)}"
        return send(request, 206, headers, data[first : last + 1], body)


def send(
    request: BaseHTTPRequestHandler,
    status: int,
    headers: dict[str, str],
    data: bytes,
    body: bool,
    *,
    cut_after: int | None = None,
) -> None:
    request.send_response(status)
    for name, value in headers.items():
        request.send_header(name, value)
    request.send_header("content-length", str(len(data)))
    request.end_headers()
    if body:
        request.wfile.write(data[:cut_after])
    if cut_after is not None:
        request.close_connection = True


def etag(data: bytes) -> str:
    return hashlib.sha1(data).hexdigest()  # noqa: S324  # as git does
