"""What an operator sees and does: metrics, readiness, API, commands, signals."""

import json
import re
import signal
import threading
from datetime import datetime
from pathlib import Path

from harness import envelope
from scenes import (QUICK_GROUP, copy_handlers, count, four_handlers, json_lines, make_seen,
                    recorder, wait_count, wait_gone)

KEY = "00000000-0000-4000-8000-000000000001"

FAILS = """
return {
  subscribes = { "Fails" }, start = "earliest",
  retry = { max_attempts = 2, base = "10ms" },
  handle = function(event, ctx)
    if event.payload.n ~= 5 then error("cannot: " .. tostring(event.payload.n)) end
  end,
}
"""


def on_outbox(database, **more):
    return {"database": {"url": database.url}, "outbox": {"interval": "50ms"}, **more}


# --- a strict reader of the Prometheus text format ------------------------------

NAME = r"[a-zA-Z_:][a-zA-Z0-9_:]*"
LABEL = r'[a-zA-Z_][a-zA-Z0-9_]*="(?:[^"\\\n]|\\["\\n])*"'
SAMPLE = re.compile(rf"^({NAME})(?:\{{({LABEL}(?:,{LABEL})*)?\}})? (\S+)$")


def read_metrics(text):
    """name -> (type, [(labels, value)]); every rule of the format is asserted."""
    families, current, seen = {}, None, set()
    assert text.endswith("\n")
    for line in text.splitlines():
        if line.startswith("# HELP "):
            current = line.split(" ", 3)[2]
            assert current not in families, f"{current} twice"
            families[current] = [None, []]
        elif line.startswith("# TYPE "):
            _, _, name, kind = line.split(" ")
            assert name == current and families[name][0] is None
            assert kind in ("counter", "gauge", "histogram")
            families[name][0] = kind
        elif line:
            match = SAMPLE.match(line)
            assert match, f"not a sample: {line}"
            name, labels, value = match.groups()
            number = float(value)
            family = next((f for f in (name, re.sub("_(bucket|sum|count)$", "", name))
                           if f in families), None)
            assert family == current, f"{name} stands outside its family"
            kind = families[family][0]
            assert kind, f"{family} has no TYPE"
            assert (name == family) == (kind != "histogram"), line
            assert kind != "counter" or number >= 0
            assert (name, labels) not in seen, f"{line} twice"
            seen.add((name, labels))
            families[family][1].append((name, labels or "", number))
    for name, (kind, samples) in families.items():
        if kind == "histogram":
            check_histogram(name, samples)
    return families


def check_histogram(name, samples):
    series = {}
    for sample, labels, value in samples:
        bare = re.sub(r',?le="[^"]*"', "", labels).strip(",")
        series.setdefault(bare, {}).setdefault(sample[len(name):], []).append((labels, value))
    for bare, parts in series.items():
        buckets = [value for _, value in parts["_bucket"]]
        assert buckets == sorted(buckets), f"{name}{{{bare}}}: buckets fall"
        assert 'le="+Inf"' in parts["_bucket"][-1][0]
        assert buckets[-1] == parts["_count"][0][1] and len(parts["_sum"]) == 1


#: Interfaces 6, as far as issue 3 has something to say about it.
NAMES = """
event_handler_lag_seconds event_handler_errors_total event_dispatch_latency
event_dispatch_latency_seconds event_dispatch_failures_total event_dead_letter_total
events_raised_total events_stored_duration_seconds
moontide_events_received_total moontide_deliveries_total moontide_handler_duration_seconds
moontide_handler_cpu_seconds_total moontide_handler_memory_bytes moontide_inflight
moontide_window_events moontide_source_lag moontide_detached moontide_reloads_total
moontide_handler_info moontide_flag moontide_outbox_gap_age_seconds
moontide_kafka_rebalances_total moontide_kafka_connected moontide_database_connected
moontide_settled_total moontide_dead_letters moontide_handler_state moontide_effects_total
moontide_build_info process_cpu_seconds_total process_resident_memory_bytes
process_virtual_memory_bytes process_open_fds process_max_fds process_start_time_seconds
""".split()


