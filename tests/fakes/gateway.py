"""The gateway as agents see it: one route, which keeps what it is told and answers as the test says."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Report = dict[str, Any]


class FakeGateway:
    """`reports` in the order of arrival; set `command`, `in_flight` and `status` to change the answers."""

    def __init__(self, token: str) -> None:
        self.reports: list[Report] = []
        self.arrived: list[float] = []
        self.paths: set[str] = set()
        self.command = "run"
        self.in_flight = 0
        self.status = 200
        self.may_answer = threading.Event()
        self.may_answer.set()
        self._news = threading.Condition()
        gateway = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                report = json.loads(self.rfile.read(int(self.headers["content-length"])))
                allowed = self.headers.get("authorization") == f"Bearer {token}"
                gateway.take(self.path, report)
                gateway.may_answer.wait()
                data = json.dumps({"command": gateway.command, "in_flight": gateway.in_flight}).encode()
                try:
                    self.send_response(gateway.status if allowed else 401)
                    self.send_header("content-length", str(len(data)))
                    self.end_headers()
                    self.wfile.write(data)
                except OSError:
                    self.close_connection = True  # it did not wait for the answer

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()

    def take(self, path: str, report: Report) -> None:
        with self._news:
            self.reports.append(report)
            self.arrived.append(time.monotonic())
            self.paths.add(path)
            self._news.notify_all()

    def wait_for(self, wanted: Callable[[Report], bool], timeout_s: float = 15.0) -> Report:
        """The first report that is as wanted, come or yet to come."""
        with self._news:
            assert self._news.wait_for(lambda: any(map(wanted, self.reports)), timeout_s), self.states()
            return next(report for report in self.reports if wanted(report))

    def wait_for_state(self, state: str, timeout_s: float = 15.0) -> Report:
        return self.wait_for(lambda report: bool(report["state"] == state), timeout_s)

    def wait_for_more(self, count: int, timeout_s: float = 15.0) -> None:
        """Until so many reports have come from now on."""
        with self._news:
            target = len(self.reports) + count
            assert self._news.wait_for(lambda: len(self.reports) >= target, timeout_s), self.states()

    def states(self) -> list[str]:
        """The states in their order, each once."""
        return list(dict.fromkeys(report["state"] for report in self.reports))

    def close(self) -> None:
        """From now on connections are refused."""
        self.may_answer.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
