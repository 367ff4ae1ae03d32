"""An outbox whose database is another one, or went back in time: nothing is read before an operator says so
(design 13.4, fault row P2; the failover itself is in tests/faults)."""

import pytest
from harness import merge
from scenes import count, make_seen, recorder, wait_count

KEY = "00000000-0000-4000-8000-{:012d}"


def settings(database, **more):
    return merge({"database": {"url": database.url}, "outbox": {"interval": "50ms"}}, more)


def publish(database, numbers):
    return [database.publish("Happened", "Thing", KEY.format(n % 7), {"n": n}) for n in numbers]


def trouble(host):
    return host.ask("/v1/sources").json()["outbox"]["trouble"] or ""


def move(host, *args, check=True):
    return host.cli("sources", "move", "outbox", "--url", host.url, "--reason", "restored", *args,
                    check=check)


@pytest.fixture
def stopped(database, make_host):
    """A host that did twenty events and was stopped."""
    make_seen(database)
    host = make_host(settings=settings(database), handlers={"tx": recorder()})
    publish(database, range(20))
    host.start()
    wait_count(host, database, 20)
    assert host.stop() == 0
    return host


@pytest.mark.parametrize("to", ["earliest", "latest"])
def test_positions_of_another_database_stop_the_outbox(database, stopped, to):
    database.query("update event_handler_positions set source_id = '1234' where source = 'outbox'")
    new = publish(database, range(100, 110))
    host = stopped.start()
    host.wait(lambda: "another database" in trouble(host), 20, "it stands still")
    assert "1234" in trouble(host) and host.ask("/readyz").status == 503
    assert count(database) == 20 and host.metric("moontide_outbox_shards") == 0
    refused = move(host, "--to", "3", check=False)
    assert refused.returncode == 4 and "earliest or latest" in refused.stderr
    refused = move(host, "--to", to, "--handler", "tx", check=False)
    assert refused.returncode == 4 and "all handlers" in refused.stderr
    assert database.value("select count(*) from event_given_up") == 0

    answer = move(host, "--to", to).stdout
    later = publish(database, range(200, 205))
    wanted = later + (new if to == "earliest" else [])
    wait_count(host, database, 20 + len(wanted))
    ids = {id for id, in database.query("select event_id from seen where n >= 100")}
    assert ids == set(wanted)
    given_up = database.query("select distinct handler, reason from event_given_up")
    assert given_up == ([] if to == "earliest" else [("tx", "restored")])
    assert ("nothing was given up" in answer) == (to == "earliest")
    host.wait(lambda: host.ask("/readyz").status == 200, 20, "ready")
    again = move(host, "--to", to, check=False)
    assert again.returncode == 4 and "has no trouble" in again.stderr


def test_events_that_were_read_and_are_gone_stop_the_outbox_on_every_host(database, make_host):
    """A crash with asynchronous commits: the same timeline, and a number that comes again."""
    make_seen(database)
    hosts = [make_host(settings=settings(database), handlers={"tx": recorder()}).start()
             for _ in range(2)]
    hosts[0].wait(lambda: all(h.metric("moontide_outbox_shards") == 32 for h in hosts), 30, "shared")
    publish(database, range(20))
    wait_count(hosts[0], database, 20)
    last = database.value("select max(seq) from domain_events")
    database.query("""
        alter table domain_events disable trigger append_only;
        delete from domain_events where seq > (select max(seq) - 5 from domain_events);
        select setval('domain_events_seq', (select max(seq) from domain_events))""", ())
    new = publish(database, range(100, 105))  # with the numbers of what is gone
    database.query("select pg_terminate_backend(pid) from pg_stat_activity"
                   " where application_name = 'moontide outbox' and datname = current_database()")
    for host in hosts:
        host.wait(lambda host=host: "back in time" in trouble(host), 90, "it stands still")
    assert count(database) == 20
    assert "goes on at" in move(hosts[0], "--to", "earliest").stdout
    later = publish(database, range(200, 205))
    wait_count(hosts[0], database, 20 + len(new) + len(later), timeout=60)
    lost = database.query("select handler, first_place, last_place from event_given_up")
    assert len(lost) == 1 and lost[0][0] == "*" and last - 5 < lost[0][1] <= lost[0][2] <= last
    done = [id for id, in database.query("select event_id from seen where n >= 100")]
    assert sorted(done) == sorted(new + later)  # each once, none passed over for its number