def test_metrics_have_their_names_and_keep_the_rules_of_the_format(database, topics, make_host):
    """Requirements S1-60, S1-61, S1-63, S1-64, S2-34, S2-35, S2-36."""
    topic = topics.create("events", 2)
    host = make_host(settings=four_handlers(database, [topic], topics.bootstrap),
                     handlers={"fails": FAILS})
    copy_handlers(host)
    host.start()
    host.ask("/v1/events", "POST", {"eventType": "order.paid", "aggregateType": "Order",
                                    "aggregateId": KEY,
                                    "payload": {"total": "5.00", "currency": "USD"}})
    database.publish("Fails", "Thing", KEY, {"n": 1})
    host.cli("flags", "set", "handler:notification", "off", "--url", host.url)
    topics.produce(topic, [("k", envelope(1), None)])
    wait_count(host, database, 3, "event_audit_log")
    wait_count(host, database, 1, "event_dead_letters")
    try:
        host.wait(lambda: not missing(host), 20, "all names")
    except AssertionError:
        raise AssertionError(f"no sample of {missing(host)}") from None
    families = read_metrics(host.ask("/metrics").body.decode())
    assert families["event_dispatch_latency"][0] == "histogram"
    assert families["event_dispatch_latency_seconds"][0] == "histogram"
    assert host.metric("event_dead_letter_total", handler="fails") == 1
    assert host.metric("event_handler_errors_total", handler="fails", error_type="bug") == 2
    assert host.metric("moontide_settled_total", handler="audit", how="ack") == 3
    assert host.metric("event_handler_lag_seconds") == 0


def missing(host):
    families = read_metrics(host.ask("/metrics").body.decode())
    return [name for name in NAMES if name not in families or not families[name][1]]


def test_openmetrics_is_given_to_who_asks_for_it(database, make_host):
    """Interfaces 6: Prometheus text and OpenMetrics."""
    import urllib.request

    host = make_host(settings=on_outbox(database), handlers={"fails": FAILS}).start()
    request = urllib.request.Request(
        host.url + "/metrics", headers={"Accept": "application/openmetrics-text; version=1.0.0"})
    with urllib.request.urlopen(request, timeout=10) as reply:
        assert reply.headers["Content-Type"].startswith("application/openmetrics-text")
        assert reply.read().decode().endswith("# EOF\n")


STUCK = """
local timer = require "moontide.timer"
return { subscribes = { "Stuck" }, start = "earliest", timeout = "10m",
  handle = function() timer.sleep("5m") end }
"""


def test_readiness_names_the_delivery_that_blocks(database, make_host):
    """Requirements M9, S4-16: not ready when there is lag and no progress."""
    host = make_host(settings=on_outbox(database, drain_timeout="1s"),
                     handlers={"stuck": STUCK}).start()
    assert host.ask("/readyz").status == 200
    id = database.publish("Stuck", "Thing", KEY, {"n": 1})
    host.wait(lambda: host.ask("/readyz").status == 503, 45, "not ready")
    reason = host.ask("/readyz").json()["reasons"][0]
    assert reason["handler"] == "stuck" and reason["blockingEvent"] == id
    assert reason["lagSeconds"] >= 25 and reason["since"] and reason["why"]
    assert host.ask("/healthz").status == 200
    status = host.cli("status", "--url", host.url)
    assert "stuck" in status.stdout and "not ready" in status.stdout


def test_the_api_shows_status_settings_sources_and_handlers(database, make_host):
    """Interfaces 5, and errors as application/problem+json."""
    host = make_host(settings=on_outbox(database), handlers={"fails": FAILS}).start()
    status = host.ask("/v1/status").json()
    assert status["handlers"][0]["name"] == "fails" and status["reasons"] == []
    settings = json.dumps(host.ask("/v1/settings").json())
    assert "workers.count" in settings and database.url not in settings
    assert host.ask("/v1/handlers").json()["handlers"][0]["state"] == "running"
    assert host.ask("/v1/handlers/fails").json()["version"]
    assert "outbox" in host.ask("/v1/sources").json()
    for path, method, body, status in (("/v1/handlers/nobody", "GET", None, 404),
                                       ("/nowhere", "GET", None, 404),
                                       ("/v1/status", "DELETE", None, 405),
                                       ("/v1/events", "POST", {"eventType": "T"}, 422),
                                       ("/v1/dead-letters/999", "GET", None, 404)):
        reply = host.ask(path, method, body)
        assert reply.status == status, f"{method} {path}: {reply.status}"
        assert reply.headers["Content-Type"].startswith("application/problem+json")
        problem = reply.json()
        assert problem["status"] == status and problem["detail"]


