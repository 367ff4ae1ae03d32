"""Connections as they are in earnest: TLS, passwords, poolers, several databases."""

import json
from urllib.parse import quote

import pytest
from harness import Catcher, Database, envelope
from scenes import (QUICK_GROUP, assert_once_and_in_order, count, make_seen, recorder,
                    wait_count)
from servers import Authority, Bouncer, Postgres, free_port, wait_for

# --- Kafka with TLS and passwords ------------------------------------------------


def secure_kafka(kafka, topic, group, mechanism, **more):
    return {"kafka": {"brokers": f"127.0.0.1:{kafka.secure}", "topics": [topic],
                      "group_id": group},
            "rdkafka": {**QUICK_GROUP, "security.protocol": "SASL_SSL",
                        "ssl.ca.location": str(kafka.authority.ca),
                        "sasl.mechanism": mechanism, "sasl.username": kafka.USER,
                        "sasl.password": kafka.PASSWORD, **more}}


@pytest.mark.parametrize("mechanism", ["PLAIN", "SCRAM-SHA-256"])
def test_kafka_with_tls_and_a_password(database, kafka, topics, make_host, mechanism):
    """Interfaces 2: any rdkafka.* key passes through; consumer and producer both use them."""
    make_seen(database)
    topic = topics.create("events", 2)
    settings = secure_kafka(kafka, topic, topics.prefix, mechanism)
    settings["database"] = {"url": database.url}
    host = make_host(settings=settings, handlers={"recorder": recorder()})
    assert host.cli("check", "-c", str(host.conf)).returncode == 0
    host.start()
    topics.produce(topic, [("k", envelope(n, aggregate_id="k"), None) for n in range(20)])
    wait_count(host, database, 20)
    host.wait(lambda: sum(max(o, 0) for o in topics.committed(topic, topics.prefix).values()) == 20,
              20, "the group's offsets")
    host.wait(lambda: host.metric("moontide_kafka_connected") == 1, 20, "the metric")
    shown = host.ask("/v1/settings").body.decode()
    assert kafka.PASSWORD not in shown and kafka.PASSWORD not in host.log_text()
    assert host.stop() == 0


def test_a_wrong_password_or_a_wrong_authority_is_said(database, kafka, topics, make_host, tmp_path):
    """Who cannot log in is told why, is not ready, and does not end."""
    topic = topics.create("events", 1)
    other = Authority(tmp_path / "other")
    for wrong, word in (({"sasl.password": "wrong"}, "uthentication"),
                        ({"ssl.ca.location": str(other.ca)}, "certificate")):
        settings = secure_kafka(kafka, topic, topics.prefix, "SCRAM-SHA-256", **wrong)
        settings["database"] = {"url": database.url}
        host = make_host(settings=settings, handlers={"recorder": recorder()}).start()
        host.wait(lambda: any(word in line.get("reason", "") for line in
                              host.log_lines("client error")), 30, f"{word} in the log")
        reply = host.ask("/readyz")
        assert reply.status == 503 and "Kafka" in reply.body.decode()
        assert host.metric("moontide_kafka_connected") == 0
        assert host.stop() == 0


# --- PostgreSQL with TLS and a password --------------------------------------------


@pytest.fixture(scope="module")
def tls_postgres(scratch, authority):
    """A cluster where the user `app` must come over TLS with a password."""
    server = Postgres(scratch / "pg.tls").init()
    cert, key = authority.issue("database")
    for name, source in (("server.pem", cert), ("server.key", key)):
        path = server.data / name
        path.write_bytes(source.read_bytes())
        path.chmod(0o600)
        if server.user:
            import shutil
            shutil.chown(path, server.user, server.user)
    rules = server.data / "pg_hba.conf"
    rules.write_text("hostssl all app 127.0.0.1/32 scram-sha-256\n"
                     "host all app all reject\n"
                     "host all postgres 127.0.0.1/32 trust\n")
    server.settings.update(ssl="on", ssl_cert_file="server.pem", ssl_key_file="server.key")
    server.start()
    server.query("create role app login password 'p@ss/word' superuser")
    yield server
    server.stop()


