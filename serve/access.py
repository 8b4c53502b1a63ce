"""One JSON line per request: what was asked, how it ended, how long it took. Never what a photo shows."""

from __future__ import annotations

import json
import logging
import time
from datetime import UTC, datetime

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.metrics import Metrics

_log = logging.getLogger("graft.serve")


class AccessLog:
    """ASGI middleware: counts each answer by status and logs it."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app = app
        self.metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on and look at the answer's first message."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        begun = time.perf_counter()
        state = scope.setdefault("state", {})
        status = 500

        async def watch(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, watch)
        finally:
            self.metrics.requests.labels(str(status)).inc()
            fields = {"method": scope["method"], "path": scope["path"][:200], "status": status}
            fields["milliseconds"] = round(1000 * (time.perf_counter() - begun), 2)
            fields |= {name: state[name] for name in ("photos", "problem") if name in state}
            _log.info("request", extra={"fields": fields})


class JsonLines(logging.Formatter):
    """Log records as one JSON object a line: time (UTC), level, event, and the record's `fields`."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        at = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line = {"time": at, "level": record.levelname.lower(), "event": record.getMessage()}
        line |= getattr(record, "fields", {})
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)