def test_tokens_give_rights(database, make_host):
    """Interfaces 5: bearer tokens with rights."""
    host = make_host(settings=on_outbox(database), handlers={"fails": FAILS})
    for name in ("viewer", "boss"):
        (host.folder / name).write_text(f"token-of-the-{name}\n")
    host.settings["http"]["tokens"] = [
        {"token_file": str(host.folder / "viewer"), "rights": ["view"]},
        {"token_file": str(host.folder / "boss"),
         "rights": ["view", "operate", "publish", "redrive"]}]
    host.write_conf()
    host.start()
    for reply in (host.ask("/v1/status"), host.ask("/v1/status", token="wrong-but-long-enough")):
        assert reply.status == 401 and reply.headers["WWW-Authenticate"] == "Bearer"
    assert host.ask("/v1/status", token="token-of-the-viewer").status == 200
    off = {"state": "off"}
    refused = host.ask("/v1/flags/handler:fails", "PUT", off, token="token-of-the-viewer")
    assert refused.status == 403 and not refused.headers["WWW-Authenticate"]
    assert host.ask("/v1/flags/handler:fails", "PUT", off, token="token-of-the-boss").status == 200
    assert host.ask("/healthz").status == 200
    assert host.cli("status", "--url", host.url, check=False).returncode == 4
    assert host.cli("status", "--url", host.url, "--token", "token-of-the-viewer").returncode == 0


def test_commands_have_json_and_exit_codes(database, make_host):
    """Interfaces 1."""
    host = make_host(settings=on_outbox(database), handlers={"fails": FAILS})
    assert host.cli("check", "-c", str(host.conf)).returncode == 0
    gone = host.cli("status", "--url", "http://127.0.0.1:1", check=False)
    assert gone.returncode == 3 and "127.0.0.1:1" in gone.stderr
    assert host.cli("status", env={"MOONTIDE_URL": "http://127.0.0.1:1"}, check=False).returncode == 3
    assert host.cli("frobnicate", check=False).returncode == 2
    assert host.cli("handlers", "frobnicate", check=False).returncode == 2
    assert "workers.count" in host.cli("run", "--help-settings").stdout
    assert "moontide" in host.cli("--version").stdout
    host.start()
    for command in (("status",), ("handlers", "list"), ("handlers", "show", "fails"),
                    ("flags", "list"), ("dead-letters", "list")):
        shown = host.cli(*command, "--json", "--url", host.url)
        json.loads(shown.stdout)
        assert host.cli(*command, "--url", host.url).returncode == 0
    assert host.cli("handlers", "show", "nobody", "--url", host.url, check=False).returncode == 1
    migrations = json_lines(host.cli("migrate", "status", "--json", "-c", str(host.conf)).stdout)
    assert len(migrations) >= 5 and all(m["appliedAt"] for m in migrations)


def test_publish_takes_json_lines_and_returns_ids(database, make_host):
    """Interfaces 1: moontide publish."""
    make_seen(database)
    host = make_host(settings=on_outbox(database), handlers={"recorder": recorder()}).start()
    lines = "\n".join(json.dumps({"eventType": "T", "aggregateType": "A", "aggregateId": KEY,
                                  "payload": {"n": n}}) for n in range(3))
    done = host.cli("publish", "-", "--url", host.url, input=lines)
    ids = done.stdout.split()
    assert len(ids) == 3
    wait_count(host, database, 3)
    assert [row[0] for row in database.query("select event_id from seen order by place")] == ids
    bad = host.cli("publish", "--url", host.url, input='{"eventType": ', check=False)
    assert bad.returncode == 4 and ":1:" in bad.stderr
    bad = host.cli("publish", "--url", host.url, input='{"eventType": "T"}', check=False)
    assert bad.returncode == 4 and "aggregateType" in bad.stderr