@pytest.fixture
def tls_database(tls_postgres):
    name = f"tls{free_port()}"
    tls_postgres.query(f"create database {name}")
    yield Database(tls_postgres, name)
    tls_postgres.query(f"drop database {name} with (force)")


def tls_url(database, ca, host="127.0.0.1", mode="verify-full"):
    return (f"postgres://app:{quote('p@ss/word', safe='')}@{host}:{database.server.port}/"
            f"{database.name}?sslmode={mode}&sslrootcert={ca}")


@pytest.mark.parametrize("address", ["127.0.0.1", "localhost"])
def test_postgresql_with_tls_and_a_password(tls_database, authority, make_host, address):
    """sslmode=verify-full for migrate, the host, the outbox reader and the workers."""
    database = tls_database
    make_seen(database)
    host = make_host(settings={"database": {"url": tls_url(database, authority.ca, address)},
                               "outbox": {"interval": "50ms"}},
                     handlers={"recorder": recorder()})
    host.cli("migrate", "up", "-c", str(host.conf))
    host.start()
    for n in range(10):
        database.publish("T", "A", "00000000-0000-4000-8000-000000000001", {"n": n})
    wait_count(host, database, 10)
    rows = database.query("""select a.application_name, bool_and(s.ssl)
        from pg_stat_activity a join pg_stat_ssl s using (pid)
        where a.usename = 'app' group by 1""")
    assert all(ssl for _, ssl in rows)
    assert {"moontide host"} < {name for name, _ in rows}, rows
    assert any(name.startswith("moontide ") and " worker " in name for name, _ in rows)
    assert "p@ss" not in host.log_text() and "p%40ss" not in host.log_text()
    assert host.stop() == 0


def test_a_database_that_cannot_prove_itself_is_refused(tls_database, make_host, tmp_path):
    other = Authority(tmp_path / "other")
    host = make_host(settings={"database": {"url": tls_url(tls_database, other.ca)}},
                     handlers={"recorder": recorder()})
    done = host.cli("migrate", "up", "-c", str(host.conf), check=False)
    assert done.returncode != 0 and "certificate verify failed" in done.stderr
    host.spawn()
    host.wait(lambda: "certificate verify failed" in host.log_text() and host.port, 20,
              "the reason in the log")
    assert host.ask("/readyz").status == 503
    assert host.metric("moontide_database_connected", name="main") == 0
    assert host.stop() == 0


# --- mail with a login -----------------------------------------------------------------

MAILS = """
local mail = require "moontide.mail"
return {
  subscribes = { "Mail" }, start = "earliest", allow = { mail = true },
  retry = { max_attempts = 1 },
  handle = function(event, ctx)
    local ok, err = mail.send { to = "ann@example.com", subject = "n" .. event.payload.n, text = "hi" }
    if not ok then return ctx.dead(err) end
  end,
}
"""

LOGIN = "relay@example.com:p@ss:w/rd"


def login_url(scheme, catcher, password="p@ss:w/rd", host="localhost"):
    return (f"{scheme}://{quote('relay@example.com', safe='')}:{quote(password, safe='')}"
            f"@{host}:{catcher.smtp}")


@pytest.fixture
def make_catcher(tmp_path):
    catchers = []

    def make(*options):
        catchers.append(Catcher(tmp_path / f"catcher{len(catchers)}", *options))
        return catchers[-1]

    yield make
    for catcher in catchers:
        catcher.end()


def mail_host(make_host, database, url, **more):
    host = make_host(settings={"database": {"url": database.url}, "outbox": {"interval": "50ms"},
                               "mail": {"url": url, "from": "demo@example.com", **more}},
                     handlers={"mails": MAILS}).start()
    database.publish("Mail", "A", "00000000-0000-4000-8000-000000000001", {"n": 1})
    return host


@pytest.mark.parametrize("scheme,without,mechanism", [
    ("smtp", "LOGIN", "PLAIN"), ("smtp", "PLAIN", "LOGIN"), ("smtps", "LOGIN", "PLAIN")])
