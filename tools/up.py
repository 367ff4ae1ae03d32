#!/usr/bin/python3
"""`./dev up`: everything needed to see moontide at work, in one terminal.

Starts, in this order: PostgreSQL (unless DATABASE_URL names one), migrations,
the catcher for mail and webhooks, the host (with its embedded Kafka, unless
KAFKA_BROKERS names a real one), the demo producer. Ends them in the opposite
order, each by its own pid. Everything they write is in .run/ (but see
database_folder()).
"""

import argparse
import fcntl
import json
import os
import signal
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path

from servers import ROOT, Postgres, Server, free_port, tail, wait_for

RUN = ROOT / ".run"
BINARY = ROOT / "build" / "release" / "moontide"
CONF = RUN / "moontide.lua"

CONF_TEXT = """\
-- Written by ./dev up at each start; your own goes to conf/moontide.lua.
return {{
  database  = {{ url = {database} }},
  kafka     = {{ brokers = {brokers}, topics = {{ "demo.calls", "demo.bids" }} }},
  http      = {{ listen = {listen} }},
  mail      = {{ url = {mail}, from = "moontide <demo@example.com>" }},
  templates = {{ path = {templates} }},
  handlers  = {{
    path = {handlers},
    lua = {lua},
    notification = {{
      config = {{ webhook_url = {hook}, webhook_secret = "demo",
                 compliance_email = "compliance@example.com" }},
      allow = {{ http = {{ {web} }}, mail = true, db = true }},
    }},
  }},
}}
"""

GUIDE = """
moontide is up.

  console, API     {host}/v1/status   {host}/metrics
  handlers         handlers/*.lua   (audit, notification, analytics, compliance)
  what they sent   {catcher}        (mail and webhooks, newest first)
  database         psql {database}
  broker           {brokers}
  logs             .run/host.log  .run/demo.log  .run/catcher.log

Three things to try, in another terminal:

  1. Change a handler and see it live within a second: edit handlers/notification.lua
     (a subject, say), save, and look at {catcher}
  2. Break one: write `oops(` into handlers/audit.lua and save. It is refused with file
     and line, the running version goes on: build/release/moontide handlers list
  3. Hold a handler and let it go again; the backlog drains in order:
       build/release/moontide flags set handler:notification off
       build/release/moontide status
       build/release/moontide flags set handler:notification on
{note}
Ctrl-C stops everything.
"""


def quoted(text):
    return json.dumps(str(text))


class Step(Server):
    """One of our own processes, with a log file of its name in .run/."""

    def __init__(self, name, argv):
        super().__init__(RUN)
        self.name = name
        self.log = RUN / f"{name}.log"
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL"] + [str(a) for a in argv], cwd=ROOT,
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)