def test_dead_letters_are_listed_shown_redriven_and_discarded(database, make_host):
    """Requirements S1-28, S2-13, S2-37."""
    host = make_host(settings=on_outbox(database), handlers={"fails": FAILS}).start()
    for n in (1, 2, 3):
        database.publish("Fails", "Thing", KEY, {"n": n}, metadata={"correlationId": f"c{n}"})
    wait_count(host, database, 3, "event_dead_letters")

    def listed(*args):
        shown = host.cli("dead-letters", "list", *args, "--json", "--url", host.url)
        return json.loads(shown.stdout)["deadLetters"]

    whole = host.ask("/v1/dead-letters").json()
    assert len(whole["deadLetters"]) == 3 and whole["cursor"] is None
    page = host.ask("/v1/dead-letters?limit=2").json()
    assert page["cursor"] == page["deadLetters"][1]["id"]
    rest = host.ask(f"/v1/dead-letters?limit=2&cursor={page['cursor']}").json()
    assert len(rest["deadLetters"]) == 1 and rest["cursor"] is None
    letters = listed()
    assert {letter["error"].rpartition("cannot: ")[2] for letter in letters} == {"1", "2", "3"}
    assert len(listed("--handler", "fails")) == 3 and listed("--handler", "other") == []
    assert len(listed("--correlation", "c2")) == 1 and len(listed("--class", "bug")) == 3
    assert len(listed("--since", "1h")) == 3 and listed("--until", "1h") == []
    first = sorted(letter["id"] for letter in letters)[0]
    shown = json.loads(host.cli("dead-letters", "show", str(first), "--url", host.url).stdout)
    assert "fails.lua" in shown["traceback"] and len(shown["history"]) == 2
    assert shown["body"] and shown["attempts"] == 2
    host.wait(lambda: host.metric("moontide_dead_letters", handler="fails") == 3, 20, "3 waiting")

    # Repaired, then run again.
    host.handler("fails", FAILS.replace("event.payload.n ~= 5", "event.payload.n == 3"))
    host.wait(lambda: host.metric("moontide_reloads_total", handler="fails", result="loaded") == 2
              or host.log_lines("handler loaded")[1:], 10, "the repaired handler")
    dry = json.loads(host.cli("dead-letters", "redrive", "--all", "--dry-run", "--url",
                              host.url).stdout)
    assert dry["count"] == 3
    assert host.cli("dead-letters", "redrive", "--url", host.url, check=False).returncode == 1
    assert host.cli("dead-letters", "redrive", "--all", "--url", host.url).returncode == 0
    wait_count(host, database, 2, "event_dead_letters", "state = 'redriven'", timeout=20)
    wait_count(host, database, 2, "event_deliveries", "outcome = 'redriven'", timeout=10)
    wait_count(host, database, 1, "event_dead_letters", "state = 'dead' and attempts >= 2")
    left = listed()
    assert len(left) == 1
    assert host.cli("dead-letters", "discard", str(left[0]["id"]), "--url", host.url,
                    check=False).returncode == 2
    assert host.cli("dead-letters", "discard", str(left[0]["id"]), "--reason", "a test", "--url",
                    host.url).returncode == 0
    assert count(database, "event_dead_letters", "state = 'discarded'") == 1
    assert listed() == []


def test_letters_of_a_handler_that_is_gone_hold_up_no_other(database, make_host):
    """Requirement S2-37: what nobody can run waits, without the rest and without noise."""
    host = make_host(settings=on_outbox(database), handlers={"fails": FAILS}).start()
    database.publish("Fails", "Thing", KEY, {"n": 1})
    wait_count(host, database, 1, "event_dead_letters")
    database.query("""insert into event_dead_letters (handler, event_id, event_type, source,
        partition, place, format, body, facts, class, state)
        select 'gone', event_id, event_type, source, partition, -n, format, body, facts, class,
        'redriving' from event_dead_letters, generate_series(1, 300) n""")
    host.handler("fails", FAILS.replace("event.payload.n ~= 5", "false"))
    host.wait(lambda: host.log_lines("handler loaded")[1:], 10, "the repaired handler")
    host.cli("dead-letters", "redrive", "--handler", "fails", "--url", host.url)
    wait_count(host, database, 1, "event_dead_letters", "state = 'redriven'", timeout=20)
    assert count(database, "event_dead_letters", "handler = 'gone' and state = 'redriving'") == 300
    assert len(host.log_lines("dead letters run again")) == 1