def test_mail_with_a_login(database, authority, make_host, make_catcher, scheme, without, mechanism):
    """mail.url with user and password: STARTTLS or smtps, AUTH PLAIN or LOGIN."""
    cert, key = authority.issue("mail")
    at_once = ("--tls-at-once",) if scheme == "smtps" else ()
    catcher = make_catcher("--tls-cert", cert, "--tls-key", key, "--login", LOGIN,
                           "--without", without, *at_once)
    host = mail_host(make_host, database, login_url(scheme, catcher),
                     ca_file=str(authority.ca))
    host.wait(lambda: catcher.items("mail") or count(database, "event_dead_letters"), 20, "the mail")
    assert database.query("select error from event_dead_letters") == []
    mail = catcher.items("mail")[0]
    assert mail["summary"] == "ann@example.com: n1"
    assert mail["login"] == f"relay@example.com by {mechanism}"
    assert "p@ss" not in host.log_text() and "p%40ss" not in host.log_text()


def dead_letter(host, database):
    wait_count(host, database, 1, "event_dead_letters", timeout=20)
    return database.query("select class, error from event_dead_letters")[0]


def test_a_login_that_is_refused_is_an_error_of_the_call(database, authority, make_host, make_catcher):
    cert, key = authority.issue("mail")
    catcher = make_catcher("--tls-cert", cert, "--tls-key", key, "--login", LOGIN)
    host = mail_host(make_host, database, login_url("smtp", catcher, "wrong"),
                     ca_file=str(authority.ca))
    kind, error = dead_letter(host, database)
    assert kind == "permanent" and "wrong" not in error, (kind, error)
    assert catcher.items("mail") == []


def test_a_password_does_not_travel_in_the_clear(database, authority, make_host, make_catcher):
    """Neither to a server without TLS nor to one whose certificate nobody vouches for."""
    cert, key = authority.issue("mail")
    for options in ((), ("--tls-cert", cert, "--tls-key", key, "--login", LOGIN)):
        catcher = make_catcher(*options)
        host = mail_host(make_host, database, login_url("smtp", catcher))
        kind, error = dead_letter(host, database)
        assert kind == "transient" and "p@ss" not in error, (kind, error)
        assert catcher.items("mail") == []
        host.stop()
        database.query("delete from event_dead_letters")


# --- behind a pooler ---------------------------------------------------------------------


@pytest.fixture
def bouncer(scratch, postgres):
    server = Bouncer(scratch / f"bouncer{free_port()}", postgres)
    yield server
    server.end()


