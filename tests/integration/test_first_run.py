"""The first run: an embedded Kafka, a PostgreSQL, a demo, four handlers."""

import re
import shutil
import signal
import subprocess
import sys
import urllib.request

import harness
import psycopg2
import pytest
from harness import Host
from scenes import copy_handlers, four_handlers
from servers import ROOT, wait_for


def demo(database, host, count, seed):
    done = subprocess.run(
        [sys.executable, ROOT / "tools/demo.py", "--database-url", database.url, "--host",
         host.url, "--rate", "200", "--count", str(count), "--seed", str(seed)],
        capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    stored, sent = (int(word) for word in done.stdout.split() if word.isdigit())
    return stored, sent


def embedded(database, catcher):
    hook = f"http://127.0.0.1:{catcher.http}/"
    settings = four_handlers(database, ["demo.calls", "demo.bids"], "embedded", mail=catcher.settings())
    settings["handlers"]["notification"] = {
        "config": {"webhook_url": hook + "hook", "webhook_secret": "demo"},
        "allow": {"http": [hook], "mail": True, "db": True},
        "retry": {"max_attempts": 3, "base": "50ms"},  # the mailbox refuse@ is in the demo
    }
    return settings


def test_demo_events_flow_through_all_four_handlers_and_go_on_after_a_restart(
        database, catcher, make_host):
    """Issue 3, done 1; requirements S1-45, S1-46, S1-47, S1-48, S2-16, S2-22, S2-24."""
    host: Host = make_host(settings=embedded(database, catcher))
    copy_handlers(host)
    host.start()
    stored, sent = demo(database, host, 400, seed=1)
    assert stored > 50 and sent > 50
    host.wait(lambda: settled(host, database, sent), 60, "everything settled")

    in_store = database.value("select count(*) from domain_events")
    assert in_store >= stored
    for table in ("event_analytics_hourly", "event_analytics_daily", "compliance_checks",
                  "consents", "notifications"):
        assert database.value(f"select count(*) from {table}") > 0, f"{table} is empty"
    sent_mails = database.value(
        "select count(*) from notifications where channel = 'email' and state = 'sent'")
    sent_hooks = database.value(
        "select count(*) from notifications where channel = 'webhook' and state = 'sent'")
    wait_for(lambda: len(catcher.items("mail")) == sent_mails, 10, "each mail once")
    hooks = catcher.items("webhook")
    assert len(hooks) == min(sent_hooks, 500 - sent_mails)
    assert all(hook["headers"]["X-Signature"].startswith("sha256=") for hook in hooks)
    assert all(hook["headers"].get("Idempotency-Key") for hook in hooks)

    # A new start: PostgreSQL as it was, an embedded broker that begins anew.
    assert host.stop() == 0
    host.start()
    more_stored, more_sent = demo(database, host, 200, seed=2)
    host.wait(lambda: settled(host, database, sent + more_sent), 60, "everything settled again")
    assert (database.value("select count(*) from domain_events") >= in_store + more_stored)
    assert database.value("select count(*) - count(distinct event_id) from event_audit_log") == 0
    assert host.ask("/readyz").status == 200


def settled(host, database, sent):
    """Every stored and every sent event audited or a dead letter, windows empty."""
    bad = database.value("select count(*) from event_dead_letters where class = 'undecodable'")
    stored = database.value("select count(*) from domain_events")
    audited = database.value("select count(*) from event_audit_log")
    return (audited == stored + sent - bad and host.metric("moontide_source_lag") == 0
            and host.metric("moontide_window_events") == 0)


class Up:
    """`./dev up` of a checkout, after its build."""

    def __init__(self, checkout):
        self.out = checkout / "out.txt"
        with open(self.out, "wb") as out:
            self.process = subprocess.Popen(
                [sys.executable, checkout / "tools/up.py", "--rate", "100"], cwd=checkout,
                env=harness.clean_environment(), stdin=subprocess.DEVNULL, stdout=out,
                stderr=subprocess.STDOUT)
        wait_for(lambda: self.said("moontide is up") or self.process.poll() is not None, 90, "up")
        assert self.process.poll() is None, self.text()

    def text(self):
        return self.out.read_text(errors="replace")

    def said(self, words):
        return words in self.text()

    def url(self, scheme):
        return re.search(rf"{scheme}://\S+", self.text())[0]

    def done(self):
        """What each handler has done since this start."""
        with urllib.request.urlopen(self.url("http").replace("/v1/status", "/metrics")) as reply:
            lines = reply.read().decode()
        found = re.findall(r'moontide_deliveries_total\{handler="(\w+)",outcome="ack"\} (\d+)', lines)
        return {name: int(count) for name, count in found}

    def audited(self):
        """Rows of the audit trail, and how many of them are there twice."""
        with psycopg2.connect(self.url("postgres")) as connection, connection.cursor() as cursor:
            cursor.execute("select count(*), count(*) - count(distinct event_id)"
                           " from event_audit_log")
            return cursor.fetchone()

    def interrupt(self):
        """Ctrl-C."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
        return self.process.wait(90)


def processes_naming(text):
    done = subprocess.run(["pgrep", "-af", str(text)], capture_output=True, text=True)
    return done.stdout


@pytest.fixture
def up(scratch):
    """Starts `./dev up` in what a clone in /root is to PostgreSQL's user: locked."""
    folder = scratch / "locked" / "moontide"
    folder.mkdir(parents=True)
    folder.parent.chmod(0o700)
    shutil.copytree(ROOT / "tools", folder / "tools")
    for name in ("handlers", "lua", "templates", "migrations", ".cache"):
        (folder / name).symlink_to(ROOT / name)
    (folder / "build/release").mkdir(parents=True)
    (folder / "build/release/moontide").symlink_to(harness.BINARY)
    runs = []

    def start():
        runs.append(Up(folder))
        return runs[-1]
    start.checkout = folder
    yield start
    for run in runs:
        run.interrupt()
    if (folder / ".run/pg").is_symlink():
        shutil.rmtree((folder / ".run/pg").resolve())
    shutil.rmtree(folder.parent)


def test_up_shows_events_in_all_handlers_ends_at_an_interrupt_and_goes_on(up):
    """Issue 3, done 1; requirement M15: the first screen of the README, twice."""
    first = up()
    wanted = {"audit", "notification", "analytics", "compliance"}
    wait_for(lambda: wanted == {n for n, c in first.done().items() if c}, 60, "all four at work")
    assert first.interrupt() == 0
    assert not processes_naming(up.checkout), "Ctrl-C leaves no process behind"
    assert not processes_naming((up.checkout / ".run/pg").resolve())

    second = up()
    before = second.audited()[0]
    assert before > 0, "a second start keeps what is in PostgreSQL"
    wait_for(lambda: second.audited()[0] > before + 50, 60, "events flow on")
    wait_for(lambda: wanted == {n for n, c in second.done().items() if c}, 60, "all four again")
    assert second.audited()[1] == 0
    assert second.interrupt() == 0
    assert not processes_naming(up.checkout)