def test_a_redrive_is_never_wider_than_asked(database, make_host):
    """Requirement S2-37: all of them only when that is said."""
    host = make_host(settings=on_outbox(database), handlers={"fails": FAILS}).start()
    database.publish("Fails", "Thing", KEY, {"n": 1})
    wait_count(host, database, 1, "event_dead_letters")
    for body in ({}, [], {"handler": ""}, {"handler": 5}, {"handler": "fails", "ids": [7]},
                 {"handler": "fails", "typ": "Other"}, {"all": False}, {"dryRun": True}):
        refused = host.ask("/v1/dead-letters/redrive", "POST", body)
        assert refused.status == 400, f"{body}: {refused.body}"
    dry = host.ask("/v1/dead-letters/redrive", "POST", {"handler": "fails", "dryRun": True})
    assert dry.status == 200 and dry.json()["count"] == 1


def test_a_dry_run_shows_effects_and_changes_nothing(database, make_host):
    """Design 7: record mode; SQL runs for real and is rolled back."""
    host = make_host(settings=four_handlers(database))
    copy_handlers(host)
    id = database.publish("order.paid", "Order", KEY, {"total": "12.50", "currency": "USD",
                                                       "email": "ann@example.com"})
    done = host.cli("dry-run", "analytics", "--event", id, "--json", "-c", str(host.conf))
    run = json.loads(done.stdout)[0]
    assert run["verdict"] == "ack" and run["event"] == id
    assert "event_analytics_hourly" in json.dumps(run["effects"])
    assert count(database, "event_analytics_hourly") == 0

    file = host.folder / "events.json"
    file.write_bytes(envelope(1, type="InvoiceIssued", payload={
        "number": "I1", "email": "ann@example.com", "amount": "5.00", "currency": "USD"}))
    done = host.cli("dry-run", "notification", "--file", str(file), "-c", str(host.conf))
    assert "mail.send" in done.stdout and "ann@example.com" in done.stdout
    assert count(database, "notifications") == 0
    assert count(database, "event_inbox") == 0

    # --last: of the types that the handler subscribes to, however many others came later.
    host.handler("some", """
        return { subscribes = { "Invoice*", "order.*", "!order.test" }, handle = function() end }""")
    host.handler("every", 'return { subscribes = { "*" }, handle = function() end }')
    ids = {type: database.publish(type, "T", KEY, {}) for type in (
        "order.paid", "InvoiceIssued", "order.test", "order.a.b", "Other")}

    def last(handler, n):
        done = host.cli("dry-run", handler, "--last", str(n), "--json", "-c", str(host.conf))
        return [run["event"] for run in json.loads(done.stdout)]

    assert last("some", 1) == [ids["InvoiceIssued"]]
    assert last("some", 3) == [id, ids["order.paid"], ids["InvoiceIssued"]]
    assert last("every", 2) == [ids["order.a.b"], ids["Other"]]
    host.handler("none", 'return { subscribes = { "Never" }, handle = function() end }')
    none = host.cli("dry-run", "none", "--last", "1", "-c", str(host.conf), check=False)
    assert none.returncode == 4 and "no event" in none.stderr

    bad = host.cli("dry-run", "nobody", "--last", "1", "-c", str(host.conf), check=False)
    assert bad.returncode == 4 and "nobody" in bad.stderr


def test_a_dry_run_reads_the_store_of_its_schema(postgres, make_host):
    """database.schema counts for commands without a host, too."""
    postgres.query("create database schemas")
    try:
        host = make_host(settings={"database": {"url": postgres.url("schemas"), "schema": "mt"}},
                         handlers={"every": 'return { subscribes = { "*" }, handle = function() end }'})
        host.cli("migrate", "up", "-c", str(host.conf))
        id = postgres.query("select mt.publish_event('T', 'A', %s, '{}')", (KEY,), "schemas")[0][0]
        for args in (("--last", "1"), ("--event", id)):
            done = host.cli("dry-run", "every", *args, "--json", "-c", str(host.conf))
            assert [run["event"] for run in json.loads(done.stdout)] == [id]
    finally:
        postgres.query("drop database schemas with (force)")