def test_behind_a_pooler_in_transaction_mode(database, topics, bouncer, make_host):
    """database.prepare = false: both sources, positions, transactions, batches, flags, a kill."""
    make_seen(database)
    topic = topics.create("events", 2)
    number = 600
    host = make_host(settings={
        "database": {"url": bouncer.url(database), "prepare": False},
        "outbox": {"interval": "50ms"},
        "kafka": {"brokers": topics.bootstrap, "topics": [topic], "group_id": topics.prefix},
        "rdkafka": QUICK_GROUP},
        handlers={"recorder": recorder(), "batches": recorder().replace(
            "handle = function(event, ctx)",
            "batch = { max = 20 }, handle_batch = function(events, ctx) for _, event in ipairs(events) do"
        ).replace("\n  end,\n}", "\n  end end,\n}"), "alone": """
local db = require "moontide.db"
return { subscribes = { "Stored" }, start = "earliest", allow = { db = true },
  handle = function(event, ctx)
    local rows, err = db.query("select count(*) as n from seen where event_id = $1", event.id)
    if not rows then return ctx.retry(err) end
    local ok, err2 = db.transaction(function(tx)
      tx:copy("seen", { "handler", "event_id", "key", "n" },
              { { ctx.handler, event.id, event.aggregate_id, event.payload.n } })
    end)
    if not ok then return ctx.retry(err2) end
  end }"""}).start()
    key = "00000000-0000-4000-8000-000000000001"
    expected = {}
    topics.produce(topic, [(f"k{n % 7}", envelope(n, aggregate_id=f"k{n % 7}"), None)
                           for n in range(number)])
    for n in range(number):
        expected[f"00000000-0000-4000-8000-{n:012d}"] = (f"k{n % 7}", n)
    stored = [database.publish("Stored", "A", key, {"n": n}) for n in range(50)]
    wait_count(host, database, 200, where="handler = 'recorder'")
    host.kill()
    host.start()
    for name in ("recorder", "batches"):
        wait_count(host, database, number + 50, where=f"handler = '{name}'")
    wait_count(host, database, 50, where="handler = 'alone'")
    expected.update({id: (key, n) for n, id in enumerate(stored)})
    for name in ("recorder", "batches"):
        assert_once_and_in_order(database, name, expected)
    assert count(database, "event_dead_letters") == 0
    # Sessions that know nothing of moontide keep the promises of a transaction too.
    bouncer.renew()
    host.handler("limits", """
return { subscribes = { "Limits" }, start = "earliest", transaction = true, timeout = "5s",
  handle = function(event, ctx)
    local row = ctx.tx:query("select current_setting('idle_in_transaction_session_timeout') as i,"
      .. " current_setting('statement_timeout') as s")[1]
    ctx.tx:exec("insert into seen (handler, key, version) values ($1, $2, $3)",
      ctx.handler, row.i, row.s)
  end }""")
    database.publish("Limits", "A", key, {"n": 0})
    wait_count(host, database, 1, where="handler = 'limits'")
    (idle, limit), = database.query("select key, version from seen where handler = 'limits'")
    assert idle == "4800ms" and limit.endswith("ms") and 1000 < int(limit[:-2]) < 5000, (idle, limit)
    # Notices do not pass a pooler: a flag set by another is seen at the next look.
    database.query("insert into event_flags (name, state, when_off) values "
                   "('handler:recorder', 'off', 'hold')")
    host.wait(lambda: host.metric("moontide_flag", name="handler:recorder") == 0, 20, "the flag")
    host.wait(lambda: host.metric("moontide_source_lag") == 0, 20, "lag 0")
    assert host.stop() == 0
    assert database.value("select count(*) from pg_prepared_statements") == 0


# --- static membership ---------------------------------------------------------------------


def test_a_restart_with_static_membership_moves_no_partition(database, topics, make_host):
    """kafka.instance_id: within the session's timeout the group does not notice."""
    make_seen(database)
    topic = topics.create("events", 4)
    hosts = []
    for name in ("a", "b"):
        hosts.append(make_host(settings={
            "database": {"url": database.url}, "outbox": {"enabled": "off"},
            "workers": {"count": 1},
            "kafka": {"brokers": topics.bootstrap, "topics": [topic],
                      "group_id": topics.prefix, "instance_id": f"host-{name}"},
            "rdkafka": {"session.timeout.ms": 30000, "heartbeat.interval.ms": 300}},
            handlers={"recorder": recorder()}))
        hosts[-1].start()
        hosts[-1].wait(lambda: owned(hosts[-1]), 40, "partitions")
    a, b = hosts
    b.wait(lambda: len(owned(a)) == 2 and len(owned(b)) == 2, 40, "two partitions each")
    before, rebalances = (owned(a), owned(b)), b.metric("moontide_kafka_rebalances_total")
    sent = 0

    def write(number):
        nonlocal sent
        topics.produce(topic, [(f"k{n % 23}", envelope(n, aggregate_id=f"k{n % 23}"), None)
                               for n in range(sent, sent + number)])
        sent += number

    write(200)
    wait_count(b, database, 200)
    assert a.stop() == 0
    write(200)
    a.start()
    a.wait(lambda: owned(a) == before[0], 25, "its partitions again")
    write(200)
    wait_count(a, database, 600)
    assert owned(b) == before[1]
    assert b.metric("moontide_kafka_rebalances_total") == rebalances
    assert_once_and_in_order(database, "recorder", {
        f"00000000-0000-4000-8000-{n:012d}": (f"k{n % 23}", n) for n in range(sent)})


