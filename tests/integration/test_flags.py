"""Flags: off holds, on drains in order, skip is counted and recorded."""

import json

from harness import FULL
from scenes import count, make_seen, recorder, wait_count
from servers import wait_for

KEY = "00000000-0000-4000-8000-{:012d}"


def on_outbox(database, **more):
    return {"database": {"url": database.url}, "outbox": {"interval": "50ms"}, **more}


def publish(database, first, last, type="Changed", aggregate="Thing", keys=3):
    for n in range(first, last):
        database.publish(type, aggregate, KEY.format(n % keys), {"n": n})


def set_flag(host, *args, code=0):
    done = host.cli("flags", "set", *args, "--url", host.url, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stderr


def numbers(database, handler, order="place"):
    return [row[0] for row in database.query(
        f"select n from seen where handler = %s order by {order}", (handler,))]


def in_order(database, handler):
    bad = database.value("""select count(*) from (select n, lag(n) over (partition by key
        order by place) b from seen where handler = %s) t where n <= b""", (handler,))
    return bad == 0


def test_a_handler_switched_off_holds_and_drains_in_order_when_it_is_on_again(database, make_host):
    """Issue 3, done 6; requirements S1-80, C11, M7."""
    make_seen(database)
    host = make_host(settings=on_outbox(database),
                     handlers={"one": recorder(), "two": recorder()}).start()
    publish(database, 0, 30)
    wait_count(host, database, 60)
    set_flag(host, "handler:one", "off", "--reason", "a test")
    host.wait(lambda: host.metric("moontide_flag", name="handler:one") == 0
              and host.metric("moontide_detached", handler="one") == 1, 5, "held")
    publish(database, 30, 90)
    wait_count(host, database, 90, where="handler = 'two'")
    assert numbers(database, "one", "n") == list(range(30))
    assert host.ask("/v1/handlers/one").json()["state"] == "held"
    flags = host.cli("flags", "list", "--json", "--url", host.url)
    assert {"name": "handler:one", "state": "off"}.items() <= next(
        f for f in json.loads(flags.stdout)["flags"] if f["name"] == "handler:one").items()

    # It stays off over a restart, and drains in order afterwards.
    assert host.stop() == 0
    host.start()
    publish(database, 90, 100)
    wait_count(host, database, 100, where="handler = 'two'")
    assert numbers(database, "one", "n") == list(range(30))
    set_flag(host, "handler:one", "on")
    wait_count(host, database, 100, where="handler = 'one'")
    publish(database, 100, 110)
    wait_count(host, database, 220)
    for handler in ("one", "two"):
        assert numbers(database, handler, "n") == list(range(110))
        assert in_order(database, handler)


def test_the_whole_host_is_held_by_flag_and_by_environment(database, make_host):
    """Requirement S1-78: off wins, wherever it is said."""
    make_seen(database)
    host = make_host(settings=on_outbox(database), handlers={"one": recorder()}).start()
    publish(database, 0, 10)
    wait_count(host, database, 10)
    set_flag(host, "DOMAIN_EVENTS_ENABLED", "off")
    host.wait(lambda: host.log_lines("host held"), 5, "held")
    publish(database, 10, 20)
    assert host.ask("/healthz").status == 200
    assert count(database) == 10
    set_flag(host, "DOMAIN_EVENTS_ENABLED", "on")
    wait_count(host, database, 20)
    assert host.stop() == 0

    held = make_host(settings=on_outbox(database), handlers={"one": recorder()},
                     env={"DOMAIN_EVENTS_ENABLED": "false"}).start()
    held.wait(lambda: held.log_lines("started"), 10, "started")
    publish(database, 20, 30)
    says = set_flag(held, "DOMAIN_EVENTS_ENABLED", "on", code=4)
    assert "environment" in says and "DOMAIN_EVENTS_ENABLED" in says
    assert count(database) == 20
    assert held.stop() == 0
    host.start()
    wait_count(host, database, 30)
    assert numbers(database, "one", "n") == list(range(30)) and in_order(database, "one")


def test_skip_is_counted_and_recorded_for_handlers_and_aggregates(database, make_host):
    """Requirements C11, S1-79, S1-80: skip is explicit and recorded per event."""
    make_seen(database)
    host = make_host(settings=on_outbox(database),
                     handlers={"one": recorder(), "two": recorder()}).start()
    set_flag(host, "handler:one", "off", "--when-off", "skip")
    host.wait(lambda: host.metric("moontide_flag", name="handler:one") == 0, 5, "off")
    publish(database, 0, 10)
    wait_count(host, database, 10, where="handler = 'two'")
    wait_count(host, database, 10, "event_deliveries",
               "handler = 'one' and outcome = 'skip'", timeout=10)
    assert host.metric("moontide_settled_total", handler="one", how="skip") == 10
    assert count(database, where="handler = 'one'") == 0
    set_flag(host, "handler:one", "on")
    host.wait(lambda: host.metric("moontide_flag", name="handler:one") == 1, 5, "on")

    set_flag(host, "aggregate:Other", "off", "--when-off", "skip")
    host.wait(lambda: "aggregate:Other" in json.dumps(host.ask("/v1/flags").json())
              and host.metric("moontide_flag", name="aggregate:Other") == 0, 5, "off")
    publish(database, 10, 15, aggregate="Other")
    publish(database, 15, 20)
    wait_count(host, database, 5, where="handler = 'one' and n >= 15")
    wait_count(host, database, 10, "event_deliveries", "reason like 'flag aggregate%'")
    assert count(database, where="n between 10 and 14") == 0
    # The skipped ones stay skipped when the flag returns.
    assert host.cli("flags", "unset", "aggregate:Other", "--url", host.url).returncode == 0
    publish(database, 20, 25, aggregate="Other")
    wait_count(host, database, 10, where="n >= 20")
    assert count(database, where="n between 10 and 14") == 0


def test_what_cannot_take_effect_is_refused_with_the_reason(database, make_host):
    """Interfaces 1: exit 4 is a refusal by a check."""
    host = make_host(settings=on_outbox(database), handlers={"one": recorder('"Nothing"')}).start()
    assert "no handler" in set_flag(host, "handler:nobody", "off", code=4)
    assert "no flag" in set_flag(host, "handlr:one", "off", code=4)
    assert "neither on nor off" in set_flag(host, "handler:one", "perhaps", code=4)
    assert "neither on nor off" in set_flag(host, "handler:one", "101%", code=4)
    set_flag(host, "handler:one", "off", "--when-off", "sometimes", code=4)
    assert host.cli("flags", "set", "handler:one", check=False).returncode == 2
    assert count(database, "event_flags") == 0


def test_pause_and_resume_are_the_handlers_flag(database, make_host):
    """Interfaces 1: handlers pause is flags set handler:NAME off."""
    make_seen(database)
    host = make_host(settings=on_outbox(database), handlers={"one": recorder()}).start()
    assert host.cli("handlers", "pause", "one", "--url", host.url).returncode == 0
    host.wait(lambda: host.ask("/v1/handlers/one").json()["state"] == "held", 5, "held")
    publish(database, 0, 5)
    assert host.cli("handlers", "resume", "one", "--url", host.url).returncode == 0
    wait_count(host, database, 5)
    assert in_order(database, "one")


FAILS = """
return { subscribes = { "Changed" }, start = "earliest", retry = { max_attempts = 1 },
         handle = function() error("not yet") end }
"""


def test_a_held_handler_is_not_redriven_also_after_a_restart(database, make_host):
    """Design 9: off means hold; a redrive waits with the rest."""
    make_seen(database)
    host = make_host(settings=on_outbox(database), handlers={"one": FAILS, "two": FAILS}).start()
    publish(database, 0, 1)
    wait_count(host, database, 2, "event_dead_letters")
    set_flag(host, "handler:one", "off")
    assert host.stop() == 0
    host.handler("one", recorder())
    host.handler("two", recorder())
    host.start()
    host.cli("dead-letters", "redrive", "--all", "--url", host.url)
    wait_count(host, database, 1, where="handler = 'two'")  # both letters were read by then
    assert count(database, where="handler = 'one'") == 0
    set_flag(host, "handler:one", "on")
    wait_count(host, database, 1, where="handler = 'one'")


def test_a_flag_set_for_a_time_returns_by_itself_also_over_a_restart(database, make_host):
    """Interfaces 1: --for."""
    make_seen(database)
    host = make_host(settings=on_outbox(database), handlers={"one": recorder()}).start()
    set_flag(host, "handler:one", "off", "--for", "5s")
    host.wait(lambda: host.metric("moontide_flag", name="handler:one") == 0, 5, "off")
    publish(database, 0, 5)
    assert host.stop() == 0
    host.start()
    wait_count(host, database, 5, timeout=15)
    wait_for(lambda: database.query("select state from event_flags where name = 'handler:one'")
             in ([], [("on",)]), 5, "the row returned")


def test_a_change_reaches_every_host_of_the_group(database, make_host):
    """Every verb acts on all hosts, through the table and NOTIFY."""
    settings = on_outbox(database)
    hosts = [make_host(settings=settings, handlers={"one": recorder('"Nothing"')}).start()
             for _ in range(3 if FULL else 2)]
    set_flag(hosts[0], "handler:one", "off")
    for host in hosts:
        host.wait(lambda: host.metric("moontide_flag", name="handler:one") == 0, 15, "off")
    database.query("update event_flags set state = 'on' where name = 'handler:one'")
    for host in hosts:
        host.wait(lambda: host.metric("moontide_flag", name="handler:one") == 1, 15, "on")