#: Neither transaction nor inbox: whatever is delivered again is there twice.
PLAIN = """
local db = require "moontide.db"
return {
  subscribes = { "*" }, start = "earliest", allow = { db = true }, concurrency = 16,
  handle = function(event, ctx)
    local ok, err = db.exec("INSERT INTO seen (handler, event_id, key, n) VALUES ($1, $2, $3, $4)",
      ctx.handler, event.id, event.aggregate_id, event.payload.n)
    if not ok then return ctx.retry(err) end
  end,
}
"""


def test_sigterm_drains_and_leaves_nothing_behind(database, topics, make_host):
    """Requirement: SIGTERM drains, exit 0, no duplicates, no child left."""
    make_seen(database)
    topic = topics.create("events", 4)
    # Small windows: a drain finishes what was taken, and most is not taken yet.
    settings = on_outbox(database, rdkafka=QUICK_GROUP, window={"events": 100},
                         kafka={"brokers": topics.bootstrap, "topics": [topic],
                                "group_id": topics.prefix})
    host = make_host(settings=settings, handlers={"recorder": recorder(), "plain": PLAIN})
    written = 0
    # First while the host may still be joining its group, then with both sources flowing.
    for sig, flowing in ((signal.SIGTERM, "true"), (signal.SIGTERM, "key like 'k%'"),
                         (signal.SIGTERM, "key like 'k%'"), (signal.SIGINT, "key like 'k%'")):
        topics.produce(topic, [(f"k{n % 9}", envelope(n, aggregate_id=f"k{n % 9}"), None)
                               for n in range(written, written + 1500)])
        database.query("""select publish_event('Changed', 'Thing',
                                 '00000000-0000-4000-8000-00000000000' || i % 9,
                                 jsonb_build_object('n', i))
                          from generate_series(1, 500) i""")
        written += 2000  # with those of the outbox
        before = count(database, where=flowing)
        host.start()
        wait_count(host, database, before + 100, where=flowing)
        workers = host.worker_pids()
        assert workers
        assert host.stop(sig) == 0
        assert host.log_lines("drained")
        wait_gone(workers)
        print(f"stopped at {count(database)} of {2 * written}")
        assert_none_twice(database)
    host.start()
    wait_count(host, database, 2 * written)
    host.wait(lambda: host.metric("moontide_window_events") == 0, 20, "everything settled")
    assert host.metric("moontide_duplicates_total") == 0
    assert count(database) == 2 * written
    assert_none_twice(database)


def assert_none_twice(database):
    twice = database.query("""select handler, event_id, count(*) from seen
                              group by 1, 2 having count(*) > 1""")
    assert not twice, f"{len(twice)} doubled, such as {twice[:3]}"


def test_every_log_line_is_json_with_time_level_and_component(database, make_host):
    """Design 10: JSON logs, also of the workers."""
    host = make_host(settings=on_outbox(database, log={"level": "debug"}), handlers={"talks": """
        local log = require "moontide.log"
        return { subscribes = { "*" }, start = "earliest", handle = function(event, ctx)
          log.info('a "quoted"\\nline', { n = 1, text = "x = y" }) ctx.log.warn("by ctx") end }"""})
    host.start()
    database.publish("T", "A", KEY, {"n": 1})
    host.wait(lambda: host.log_lines("by ctx"), 20, "the handler's line")
    assert host.stop() == 0
    for line in host.log_text().splitlines():
        entry = json.loads(line)
        assert {"at", "level", "component", "message", "process"} <= set(entry), line
        datetime.fromisoformat(entry["at"].replace("Z", "+00:00"))
        assert entry["level"] in ("debug", "info", "warn", "error")
    assert host.log_lines("by ctx")[0]["handler"] == "talks"


def test_sighup_reads_the_configuration_again(database, make_host):
    """Design 10: SIGHUP reloads; a broken file changes nothing."""
    make_seen(database)
    host = make_host(settings=on_outbox(database), handlers={"recorder": recorder()}).start()
    host.settings["flags"] = {"handler:recorder": "off"}
    host.write_conf()
    host.process.send_signal(signal.SIGHUP)
    host.wait(lambda: host.metric("moontide_flag", name="handler:recorder") == 0, 10, "off by file")
    database.publish("T", "A", KEY, {"n": 1})
    host.conf.write_text("return { nonsense = 1 }")
    host.process.send_signal(signal.SIGHUP)
    host.wait(lambda: host.log_lines("configuration refused, the former one goes on"), 10, "refused")
    assert count(database) == 0
    host.settings["flags"] = {}
    host.write_conf()
    host.process.send_signal(signal.SIGHUP)
    wait_count(host, database, 1)