def owned(host):
    reply = host.ask("/v1/sources")
    return sorted(p["partition"] for p in reply.json()["partitions"]
                  if p["source"] == "kafka" and p["state"] == "running") if reply else []


# --- other databases ---------------------------------------------------------------------------

REPORTS = """
local db = require "moontide.db"
local reports = db.use("reports")
return { subscribes = { "*" }, start = "earliest", allow = { db = { "reports" } },
  retry = { max_attempts = 2, base = "10ms" },
  handle = function(event, ctx)
    if event.payload.main then return ctx.dead(select(2, pcall(db.query, "select 1"))) end
    if event.payload.other then return ctx.dead(select(2, pcall(db.use("other").query, "select 1"))) end
    local ok, err = reports.transaction(function(tx)
      assert(tx:exec("insert into lines (id, n) values ($1, $2)", event.id, event.payload.n))
      if event.payload.back then return nil, "not this one" end
    end)
    local rows = assert(reports.query("select count(*) as n from lines where id = $1", event.id))
    if rows[1].n ~= (event.payload.back and 0 or 1) then return ctx.dead("count " .. tostring(rows[1].n)) end
    if event.payload.copy then
      assert(reports.copy("lines", { "id", "n" }, { { event.id .. "-2", 7 } }))
      assert(reports.exec("update lines set n = 8 where id = $1", event.id .. "-2") == 1)
    end
  end }
"""


def test_handlers_reach_the_databases_they_may_and_no_other(postgres, database, make_host):
    """Interfaces 2 and 7: databases.<name>, db.use(name), allow = { db = { name } }."""
    name = f"reports{free_port()}"
    postgres.query(f"create database {name}")
    reports = Database(postgres, name)
    try:
        reports.query("create table lines (id text primary key, n int)")
        host = make_host(settings={"database": {"url": database.url},
                                   "outbox": {"interval": "50ms"},
                                   "databases": {"reports": {"url_file": "reports.url"}}},
                         handlers={"reports": REPORTS})
        (host.folder / "reports.url").write_text(reports.url + "\n")
        host.start()
        key = "00000000-0000-4000-8000-000000000001"
        ids = [database.publish("T", "A", key, {"n": n, **more}) for n, more in enumerate(
            ({}, {"back": True}, {"copy": True}, {"main": True}, {"other": True}))]
        wait_count(host, database, 2, "event_dead_letters")
        errors = dict(database.query("select event_id::text, error from event_dead_letters"))
        assert "allow = { db = true }" in errors[ids[3]]
        assert '"other"' in errors[ids[4]]
        assert set(reports.query("select id, n from lines")) == {
            (ids[0], 0), (ids[2], 2), (ids[2] + "-2", 8)}
        host.wait(lambda: host.metric("moontide_database_connected", name="reports") == 1, 20,
                  "the metric of the second database")
        assert reports.url not in host.ask("/v1/settings").body.decode()
        assert host.stop() == 0
    finally:
        postgres.query(f"drop database {name} with (force)")


# --- Kafka to Kafka, no database ------------------------------------------------------------------

FORWARDS = """
local events = require "moontide.events"
return { subscribes = { "OrderPaid" }, start = "earliest",
  retry = { max_attempts = 3, base = "10ms" },
  handle = function(event, ctx)
    local id, err = events.publish { type = "ReceiptIssued", aggregate_type = "Receipt",
      aggregate_id = event.aggregate_id, payload = { n = event.payload.n, none = event.payload.none } }
    if not id then return ctx.retry(err) end
    if event.payload.twice and event.attempt < 2 then return ctx.retry("again") end
  end }
"""


