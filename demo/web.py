# SPDX-License-Identifier: Apache-2.0
"""A real's web server: answers HTTP/1.1 on the VIPs. `nfcore decap` beside it removes the outer headers.

Started in the namespace of a real: ``python -m demo.web NAME --listen VIP …``. It prints ``ready`` on its standard
output once it accepts connections and runs until SIGTERM.
"""

from __future__ import annotations

import signal
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import FrameType
from typing import Annotated

import typer


class Answer(BaseHTTPRequestHandler):
    """Answers with its name, the client's address and port, and the body's length: ``real1 198.18.1.2 40001 0``."""

    protocol_version = "HTTP/1.1"
    server_version = "nfcore-demo"
    disable_nagle_algorithm = True
    # Head and body go into one segment.
    wbufsize = -1
    # A client that vanished must not block its thread for ever.
    timeout = 60

    server: Web

    def do_GET(self) -> None:
        """Answer a request without a body."""
        self._answer()

    def do_POST(self) -> None:
        """Read the body of the request and answer as to GET, with its number of bytes."""
        length = int(self.headers.get("Content-Length", "0"))
        self._answer(len(self.rfile.read(length)))

    def _answer(self, received: int = 0) -> None:
        address, port = self.client_address[:2]
        body = f"{self.server.real} {address} {port} {received}\n".encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/plain")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Log nothing: a line per request would hide the demo's own output."""


class Web(ThreadingHTTPServer):
    """An HTTP server on one address of the real `real`."""

    daemon_threads = True
    request_queue_size = 1024

    def __init__(self, real: str, address: str, port: int) -> None:
        self.real = real
        self.address_family = socket.AF_INET6 if ":" in address else socket.AF_INET
        super().__init__((address, port), Answer)

    def server_bind(self) -> None:
        """Bind without a DNS look-up of the address, which would only time out in the namespace."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])


def main(
    real: Annotated[str, typer.Argument(help="Name of the real, given in each answer.")],
    listen: Annotated[list[str], typer.Option(help="Address to listen on; may be repeated.")],
    port: Annotated[int, typer.Option(help="TCP port.")] = 80,
) -> None:
    """Answer HTTP requests on the addresses until SIGTERM."""
    servers = [Web(real, address, port) for address in listen]
    for server in servers:
        threading.Thread(target=server.serve_forever, daemon=True).start()
    stopped = threading.Event()

    def stop(number: int, frame: FrameType | None) -> None:
        stopped.set()

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    print("ready", flush=True)
    stopped.wait()


if __name__ == "__main__":
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(main)
    app()