def test_a_second_signal_ends_a_host_at_once_whatever_runs(database, make_host):
    """Exit code 1 says that it did not drain; a crash would say something else."""
    once = 'return { subscribes = { "T" }, start = "earliest", retry = { max_attempts = 1 }, %s }'
    host = make_host(settings=on_outbox(database, workers={"count": 1, "soft_limit": "120s"}),
                     handlers={"one": once % 'handle = function() error("no") end'}).start()
    database.publish("T", "A", KEY, {"n": 1})
    wait_count(host, database, 1, "event_dead_letters")
    before = host.ask("/v1/handlers/one").json()["version"]
    host.handler("one", once % "handle = function() while true do end end")
    host.wait(lambda: host.ask("/v1/handlers/one").json()["version"] != before, 10, "a new version")
    host.cli("dead-letters", "redrive", "--all", "--url", host.url)
    host.wait(lambda: host.metric("moontide_inflight", handler="one") == 1, 10, "it runs again")
    host.process.send_signal(signal.SIGTERM)
    host.wait(lambda: host.log_lines("draining"), 10, "draining")
    host.process.send_signal(signal.SIGTERM)
    assert host.process.wait(20) == 1, host.log_text()


def test_a_second_signal_ends_a_host_at_once_whatever_is_asked(database, make_host):
    host = make_host(settings=on_outbox(database), handlers={"one": recorder()}).start()
    locking = database.connect()
    with locking.cursor() as cursor:
        cursor.execute("lock table event_dead_letters, event_flags")
    asking = [threading.Thread(target=host.ask, args=asked, daemon=True) for asked in (
        ("/v1/dead-letters",), ("/v1/dead-letters/1",),
        ("/v1/flags/handler:one", "PUT", {"state": "off"}))]
    for thread in asking:
        thread.start()
    host.wait(lambda: database.value("select count(*) from pg_stat_activity where datname = "
                                     "current_database() and wait_event_type = 'Lock'") >= 3,
              20, "all wait")
    host.process.send_signal(signal.SIGTERM)
    host.wait(lambda: host.log_lines("draining"), 10, "draining")
    host.process.send_signal(signal.SIGTERM)
    assert host.process.wait(20) == 1, host.log_text()
    locking.close()


def test_a_reload_with_a_bad_flag_changes_no_flag(database, make_host):
    """What the file held before stays held, also when flags change afterwards."""
    make_seen(database)
    host = make_host(settings=on_outbox(database, flags={"handler:one": "off"}),
                     handlers={"one": recorder(), "two": recorder()}).start()

    def held():
        return [f["name"] for f in host.ask("/v1/flags").json()["flags"] if f["state"] == "off"]
    assert held() == ["handler:one"]
    for flags in ({"handler:two": "of"}, {"nobody": "off"}):
        host.settings["flags"] = flags
        host.write_conf()
        refused = len(host.log_lines("configuration refused, the former one goes on"))
        host.process.send_signal(signal.SIGHUP)
        host.wait(lambda: len(host.log_lines("configuration refused, the former one goes on"))
                  > refused, 10, "refused")
        assert held() == ["handler:one"]
        assert host.ask("/v1/settings").json()["flags"] == {"handler:one": "off"}
    host.settings["flags"] = {"handler:two": "off"}
    host.write_conf()
    host.process.send_signal(signal.SIGHUP)
    host.wait(lambda: held() == ["handler:two"], 10, "the good file")


def test_the_installed_binary_runs_from_anywhere(database, make_host, tmp_path):
    """Interfaces 1: runs from any directory out of the build tree."""
    host = make_host(settings=on_outbox(database), handlers={"fails": FAILS})
    assert Path(host.folder) != Path.cwd()
    assert host.cli("check", "-c", "moontide.lua").returncode == 0