def test_a_handler_publishes_to_kafka_without_any_database(topics, make_host):
    """Interfaces 3: topic = publish.topic_prefix .. aggregate type; key, headers and envelope."""
    topic = topics.create("in", 2)
    out = topics.create("out.Receipt", 2)
    host = make_host(settings={
        "kafka": {"brokers": topics.bootstrap, "topics": [topic], "group_id": topics.prefix},
        "publish": {"topic_prefix": f"{topics.prefix}.out."}, "rdkafka": QUICK_GROUP},
        handlers={"forwards": FORWARDS}).start()
    parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    topics.produce(topic, [(f"o{n}", envelope(
        n, type="OrderPaid", aggregate_id=f"o{n}",
        payload={"n": n, "twice": n == 3},
        metadata={"correlationId": "c1", "traceparent": parent}), None) for n in range(10)])
    host.wait(lambda: sum(topics.ends(out).values()) >= 11, 30, "eleven records")
    host.wait(lambda: host.metric("moontide_settled_total", handler="forwards", how="ack") == 10, 20,
              "all settled")
    records = topics.read_all(out)
    bodies = [json.loads(record.value()) for record in records]
    assert len({body["id"] for body in bodies}) == 10, "a retry publishes the same event"
    for record, body in zip(records, bodies):
        headers = {name: value.decode() for name, value in record.headers()}
        assert record.key().decode() == body["aggregateId"] == f"o{body['payload']['n']}"
        assert headers == {"id": body["id"], "type": "ReceiptIssued", "aggregate_type": "Receipt",
                           "version": "1", "occurred_at": body["occurredAt"],
                           "traceparent": parent, "correlation_id": "c1"}
        assert body["eventType"] == "ReceiptIssued" and body["eventVersion"] == 1
        assert body["metadata"]["causationId"].startswith("00000000-0000-4000-8000-")
        assert body["metadata"]["correlationId"] == "c1"
    assert host.metric("events_raised_total", aggregate_type="Receipt",
                       event_type="ReceiptIssued") == 11
    assert host.metric("events_published_total", topic=out, status="ok") == 11
    assert host.stop() == 0


# --- jit = true --------------------------------------------------------------------------------------

LOOPS = """
return { subscribes = { "Loop" }, start = "earliest", timeout = "20s", %s
  retry = { max_attempts = 1 },
  handle = function(event, ctx)
    local sum = 0
    repeat
      for i = 1, event.payload.n do sum = sum + i end
    until not event.payload.forever
    if sum ~= event.payload.sum then return ctx.dead("sum " .. sum) end
  end }
"""


def test_a_handler_with_jit_is_compiled_and_still_limited(database, make_host):
    """HANDLERS: jit compiles hot loops; an endless one ends with its worker."""
    number = 50_000_000
    host = make_host(settings={"database": {"url": database.url}, "outbox": {"interval": "50ms"},
                               "workers": {"count": 1, "soft_limit": "10s", "hard_limit": "12s"}},
                     handlers={"plain": LOOPS % "", "compiled": LOOPS % "jit = true,"}).start()
    key = "00000000-0000-4000-8000-000000000001"
    database.publish("Loop", "A", key, {"n": number, "sum": number * (number + 1) // 2})
    host.wait(lambda: all(host.metric("moontide_settled_total", handler=name, how="ack") == 1
                          for name in ("plain", "compiled")), 60, "both loops")
    host.wait(lambda: all(host.metric("moontide_handler_cpu_seconds_total", handler=name) > 0
                          for name in ("plain", "compiled")), 20, "CPU time of both")
    cpu = {name: host.metric("moontide_handler_cpu_seconds_total", handler=name)
           for name in ("plain", "compiled")}
    assert cpu["compiled"] < cpu["plain"] / 1.5, cpu
    assert host.stop() == 0

    # Compiled code cannot be interrupted: the hard limit ends the worker.
    host.settings["workers"] = {"count": 1, "soft_limit": "100ms", "hard_limit": "600ms"}
    (host.handlers / "plain.lua").unlink()
    host.write_conf()
    host.start()
    id = database.publish("Loop", "A", key, {"n": 1000, "forever": True})
    wait_count(host, database, 1, "event_dead_letters", timeout=60)
    assert database.query("select handler, event_id::text, class from event_dead_letters") == [
        ("compiled", id, "limit")]
    database.publish("Loop", "A", key, {"n": 7, "sum": 28})
    host.wait(lambda: host.metric("moontide_settled_total", handler="compiled", how="ack") == 1, 30,
              "the next event")
    assert host.stop() == 0
