"""An HTTP server that fails as it is told to, and writes down what it was asked."""

import socket
import struct
import threading
import time
from collections import defaultdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256  # or a burst of calls waits for its SYN to be sent again


class Flaky:
    """`mode`: ok, 500, hang (no answer), reset."""

    def __init__(self):
        self.mode, self.calls, self.lock = "ok", defaultdict(list), threading.Lock()
        self.ended = threading.Event()
        flaky = self

        class Web(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                self.rfile.read(int(self.headers.get("Content-Length") or 0))
                flaky.answer(self)

            def log_message(self, *args):
                pass  # `calls` says it

        self.server = Server(("127.0.0.1", 0), Web)
        self.port = self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def answer(self, web):
        mode = self.mode
        with self.lock:
            self.calls[web.headers.get("Idempotency-Key")].append((time.monotonic(), mode))
        if mode == "hang":
            self.ended.wait(30)
        if mode in ("hang", "reset"):
            web.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            web.close_connection = True
            web.connection.close()
            return
        web.send_response(200 if mode == "ok" else 500)
        web.send_header("Content-Length", "0")
        web.end_headers()

    def count(self, mode=None):
        with self.lock:
            return sum(mode in (None, how) for calls in self.calls.values() for _, how in calls)

    def stop(self):
        self.ended.set()
        self.server.shutdown()