def only_one():
    """Two of us would fight over .run/."""
    RUN.mkdir(exist_ok=True)
    RUN.chmod(0o755)
    lock = open(RUN / "lock", "w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        sys.exit("dev: ./dev up runs already (.run/lock)")
    return lock


def database_folder():
    """Where PostgreSQL keeps its files: .run/pg. Started by root it runs as another
    user, who cannot enter a checkout in /root (0700): then .run/pg points elsewhere."""
    folder = RUN / "pg"
    if not folder.exists() and not Postgres(folder).may_enter(RUN):
        folder.unlink(missing_ok=True)  # a pointer to what is gone
        elsewhere = tempfile.mkdtemp(prefix="moontide-pg-", dir="/var/tmp")
        folder.symlink_to(elsewhere)
    return folder.resolve()


def start_postgres(stack):
    """The URL of the database, started by us unless the user named one."""
    if os.environ.get("DATABASE_URL"):
        return os.environ["DATABASE_URL"]
    server = Postgres(database_folder(), trust_crash=False).init().start()
    stack.append(("PostgreSQL", server.stop))
    if not server.query("select 1 from pg_database where datname = 'moontide'"):
        server.query("create database moontide")
    return server.url("moontide")


def listen_address(wanted=7600):
    import socket

    with socket.socket() as s:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            s.bind(("127.0.0.1", wanted))
            return f"127.0.0.1:{wanted}"
        except OSError:
            return f"127.0.0.1:{free_port()}"


def write_conf(database, brokers, listen, smtp, web):
    CONF.write_text(CONF_TEXT.format(
        database=quoted(database), brokers=quoted(brokers), listen=quoted(listen),
        mail=quoted(f"smtp://127.0.0.1:{smtp}"), hook=quoted(f"http://127.0.0.1:{web}/hook"), web=quoted(f"http://127.0.0.1:{web}/"),
        handlers=quoted(ROOT / "handlers"), lua=quoted(ROOT / "lua"),
        templates=quoted(ROOT / "templates")))


def migrate():
    done = subprocess.run([str(BINARY), "migrate", "up", "-c", str(CONF)], cwd=ROOT,
                          capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"dev: migrations failed:\n{done.stdout}{done.stderr}")


def answers(url):
    try:
        with urllib.request.urlopen(url, timeout=2) as reply:
            return json.load(reply) if "json" in reply.headers["Content-Type"] else True
    except OSError:
        return None


def start(stack, with_demo, rate):
    database = start_postgres(stack)
    brokers = os.environ.get("KAFKA_BROKERS") or "embedded"
    listen, smtp, web = listen_address(), free_port(), free_port()
    host_url, catcher_url = f"http://{listen}", f"http://127.0.0.1:{web}/"

    write_conf(database, brokers, listen, smtp, web)
    migrate()
    catcher = Step("catcher", [sys.executable, ROOT / "tools/catcher.py", "--smtp-port", smtp,
                               "--http-port", web, "--out", RUN / "caught.jsonl"])
    stack.append(("catcher", catcher.end))
    catcher.await_ready(lambda: answers(catcher_url), 15, "the catcher")
    host = Step("host", [BINARY, "run", "-c", CONF])
    stack.append(("host", lambda: host.end(timeout=40)))
    host.await_ready(lambda: answers(host_url + "/healthz"), 30, "the host")
    status = answers(host_url + "/v1/status")
    if with_demo:
        demo = Step("demo", [sys.executable, ROOT / "tools/demo.py", "--database-url", database,
                             "--host", host_url, "--rate", rate])
        stack.append(("demo", demo.end))
    export = "" if listen.endswith(":7600") else (
        f"\n  (port 7600 is taken: export MOONTIDE_URL={host_url})\n")
    print(GUIDE.format(host=host_url, catcher=catcher_url, database=database, note=export,
                       brokers=status["kafka"]["bootstrap"]), flush=True)
    return host


def follow(host):
    """The host's log in this terminal, until it ends or we are told to."""
    with open(host.log, "rb") as log:
        log.seek(0, os.SEEK_END)
        while host.running():
            line = wait_line(log, host)
            if line:
                sys.stdout.buffer.write(line)
                sys.stdout.flush()
    print(f"dev: the host ended by itself:\n{tail(host.log)}", file=sys.stderr)


def wait_line(log, host):
    def line_or_end():
        return log.readline() or not host.running()
    line = wait_for(line_or_end, timeout=float("inf"))
    return line if isinstance(line, bytes) else None


def main():
    parser = argparse.ArgumentParser(prog="./dev up", description=__doc__.splitlines()[0])
    parser.add_argument("--no-demo", action="store_true", help="start no demo producer")
    parser.add_argument("--rate", default="20", help="events a second of the demo (20)")
    args = parser.parse_args()

    stack, failed = [], False
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    lock = only_one()
    try:
        follow(start(stack, not args.no_demo, args.rate))
        failed = True
    except KeyboardInterrupt:
        pass
    except (AssertionError, RuntimeError) as fault:
        print(f"dev: {fault}", file=sys.stderr)
        failed = True
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        for name, end in reversed(stack):
            print(f"stopping {name}", flush=True)
            end()
        lock.close()
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
