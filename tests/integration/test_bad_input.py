"""Whatever comes in: a clear message, nothing lost, the host goes on."""

import urllib.error
import urllib.request

import pytest
from harness import envelope
from scenes import (QUICK_GROUP, count, ends_and_lag_are_reached, make_seen, recorder, wait_count)
from servers import free_port

LIMIT = 1 << 20  # event.max_bytes


def sized_event(number, size):
    """An envelope of exactly `size` bytes."""
    bare = envelope(number, aggregate_id="k", payload={"n": number, "x": ""})
    return envelope(number, aggregate_id="k", payload={"n": number, "x": "x" * (size - len(bare))})


def nested(depth):
    return (b'{"id":"nested","eventType":"T","aggregateType":"A","aggregateId":"k","payload":'
            + b'{"n":50,"x":' + b"[" * depth + b"]" * depth + b"}}")


def test_bad_records_of_kafka_become_dead_letters_with_their_bytes(database, topics, make_host):
    """Issue 3, done 9; requirements C6, S4-19."""
    make_seen(database)
    topic = topics.create("events", 1, max_message_bytes=3 * LIMIT)
    bad = {
        "empty": (b"", "empty"),
        "tombstone": (None, "tombstone"),
        "text": (b"hello?", ""),
        "half": (b'{"eventType": "T", ', ""),
        "list": (b"[1, 2]", ""),
        "no type": (b'{"id": "x", "payload": {}}', "type"),
        "not utf-8": (b'{"id":"u","eventType":"T\xff\xfe","aggregateType":"A","aggregateId":"k",'
                      b'"payload":{"n":1}}', "UTF-8"),
        "long id": (b'{"id":"%s","eventType":"T","payload":{"n":1}}' % (b"x" * 1025), "id"),
        "zeros": (b"\0" * 100, ""),
        "too large": (sized_event(40, LIMIT + 1), ""),
        "too deep": (nested(100_000), ""),
    }
    good = {
        "largest": sized_event(10, LIMIT),
        "odd text": envelope(11, aggregate_id="k\u0000\u202e", payload={"n": 11, "x": "\u0000😀"}),
        "unknown type": envelope(12, type="NobodyKnowsThis", aggregate_id="k"),
        "nested a little": nested(50),
        "big numbers": envelope(13, aggregate_id="k", payload={"n": 13, "x": 2**70}),
    }
    host = make_host(settings={
        "database": {"url": database.url}, "outbox": {"enabled": "off"},
        "kafka": {"brokers": topics.bootstrap, "topics": [topic], "group_id": topics.prefix},
        "rdkafka": QUICK_GROUP}, handlers={"recorder": recorder()}).start()
    producer = topics.producer(message_max_bytes=4 * LIMIT)
    for name, (value, _) in bad.items():
        producer.produce(topic, key=name, value=value, headers={"which": name})
    for name, value in good.items():
        producer.produce(topic, key=name, value=value)
    producer.produce(topic, key="last", value=envelope(99, aggregate_id="k"))
    assert producer.flush(60) == 0

    wait_count(host, database, 1, where="n = 99", timeout=60)
    ends_and_lag_are_reached(host, topics, topic, topics.prefix)
    letters = {bytes(key).decode(): (kind, error, None if body is None else bytes(body), headers)
               for key, kind, error, body, headers in database.query(
        "select key, class, error, body, headers::text from event_dead_letters")}
    handled = {row[0] for row in database.query("select n from seen")}
    for name, (value, says) in bad.items():
        kind, error, body, headers = letters.pop(name)
        assert kind == "undecodable", f"{name}: {kind}: {error}"
        assert error and says.lower() in error.lower(), f"{name}: {error}"
        assert name in headers
        if value and len(value) <= LIMIT:
            assert body == value, name
    # "odd text" holds U+0000, which PostgreSQL takes in no text: a dead letter, and said.
    assert set(letters) <= {"odd text"}, letters
    assert handled | ({11} if letters else set()) == {10, 11, 12, 13, 50, 99}
    assert host.ask("/healthz").status == 200
    assert host.stop() == 0


