"""How long a start takes: to the first event of an outbox handled, and with a
thousand handlers."""

import json
import time

from common import HANDLERS, Bench, Host, wait_for

TOLD = """local log = require "moontide.log"
return { subscribes = { "T" }, start = "earliest",
  handle = function(event, ctx) log.info("handled") end }
"""


def ms_until(host, condition, what):
    began = time.monotonic()
    host.spawn(host.argv())
    try:
        wait_for(condition, 60, what)
        return (time.monotonic() - began) * 1000
    finally:
        host.end(timeout=40)


def main():
    with Bench("start", __doc__) as bench:
        server = bench.postgres()
        server.query("create database start")
        url = server.url("start")
        Host(bench.folder / "setup", {}, database=url).cli("migrate", "up", "--ids", "text")
        server.query("select publish_event('T', 'A', 'a', %s)", (json.dumps({}),),
                     database="start")

        def first(i):
            host = Host(bench.folder / f"first{i}", {f"told{i}": TOLD}, database=url)
            return ms_until(host, lambda: host.log_has("handled"), "an event")

        def many(i):
            few = {f"h{n:04}": HANDLERS["three"].replace('"*"', f'"type{n}"')
                   for n in range(bench.count(1000))}
            host = Host(bench.folder / f"many{i}", few, brokers="embedded", topics=["t"])
            return ms_until(host, lambda: host.log_has("host/host: started "), "the start")

        bench.row("start to the first event handled", bench.repeat(first), "ms", "≤ 200")
        bench.row("start with 1,000 handlers", bench.repeat(many), "ms", "≤ 2,000")


main()
