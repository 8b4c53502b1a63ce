"""What AWS's container does with an archive, in one small process: the archive's own code answers for its model.

    python tests/aws/handler_server.py MODEL_FOLDER PORT

Run as a script: nothing of this checkout is imported, and what the archive brings wins over what is installed.
"""

from __future__ import annotations

import importlib
import logging
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any


class Context:
    """Of the toolkit: what a handler sets the status of an answer by."""

    status = 200

    def set_response_status(self, code: int, phrase: str = "") -> None:
        """As the toolkit calls it."""
        self.status = code


class Requests(BaseHTTPRequestHandler):
    """GET /ping and POST /invocations, one at a time as in a worker of the stack."""

    handler: Any = None  # the archive's inference.py
    model: Any = None  # what its model_fn gave

    def do_GET(self) -> None:
        """Healthy: the model was loaded before the port was open."""
        self._send(200 if self.path == "/ping" else 404, b"{}", "application/json")

    def do_POST(self) -> None:
        """Answer with the archive's transform_fn."""
        body, context = self.rfile.read(int(self.headers.get("Content-Length", 0))), Context()
        accept = self.headers.get("Accept", "*/*")
        # The toolkit's default, for whoever takes anything.
        accept = "application/json" if accept == "*/*" else accept
        answer, kind = self.handler.transform_fn(self.model, body, self.headers["Content-Type"], accept, context)
        self._send(context.status, answer, kind)

    def _send(self, status: int, body: bytes, kind: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def main(folder: str, port: str) -> None:
    """Load the model of an unpacked archive, and answer."""
    logging.basicConfig(stream=sys.stdout, level=logging.INFO)
    sys.path[0] = f"{folder}/code"  # in place of this script's folder
    Requests.handler = importlib.import_module("inference")
    Requests.model = Requests.handler.model_fn(folder)
    print(f"{Requests.handler.__file__} answers", flush=True)
    HTTPServer(("127.0.0.1", int(port)), Requests).serve_forever()


if __name__ == "__main__":
    main(*sys.argv[1:])