def test_bad_rows_of_the_outbox_do_not_stop_it(database, make_host):
    """Odd but legal rows: huge, null payload, list, scalar, no metadata."""
    make_seen(database)
    host = make_host(settings={"database": {"url": database.url}, "outbox": {"interval": "50ms"}},
                     handlers={"any": """
        return { subscribes = { "*" }, start = "earliest", transaction = true,
          handle = function(event, ctx)
            ctx.tx:exec("INSERT INTO seen (event_id, key) VALUES ($1, $2)", event.id, event.type)
          end }"""}).start()
    insert = """insert into domain_events (aggregate_id, aggregate_type, event_type, event_data,
                occurred_at) values (gen_random_uuid(), 'A', %s, %s, %s)"""
    rows = [("null", "null", "now"), ("list", "[1]", "now"), ("scalar", "7", "now"),
            ("past", "{}", "0044-03-15"), ("future", "{}", "9999-12-31"),
            ("large", '"' + "x" * (LIMIT // 2) + '"', "now"), ("", "{}", "now"),
            ("too large", '"' + "x" * (LIMIT + 10) + '"', "now"), ("last", "{}", "now")]
    for row in rows:
        database.query(insert, row)
    wait_count(host, database, 1, where="key = 'last'")
    host.wait(lambda: count(database) + count(database, "event_dead_letters") == len(rows), 20,
              "each row handled or a dead letter")
    letters = dict(database.query("select event_type, class from event_dead_letters"))
    assert letters.get("too large") == "undecodable"
    assert set(letters) <= {"too large", ""}, letters
    assert host.stop() == 0


def test_a_missing_table_is_said_and_waited_for(postgres, make_host):
    """Issue 3, done 9: a missing table."""
    postgres.query("create database bare")
    host = make_host(settings={"database": {"url": postgres.url("bare")}},
                     handlers={"one": recorder('"T"')})
    host.spawn()
    host.wait(lambda: host.log_lines("waiting for tables: run moontide migrate up"), 20, "the advice")
    # A flag would live until the tables are there and be forgotten then.
    for method, body in (("PUT", {"state": "off"}), ("DELETE", None)):
        reply = host.ask("/v1/flags/DOMAIN_EVENTS_ENABLED", method, body)
        assert reply.status == 503, reply.body
    host.cli("migrate", "up", "-c", str(host.conf))
    host.wait(lambda: host.log_lines("started"), 20, "started by itself")
    assert host.stop() == 0
    host.clean_up()
    postgres.query("drop database bare with (force)")


def test_a_handlers_missing_table_is_a_retry_and_then_a_dead_letter(database, make_host):
    """The statement's error and its SQLSTATE are in the dead letter."""
    host = make_host(settings={"database": {"url": database.url}, "outbox": {"interval": "50ms"}},
                     handlers={"recorder": recorder(
                         more='retry = { max_attempts = 2, base = "10ms" },')}).start()
    database.publish("T", "A", "00000000-0000-4000-8000-000000000001", {"n": 1})
    wait_count(host, database, 1, "event_dead_letters")
    code, error, attempts = database.query(
        "select code, error, attempts from event_dead_letters")[0]
    assert code == "42P01" and "seen" in error and attempts == 2


def test_a_wrong_password_is_said_and_waited_for(own_postgres, make_host):
    """Issue 3, done 9: a wrong password, without showing it."""
    own_postgres.query("create role ann login password 'right'")
    hba = own_postgres.data / "pg_hba.conf"
    hba.write_text("host all ann 127.0.0.1/32 scram-sha-256\n" + hba.read_text())
    own_postgres.query("select pg_reload_conf()")
    url = own_postgres.url(user="ann:wr0ng-secret")
    host = make_host(settings={"database": {"url": url}}, handlers={"one": recorder('"T"')})
    host.spawn()
    host.wait(lambda: "password authentication failed" in host.log_text(), 20, "the reason")
    assert host.process.poll() is None
    assert "wr0ng-secret" not in host.log_text()
    done = host.cli("migrate", "up", "-c", str(host.conf), check=False)
    assert done.returncode == 1 and "password" in done.stderr
    assert "wr0ng-secret" not in done.stderr
    assert host.stop() == 0


@pytest.mark.parametrize("url", [
    "postgress://ann:c4nary@127.0.0.1:1/db",     # for libpq a name without a value
    "postgresql://ann:c4nary/x@127.0.0.1:1/db",  # a port
    "postgresql://ann:x@c4nary@127.0.0.1:1/db",  # a host
    "postgresql://ann:c4nary%x@127.0.0.1:1/db",  # half a character
])
def test_a_url_that_is_none_is_refused_without_showing_it(url, make_host):
    """Reliability 4: no secret in a log or a message."""
    host = make_host(settings={"database": {"url": url}})
    for words, code in ((("check",), 4), (("run",), 1), (("migrate", "status"), 1)):
        done = host.cli(*words, "-c", str(host.conf), check=False)
        assert done.returncode == code, f"{words}: {done.stdout}{done.stderr}"
        assert "database url" in done.stderr and "c4nary" not in done.stdout + done.stderr


def test_an_unreachable_database_is_said_and_waited_for(make_host):
    """Issue 3, done 9: nothing listens there."""
    host = make_host(settings={"database": {"url": f"postgres://x@127.0.0.1:{free_port()}/x"}},
                     handlers={"one": recorder('"T"')})
    host.spawn()
    host.wait(lambda: host.log_lines("waiting for the database"), 20, "the reason")
    assert "refused" in host.log_lines("waiting for the database")[0]["err"].lower()
    assert host.stop() == 0


CONFIGS = {
    'return { workrs = { count = 1 } }': ("workers", 4),
    'return { kafka = { topic = { "a" } } }': ("kafka.topics", 4),
    'return { workers = { count = "many" } }': ("workers.count", 4),
    'return { workers = { soft_limit = "10 parsecs" } }': ("workers.soft_limit", 4),
    'return { log = { level = "loud" } }': ("log.level", 4),
    'return {': ("moontide.lua:1", 4),
    'error("no configuration today")': ("no configuration today", 4),
    'return 7': ("moontide.lua", 4),
    'while true do end': ("moontide.lua", 4),
    'return { outbox = { columns = "snake" } }': ("outbox.columns", 4),
}


@pytest.mark.parametrize("text", CONFIGS, ids=[says for says, _ in CONFIGS.values()])
def test_a_wrong_configuration_is_refused_and_names_what_is_wrong(text, make_host):
    """Issue 3, done 9: unknown settings name the nearest; an endless file is ended."""
    says, code = CONFIGS[text]
    host = make_host()
    host.conf.write_text(text)
    done = host.cli("check", "-c", str(host.conf), check=False, timeout=30)
    assert done.returncode == code, done.stdout + done.stderr
    assert says in done.stderr, done.stderr
    ran = host.cli("run", "-c", str(host.conf), check=False, timeout=30)
    assert ran.returncode != 0 and says in ran.stdout + ran.stderr, ran.stdout + ran.stderr


def test_an_unknown_setting_on_the_command_line_names_the_nearest(make_host):
    """Interfaces 2: unknown keys are an error that names the nearest known one."""
    host = make_host(settings={"kafka": {"brokers": "embedded", "topics": ["t"]}})
    done = host.cli("check", "-c", str(host.conf), "--set", "kafka.brokrs=x", check=False)
    assert done.returncode == 4 and "kafka.brokers" in done.stderr, done.stderr
    done = host.cli("check", "-c", str(host.conf), env={"MOONTIDE_KAFKA_BROKRS": "x"}, check=False)
    assert done.returncode == 4 and "kafka.brokers" in done.stderr.lower(), done.stderr
    assert host.cli("check", "-c", str(host.conf)).returncode == 0


def test_more_settings_than_a_command_line_holds_are_refused(make_host):
    """Interfaces 2: nothing that was given is passed over."""
    host = make_host()
    done = host.cli("check", *(["--set", "log.level=info"] * 65), check=False)
    assert done.returncode == 2 and "more than 64 --set" in done.stderr, done.stderr


def test_a_redrive_takes_no_limit(make_host):
    """Interfaces 1: what list knows and redrive does not is usage, not passed over."""
    host = make_host()
    for words in (("--all", "--limit", "5"), ("--handler", "h", "--state=discarded")):
        done = host.cli("dead-letters", "redrive", *words, "--url", "http://127.0.0.1:1", check=False)
        assert done.returncode == 2, f"{words}: {done.stdout}{done.stderr}"


def test_an_address_without_a_port_is_refused(make_host):
    """Interfaces 2: http.listen is address:port; 76OO is not 76."""
    for listen in ("127.0.0.1", "127.0.0.1:", "127.0.0.1:76OO", "127.0.0.1:65536"):
        host = make_host(settings={"kafka": {"brokers": "embedded", "topics": ["t"]},
                                   "http": {"listen": listen}})
        done = host.cli("run", "-c", str(host.conf), check=False, timeout=20)
        assert done.returncode == 1 and "http.listen" in done.stderr, f"{listen}: {done.stderr}"


def test_an_unknown_option_is_not_passed_over(make_host):
    """Interfaces 1: exit 2 is usage; a misspelt --dry-run does nothing."""
    host = make_host()
    for words in (("dead-letters", "redrive", "--all", "--dryrun"),
                  ("flags", "set", "handler:x", "off", "--forever"),
                  ("migrate", "uninstall", "-y")):
        done = host.cli(*words, "--url", "http://127.0.0.1:1", check=False)
        assert done.returncode == 2, f"{words}: {done.stdout}{done.stderr}"
        assert f'"{words[-1]}"' in done.stderr, done.stderr


def test_migrate_takes_back_no_more_than_it_is_told(database, make_host):
    """Interfaces 1: migrate down [--steps N]."""
    host = make_host(settings={"database": {"url": database.url}})
    before = database.query("select version from moontide_migrations order by 1")
    for steps in ("-1", "0", "all"):
        done = host.cli("migrate", "down", "--steps", steps, "-c", str(host.conf), check=False)
        assert database.query("select version from moontide_migrations order by 1") == before, steps
        assert done.returncode == 2, f"{steps}: {done.stdout}{done.stderr}"


def asked_as(host, name):
    """The status of GET /v1/status for who calls the host by that name."""
    request = urllib.request.Request(f"{host.url}/v1/status", headers={"Host": name})
    try:
        with urllib.request.urlopen(request, timeout=10) as reply:
            return reply.status
    except urllib.error.HTTPError as refused:
        return refused.code


def test_only_names_of_loopback_are_answered_there(make_host):
    """Reliability 4: a Host allow-list against DNS rebinding."""
    host = make_host(settings={"kafka": {"brokers": "embedded", "topics": ["t"]}}).start()
    for name in ("localhost", "LOCALHOST:7600", "127.0.0.1", "127.9.8.7:80", "[::1]", "[::1]:7600"):
        assert asked_as(host, name) == 200, name
    for name in ("evil.example", "localhost.evil.example", "localhostevil:7600", "127.evil.example",
                 "127.0.0.1.evil.example:7600", "[::1].evil.example", "[::1", "10.0.0.1"):
        assert asked_as(host, name) == 403, name


HANDLERS = {
    'return {\n  subscribes = 7,\n  handle = function() end,\n}': "subscribes",
    'return { subscribes = { 1 }, handle = function() end }': "subscribes",
    'return { subscribes = { "*" } }': "handle",
    'return { subscribes = { "*" }, handle = "f" }': "handle",
    'return { subscribes = { "*" }, handle = function() end, concurrency = "many" }': "concurrency",
    'return { subscribes = { "*" }, handle = function() end, retry = 3 }': "retry",
    'return { subscribes = { "*" }, handle = function() end, timeout = "soon" }': "timeout",
    'return { subscribes = { "*" }, handle = function() end, ordering = "random" }': "ordering",
    'return { subscribes = { "*" }, handle = function() end, batch = { max = 0 } }': "batch",
    'return { subscribes = { "*" }, handle = function() end, allow = { htp = {} } }': "htp",
    'return { subscribs = { "*" }, handle = function() end }': "subscribs",
    'return 7': "table",
    'local x = nil\nlocal y = x.z\nreturn {}': "bad.lua:2",
    'return {\n\n)': "bad.lua:3",
}


def test_a_handler_table_with_wrong_types_is_refused_with_file_and_line(make_host):
    """Issue 3, done 9: file:line: text."""
    host = make_host(settings={"kafka": {"brokers": "embedded", "topics": ["t"]}})
    for text, says in HANDLERS.items():
        host.handler("bad", text)
        done = host.cli("check", "-c", str(host.conf), check=False)
        assert done.returncode == 4, f"{text}: {done.stdout}{done.stderr}"
        assert "bad.lua" in done.stderr and says in done.stderr, f"{text}: {done.stderr}"


def test_no_source_at_all_is_refused(make_host):
    """Design 5: at least one source must be configured."""
    host = make_host()
    for command in ("check", "run"):
        done = host.cli(command, "-c", str(host.conf), check=False)
        assert done.returncode in (1, 4)
        assert "database.url" in done.stdout + done.stderr
