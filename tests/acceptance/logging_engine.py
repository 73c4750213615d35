"""The mock engine as a process that can be killed: `python -m tests.acceptance.logging_engine PORT LOG`.

Each line of a batch that it is asked goes into LOG at once, by its number, so that nothing is lost when it is killed.
"""

from __future__ import annotations

import os
import re
import sys

import uvloop

from bench import mock_engine

ANSWER_S = 0.03
_NUMBER = re.compile(rb'"content":\s*"line (\d+)"')


class LoggingEngine(mock_engine.Engine):
    def __init__(self, log: int) -> None:
        super().__init__(1, 0.0, ANSWER_S)
        self.log = log

    def __call__(self) -> mock_engine.Connection:
        return _Connection(self, self.log)


class _Connection(mock_engine.Connection):
    def __init__(self, engine: mock_engine.Engine, log: int) -> None:
        super().__init__(engine)
        self._log = log

    def on_message_complete(self) -> None:
        if found := _NUMBER.search(self._body):
            os.write(self._log, found[1] + b"\n")
        super().on_message_complete()


if __name__ == "__main__":
    asked = os.open(sys.argv[2], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    uvloop.run(mock_engine.serve(int(sys.argv[1]), LoggingEngine(asked), 512))
