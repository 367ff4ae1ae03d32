"""The first run: an embedded Kafka, a PostgreSQL, a demo, four handlers."""

import subprocess
import sys

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
