#!/usr/bin/python3
"""Catches the mail and the webhooks of the demo, and shows them.

An SMTP server and an HTTP server on 127.0.0.1. What arrives is kept in memory
for the page at / (newest first; /items.json for programs), appended to a file
as JSON lines and printed as one line. Mail to refuse@… is refused for good and
every third mail to busy@… is put off, so that failures can be watched too. With a
certificate it offers STARTTLS (or TLS at once), with a login it wants that one.
"""

import argparse
import email
import email.policy
import html
import json
import signal
import ssl
import sys
import threading
from datetime import datetime, timezone
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from aiosmtpd.controller import Controller
from aiosmtpd.smtp import AuthResult

KEPT = 500


class Catch:
    """What arrived; both servers' threads write to it."""

    def __init__(self, path):
        self.items, self.path, self.lock, self.busy = [], path, threading.Lock(), 0

    def add(self, kind, summary, **details):
        item = {"at": datetime.now(timezone.utc).isoformat(timespec="milliseconds"),
                "kind": kind, "summary": summary, **details}
        with self.lock:
            self.items = [item] + self.items[:KEPT - 1]
            with open(self.path, "a") as file:
                file.write(json.dumps(item) + "\n")
        print(f"{item['at']} {kind}: {summary}", flush=True)

    def puts_off(self):
        with self.lock:
            self.busy += 1
            return self.busy % 3 == 0


class Mail:
    def __init__(self, catch):
        self.catch = catch

    async def handle_RCPT(self, server, session, envelope, address, options):
        if address.startswith("refuse@"):
            return "550 no such mailbox"
        if address.startswith("busy@") and self.catch.puts_off():
            return "451 mailbox busy, try again"
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, server, session, envelope):
        message = email.message_from_bytes(envelope.content, policy=email.policy.default)
        body = message.get_body(("plain", "html"))
        self.catch.add("mail", f"{', '.join(envelope.rcpt_tos)}: {message['subject']}",
                       sender=envelope.mail_from, to=envelope.rcpt_tos,
                       login=session.auth_data, tls=session.ssl is not None,
                       headers={k: str(v) for k, v in message.items()},
                       body=body.get_content() if body else "")
        return "250 OK"


def smtp_options(args):
    """Arguments of the SMTP server for what the command line asks for."""
    options = {}
    if args.tls_cert:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(args.tls_cert, args.tls_key)
        options["ssl_context" if args.tls_at_once else "tls_context"] = context
    if args.login:
        user, _, password = args.login.partition(":")

        def check(server, session, envelope, mechanism, data):
            good = (data.login, data.password) == (user.encode(), password.encode())
            return AuthResult(success=good, handled=False, auth_data=f"{user} by {mechanism}")

        # aiosmtpd counts only STARTTLS as TLS.
        options.update(authenticator=check, auth_required=True,
                       auth_require_tls=not args.tls_at_once,
                       auth_exclude_mechanism=args.without)
    return options


PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><title>caught</title>
<meta http-equiv="refresh" content="3">
<style>body{{font:15px/1.5 system-ui;margin:2rem auto;max-width:56rem;padding:0 1rem}}
details{{border-bottom:1px solid #ccc;padding:.4rem 0}}summary{{cursor:pointer}}
small{{color:#666}}pre{{white-space:pre-wrap;background:#f4f4f4;padding:.6rem}}</style>
<h1>{count} caught</h1><p>Mail and webhooks of moontide's handlers, newest first.</p>{rows}</html>"""

ROW = ("<details><summary><b>{kind}</b> {summary} <small>{at}</small></summary>"
       "<pre>{headers}\n\n{body}</pre></details>")


def page(items):
    rows = []
    for item in items:
        headers = "\n".join(f"{k}: {v}" for k, v in item.get("headers", {}).items())
        rows.append(ROW.format(headers=html.escape(headers), **{
            k: html.escape(str(item.get(k, ""))) for k in ("kind", "summary", "at", "body")}))
    return PAGE.format(count=len(items), rows="\n".join(rows))


def web_handler(catch):
    class Web(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def reply(self, status, text, kind="text/plain"):
            body = text.encode()
            self.send_response(status)
            self.send_header("Content-Type", f"{kind}; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_GET(self):
            if self.path == "/items.json":
                self.reply(200, json.dumps(catch.items), "application/json")
            else:
                self.reply(200, page(catch.items), "text/html")

        def do_POST(self):
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            text = body.decode(errors="replace")
            catch.add("webhook", f"{self.path} {text[:100]}", path=self.path,
                      headers=dict(self.headers.items()), body=text)
            self.reply(200, "ok\n")

        def log_message(self, *args):
            pass  # add() has said it

    return Web


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--smtp-port", type=int, default=1025)
    parser.add_argument("--http-port", type=int, default=8025)
    parser.add_argument("--out", type=Path, default=Path("caught.jsonl"))
    parser.add_argument("--tls-cert", type=Path)
    parser.add_argument("--tls-key", type=Path)
    parser.add_argument("--tls-at-once", action="store_true", help="smtps, not STARTTLS")
    parser.add_argument("--login", metavar="USER:PASSWORD")
    parser.add_argument("--without", action="append", default=[], metavar="MECHANISM")
    args = parser.parse_args()

    catch = Catch(args.out)
    mail = Controller(Mail(catch), hostname="127.0.0.1", port=args.smtp_port,
                      **smtp_options(args))
    mail.start()
    web = ThreadingHTTPServer(("127.0.0.1", args.http_port), web_handler(catch))
    web.daemon_threads = True
    threading.Thread(target=web.serve_forever, daemon=True).start()
    signal.sigwait({signal.SIGINT, signal.SIGTERM})
    web.shutdown()
    mail.stop()


if __name__ == "__main__":
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    sys.exit(main())
