"""A destination that fails is left alone for a while, visibly."""

import json
import os
import signal
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from scenes import count

CALLS_OUT = """
local http = require "moontide.http"
return {
  subscribes = { "Told" }, start = "earliest", allow = { http = { "%s" } },
  retry = { max_attempts = 5, base = "10ms", cap = "10ms" },
  breaker = { calls = 4, open = "300ms" },
  handle = function(event, ctx)
    local res, err = http.post(ctx.config.url or "%s/in", { json = event.payload })
    if not res then return ctx.retry(err) end
    if res.status >= 500 then return ctx.retry("it says " .. res.status) end
  end,
}
"""


class Moody(ThreadingHTTPServer):
    """Answers with `status`; counts what it was asked."""

    daemon_threads = True

    def __init__(self):
        outer = self

        class Web(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                with outer.lock:
                    outer.asked += 1
                    outer.taken += [json.loads(body)["n"]] if outer.status == 200 else []
                self.send_response(outer.status)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *args):
                pass

        self.lock, self.status, self.asked, self.taken = threading.Lock(), 503, 0, []
        super().__init__(("127.0.0.1", 0), Web)
        threading.Thread(target=self.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server_port}"


@pytest.fixture
def moody():
    server = Moody()
    yield server
    server.shutdown()
    server.server_close()


def test_a_failing_destination_is_left_alone_until_it_is_well(database, make_host, moody):
    """30 deliveries wait for one server that says 503. The breaker lets one ask in 300 ms, and
    nobody loses the attempts of the others; well again, all of them arrive."""
    host = make_host(settings={"database": {"url": database.url}, "outbox": {"interval": "50ms"},
                               "workers": {"count": 1}},
                     handlers={"hook": CALLS_OUT % (moody.url, moody.url)})
    for n in range(30):
        database.publish("Told", "Thing", f"00000000-0000-4000-8000-{n:012d}", {"n": n})
    host.start()
    started = time.monotonic()
    host.wait(lambda: host.metric("moontide_breaker_open", handler="hook",
                                  destination=moody.url) == 1, 30, "the breaker open")
    shown = json.loads(host.cli("handlers", "show", "hook", "--url", host.url).stdout)
    assert [b["destination"] for b in shown["openBreakers"]] == [moody.url]
    assert shown["openBreakers"][0]["workers"] == 1
    before = moody.asked
    host.wait(lambda: moody.asked >= before + 3, 30, "three probes")
    at_once = 16 + 4  # what was under way when it opened
    assert moody.asked <= at_once + (time.monotonic() - started) / 0.3 + 1, "asked too often"
    moody.status = 200
    host.wait(lambda: host.metric("moontide_settled_total", handler="hook", how="ack") >= 30, 30,
              "all delivered")
    assert sorted(moody.taken) == list(range(30))
    assert count(database, "event_dead_letters") == 0
    host.wait(lambda: host.metric("moontide_breaker_open", handler="hook") == 0, 10, "closed")
    assert "openBreakers" not in host.ask("/v1/handlers/hook").json()
    lines = [line["message"] for line in host.log_lines() if line["message"].startswith("breaker")]
    assert lines[0].startswith("breaker open") and lines[-1] == "breaker closed"


def test_a_worker_that_is_gone_takes_its_breakers_along(database, make_host, moody):
    """What a process knew is not held against its successor, and nobody shows it any more."""
    host = make_host(settings={"database": {"url": database.url}, "outbox": {"interval": "50ms"},
                               "workers": {"count": 1},
                               "handlers": {"hook": {"breaker": {"calls": 4, "open": "10m"}}}},
                     handlers={"hook": CALLS_OUT % (moody.url, moody.url)})
    for n in range(10):
        database.publish("Told", "Thing", f"00000000-0000-4000-8000-{n:012d}", {"n": n})
    host.start()
    host.wait(lambda: host.metric("moontide_breaker_open", handler="hook") == 1, 30, "open")
    moody.status = 200
    for pid in host.worker_pids():
        os.kill(pid, signal.SIGKILL)
    host.wait(lambda: host.log_lines("breaker closed"), 20, "it is closed")
    assert host.metric("moontide_breaker_open", handler="hook") == 0
    database.publish("Told", "Thing", "00000000-0000-4000-8000-000000000077", {"n": 77})
    host.wait(lambda: 77 in moody.taken, 20, "the next one is asked for")
