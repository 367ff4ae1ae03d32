"""Handlers changed while they run."""

import ctypes
import os
import select
import shutil
import signal
import threading
from datetime import datetime
from pathlib import Path

from scenes import (assert_once_and_in_order, count, make_rng, make_seen, recorder, sized,
                    wait_count, wait_gone)
from servers import ROOT, wait_for

KEYS = 50


class Stream(threading.Thread):
    """Publishes n = 0, 1, 2 … on KEYS aggregates until it is told to end."""

    def __init__(self, database, batch=20):
        super().__init__(daemon=True)
        self.database, self.batch = database, batch
        self.ended, self.written = threading.Event(), {}

    def run(self):
        connection = self.database.connect(autocommit=True)
        number = 0
        with connection.cursor() as cursor:
            while not self.ended.is_set():
                cursor.execute("""
                    select publish_event('Changed', 'Thing',
                        ('00000000-0000-4000-8000-' || lpad((i %% %s)::text, 12, '0')),
                        jsonb_build_object('n', i / %s)), i
                    from generate_series(%s::int, %s::int) i""",
                               (KEYS, KEYS, number, number + self.batch - 1))
                for id, i in cursor.fetchall():
                    self.written[id] = (f"00000000-0000-4000-8000-{i % KEYS:012d}", i // KEYS)
                number += self.batch
                self.ended.wait(0.02)  # the pace of the producer, not a wait for anything
        connection.close()

    def end(self):
        self.ended.set()
        self.join(30)
        return self.written


def version_of(host, name):
    reply = host.ask(f"/v1/handlers/{name}")
    return reply.json() if reply and reply.status == 200 else {}


def on_outbox(database, **more):
    return {"database": {"url": database.url}, "outbox": {"interval": "50ms"}, **more}


def test_many_reloads_under_load_lose_double_and_reorder_nothing(database, make_host):
    """Issue 3, done 5; design 8."""
    rng, number = make_rng("reload"), sized(60, 200)
    make_seen(database)
    host = make_host(settings=on_outbox(database),
                     handlers={"recorder": recorder(version="0")}).start()
    stream = Stream(database)
    stream.start()
    for n in range(1, number + 1):
        host.handler("recorder", recorder(version=str(n)))
        if rng.random() < 0.8:  # else: saved again before anybody saw it
            host.wait(lambda: host.metric("moontide_reloads_total", handler="recorder",
                                          result="loaded") and count(
                database, where=f"version = '{n}'") > 0, 20, f"version {n} at work")
    host.wait(lambda: count(database, where=f"version = '{number}'") > 0, 20, "the last version")
    written = stream.end()
    wait_count(host, database, len(written))
    assert_once_and_in_order(database, "recorder", written)
    assert count(database, "event_dead_letters") == 0
    # Once a version has handled something, none before it handles anything later.
    inverted = database.value("""
        select count(*) from (select version::int v, lag(version::int) over (order by key, place) b,
        key, lag(key) over (order by key, place) k from seen) t where k = key and v < b""")
    assert inverted == 0
    assert host.stop() == 0


def test_a_save_is_live_and_a_broken_file_never_takes_effect(database, make_host):
    """Issue 3, done 5: refused with file and line in log, metric and status."""
    make_seen(database)
    host = make_host(settings=on_outbox(database),
                     handlers={"recorder": recorder(version="1")}).start()
    publish_and_wait(host, database, 0, "1")
    running = version_of(host, "recorder")["version"]

    host.handler("recorder", recorder(version="2"))
    host.wait(lambda: version_of(host, "recorder")["version"] != running, 5, "the save is live")
    publish_and_wait(host, database, 1, "2")
    running = version_of(host, "recorder")["version"]

    for text, says in (("return {\n  oops(}\n", "recorder.lua:2"),
                       ("return {\n  subscribes = { 7 },\n  handle = function() end }", "recorder.lua"),
                       ("while true do end", "recorder.lua"),
                       ("error('not today')", "recorder.lua:1"),
                       ("return { subscribes = { '*' }, handel = function() end }", "handel")):
        before = host.metric("moontide_reloads_total", handler="recorder", result="refused")
        host.handler("recorder", text)
        host.wait(lambda: host.metric("moontide_reloads_total", handler="recorder",
                                      result="refused") == before + 1, 10, f"refused: {text}")
        now = version_of(host, "recorder")
        assert now["version"] == running, "a broken file took effect"
        assert says in now["refused"], now["refused"]
        assert [line for line in host.log_lines("handler refused") if says in line["err"]]
    publish_and_wait(host, database, 2, "2")

    host.handler("recorder", recorder(version="3"))
    host.wait(lambda: version_of(host, "recorder")["version"] != running, 5, "the repaired file")
    assert "refused" not in version_of(host, "recorder")
    publish_and_wait(host, database, 3, "3")


def publish_and_wait(host, database, n, version):
    database.publish("Changed", "Thing", "00000000-0000-4000-8000-000000000001", {"n": n})
    wait_count(host, database, 1, where=f"n = {n} and version = '{version}'", timeout=15)


def wait_at_work(host, database, version):
    def is_seen():
        database.publish("Changed", "Thing", "00000000-0000-4000-8000-000000000001", {"n": -1})
        return count(database, where=f"version = '{version}'") > 0
    host.wait(is_seen, 10, f"version {version} at work")


class Reader:
    """Waits until somebody has read a file to its end and closed it."""

    CLOSED = 0x10  # IN_CLOSE_NOWRITE

    def __init__(self, path):
        self.libc = ctypes.CDLL(None, use_errno=True)
        self.fd = self.libc.inotify_init1(os.O_CLOEXEC)
        assert self.fd >= 0
        assert self.libc.inotify_add_watch(self.fd, os.fsencode(path), self.CLOSED) >= 0

    def wait(self, timeout):
        assert select.select([self.fd], [], [], timeout)[0], "nobody reads it"
        os.close(self.fd)


def test_a_save_between_the_check_and_its_end_is_not_missed(database, make_host):
    """A checked file that changed before the check ended is looked at again."""
    make_seen(database)
    host = make_host(settings=on_outbox(database),
                     handlers={"recorder": recorder(version="1")}).start()
    publish_and_wait(host, database, 0, "1")
    for n in range(1, 9):
        path = host.handler("recorder", recorder(version=f"{n}0"))
        reader = Reader(path)
        reader.wait(10)
        host.handler("recorder", recorder(version=f"{n}1"))
        wait_at_work(host, database, f"{n}1")


def test_handlers_go_on_while_their_folder_cannot_be_read(database, make_host):
    make_seen(database)
    host = make_host(settings=on_outbox(database),
                     handlers={"recorder": recorder(version="1")}).start()
    publish_and_wait(host, database, 0, "1")
    away = host.handlers.with_name("away")
    host.handlers.rename(away)
    host.wait(lambda: host.log_lines("cannot read the handlers folder"), 10, "noticed")
    assert version_of(host, "recorder")["state"] == "running"
    publish_and_wait(host, database, 1, "1")
    away.rename(host.handlers)
    host.handler("recorder", recorder(version="2"))
    wait_at_work(host, database, "2")


def children_of(pid):
    found = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        found += [int(child) for child in task.read_text().split()]
    return found


def probe_server(host):
    """The process that forks those that check; None while there is none."""
    for pid in children_of(host.process.pid):
        if b"--serve" in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0"):
            return pid
    return None


def probe_pids(host):
    server = probe_server(host)
    return children_of(server) if server else []


def test_the_signal_that_ended_a_check_is_named(database, make_host):
    host = make_host(settings=on_outbox(database, workers={"count": 1, "soft_limit": "120s"}),
                     handlers={"recorder": recorder(version="1")}).start()
    server = probe_server(host)
    host.handler("crasher", "while true do end")
    pid = host.wait(lambda: probe_pids(host), 10, "the check")[0]
    host.process.send_signal(signal.SIGSTOP)  # so that it sees the end and its signal at once
    os.kill(pid, signal.SIGSEGV)
    wait_gone([pid])
    host.process.send_signal(signal.SIGCONT)
    host.wait(lambda: host.log_lines("handler refused"), 10, "refused")
    assert "was killed by signal 11" in host.log_lines("handler refused")[0]["err"]
    assert probe_server(host) == server


def test_a_check_whose_server_is_killed_is_made_again(database, make_host):
    make_seen(database)
    host = make_host(settings=on_outbox(database),
                     handlers={"recorder": recorder(version="1")}).start()
    publish_and_wait(host, database, 0, "1")
    for n in range(2, 7):
        server = probe_server(host)
        os.kill(server, signal.SIGSTOP)  # so that it dies with the request unread
        host.handler("recorder", recorder(version=str(n)))
        os.kill(server, signal.SIGKILL)
        wait_at_work(host, database, str(n))
    host.handler("looping", "while true do end")  # the check takes a second
    host.wait(lambda: probe_pids(host), 10, "the check")
    server, checks = probe_server(host), probe_pids(host)
    os.kill(server, signal.SIGKILL)
    wait_gone([server, *checks])
    host.wait(lambda: "soft time limit" in version_of(host, "looping").get("refused", ""), 10,
              "checked again")
    assert host.stop() == 0


def test_no_check_outlives_its_host(database, make_host):
    for end in ("kill", "stop"):
        host = make_host(settings=on_outbox(database),
                         handlers={"recorder": recorder(version="1")}).start()
        host.handler("looping", "while true do end")
        host.wait(lambda: probe_pids(host), 10, "the check")
        pids = [probe_server(host), *probe_pids(host)]
        getattr(host, end)()
        wait_gone(pids)


# Busy until its limit, in every worker at once, as long as nobody ends it.
LOADS_FOR_LONG = """
return {
  subscribes = { "Changed" },
  init = function() while true do end end,
  handle = function() end,
}
"""


def test_a_version_that_kills_who_loads_it_is_refused(database, make_host):
    """Design 8: whatever goes wrong before the switch, what runs goes on."""
    make_seen(database)
    host = make_host(settings=on_outbox(database, workers={"count": 1, "soft_limit": "120s"}),
                     handlers={"recorder": recorder(version="1")}).start()
    publish_and_wait(host, database, 0, "1")
    host.handler("killer", LOADS_FOR_LONG)
    host.wait(lambda: "candidate" in version_of(host, "killer"), 10, "a candidate")
    for pid in host.worker_pids():
        os.kill(pid, signal.SIGSEGV)
    host.wait(lambda: "SIGSEGV" in version_of(host, "killer").get("refused", ""), 10, "refused")
    publish_and_wait(host, database, 1, "1")
    assert version_of(host, "recorder")["state"] == "running"


# Its init needs a table, and its deliveries take for ever.
NEEDS_A_TABLE = """
local db = require "moontide.db"
return {
  subscribes = { "Changed" }, start = "earliest", allow = { db = true },
  init = function() assert(db.query("select 1 from needed")) end,
  handle = function() while true do end end,
}
"""


def test_a_spare_worker_that_cannot_load_is_started_later_and_later(database, make_host):
    database.query("create table needed (a int)")
    host = make_host(settings=on_outbox(database, workers={"count": 1, "soft_limit": "120s"}),
                     handlers={"needy": NEEDS_A_TABLE}).start()

    def runs_in(spare):
        pids = [w["pid"] for w in host.ask("/v1/status").json()["workers"]
                if w["spare"] == spare and w["state"] == "up"]
        return host.metric("moontide_inflight", handler="needy") == 1 and pids

    database.publish("Changed", "Thing", "00000000-0000-4000-8000-000000000001", {"n": 1})
    os.kill(host.wait(lambda: runs_in(False), 10, "it runs")[0], signal.SIGSEGV)
    spare = host.wait(lambda: runs_in(True), 10, "it runs alone")[0]
    database.query("drop table needed")
    os.kill(spare, signal.SIGSEGV)

    def refusals():
        return [line for line in host.log_lines("a worker cannot load a running version")
                if line["worker"] == "1"]
    host.wait(lambda: len(refusals()) >= 5, 30, "it cannot load")
    began, ended = (datetime.fromisoformat(refusals()[i]["at"].replace("Z", "+00:00"))
                    for i in (0, 4))
    assert (ended - began).total_seconds() > 0.5  # 50 + 100 + 200 + 400 ms


def test_now_is_now_for_a_handler_that_comes_while_a_partition_opens(database, make_host):
    """Interfaces 2: without a position where the source has one it starts where that stands."""
    make_seen(database)
    host = make_host(settings=on_outbox(database), handlers={"old": recorder()}).start()
    for n in range(20):
        database.publish("Changed", "Thing", "00000000-0000-4000-8000-000000000001", {"n": n})
    wait_count(host, database, 20)
    assert host.stop() == 0
    shards, locking = database.connect(), database.connect()
    shards.cursor().execute("lock table event_shards")  # none is taken yet
    host.spawn()
    host.wait(lambda: host.log_lines("outbox opened"), 20, "the outbox is read")
    locking.cursor().execute("lock table event_handler_positions")
    shards.rollback()
    shards.close()
    host.wait(lambda: host.log_lines("shards taken"), 20, "the partitions open")
    host.handler("fresh", recorder().replace('start = "earliest"', 'start = "now"'))
    host.wait(lambda: [line for line in host.log_lines("handler loaded")
                       if line["handler"] == "fresh"], 20, "loaded")
    locking.rollback()
    locking.close()
    host.wait(lambda: host.log_lines("partition opened") and
              count(database, "event_handler_positions", "handler_name = 'fresh'"), 20, "it is open")
    database.publish("Changed", "Thing", "00000000-0000-4000-8000-000000000001", {"n": 100})
    wait_count(host, database, 1, where="handler = 'fresh' and n = 100")
    assert count(database, where="handler = 'fresh'") == 1


def test_new_removed_and_returning_files_are_noticed(database, make_host):
    """Design 8: new and removed files; a removed handler keeps its position."""
    make_seen(database)
    host = make_host(settings=on_outbox(database), handlers={"first": recorder()}).start()
    database.publish("Changed", "Thing", "00000000-0000-4000-8000-000000000001", {"n": 0})
    wait_count(host, database, 1)

    path = host.handler("second", recorder(version="1"))  # start = "earliest": from the beginning
    wait_count(host, database, 1, where="handler = 'second'")
    path.unlink()
    host.wait(lambda: host.log_lines("handler removed"), 10, "the removal is said")
    for n in (1, 2, 3):
        database.publish("Changed", "Thing", "00000000-0000-4000-8000-000000000001", {"n": n})
    wait_count(host, database, 4, where="handler = 'first'")
    assert count(database, where="handler = 'second'") == 1

    host.handler("second", recorder(version="2"))
    wait_count(host, database, 4, where="handler = 'second'")
    assert [row[0] for row in database.query(
        "select n from seen where handler = 'second' order by place")] == [0, 1, 2, 3]
    assert [row[0] for row in database.query(
        "select n from seen where handler = 'first' order by place")] == [0, 1, 2, 3]


def test_a_swapped_symbolic_link_is_a_reload(database, make_host):
    """Design 8: symlink swaps of mounted configuration (Kubernetes ..data)."""
    make_seen(database)
    host = make_host(settings=on_outbox(database))
    for version in ("1", "2"):
        folder = host.folder / f"v{version}"
        folder.mkdir()
        (folder / "recorder.lua").write_text(recorder(version=version))
    mounted = host.folder / "mounted"
    mounted.symlink_to("v1")
    host.settings["handlers"]["path"] = str(mounted)
    host.write_conf()
    host.start()
    publish_and_wait(host, database, 0, "1")
    fresh = host.folder / ".mounted.new"
    fresh.symlink_to("v2")
    os.replace(fresh, mounted)
    before = version_of(host, "recorder")["version"]
    host.wait(lambda: version_of(host, "recorder")["version"] != before
              or count(database, where="version = '2'"), 10, "the swap is seen")
    publish_and_wait(host, database, 1, "2")


USES_MODULE = """
local words = require "words"
local template = require "moontide.template"
local greeting = template.load("greeting.hbs")
return {
  subscribes = { "*" }, start = "earliest", transaction = true,
  handle = function(event, ctx)
    ctx.tx:exec("INSERT INTO seen (event_id, n, version) VALUES ($1, $2, $3)",
      event.id, event.payload.n, words.word .. greeting:render({ name = "moon" }))
  end,
}
"""


def test_a_changed_module_or_template_is_a_new_version_of_who_uses_it(database, make_host):
    """Design 8: lua/ modules they require, and templates."""
    make_seen(database)
    host = make_host(settings=on_outbox(database), handlers={"other": recorder('"Nothing"')})
    for folder in ("lua", "templates"):
        (host.folder / folder).mkdir()
    host.settings["handlers"]["lua"] = str(host.folder / "lua")
    host.settings["templates"] = {"path": str(host.folder / "templates")}
    host.write_conf()
    (host.folder / "lua/words.lua").write_text('return { word = "hello " }')
    (host.folder / "templates/greeting.hbs").write_text("{{name}}")
    host.handler("user", USES_MODULE)
    host.start()
    publish_and_wait(host, database, 0, "hello moon")

    other = version_of(host, "other")["version"]
    before = version_of(host, "user")["version"]
    (host.folder / "lua/words.lua").write_text('return { word = "good night " }')
    host.wait(lambda: version_of(host, "user")["version"] != before, 10, "the module's change")
    publish_and_wait(host, database, 1, "good night moon")

    before = version_of(host, "user")["version"]
    (host.folder / "templates/greeting.hbs").write_text("{{name}}!")
    host.wait(lambda: version_of(host, "user")["version"] != before, 10, "the template's change")
    publish_and_wait(host, database, 2, "good night moon!")
    assert version_of(host, "other")["version"] == other


def test_the_projects_own_handlers_can_be_edited_in_place(database, make_host, tmp_path):
    """An editor that writes into the file, and a reload asked for by hand."""
    host = make_host(settings=on_outbox(
        database, templates={"path": str(ROOT / "templates")}, reload={"watch": False}))
    for file in ("audit", "analytics"):
        shutil.copy(ROOT / "handlers" / f"{file}.lua", host.handlers / f"{file}.lua")
    host.start()
    before = version_of(host, "audit")["version"]
    with open(host.handlers / "audit.lua", "a") as file:
        file.write("-- edited\n")
    assert host.cli("handlers", "reload", "audit", "--url", host.url).returncode == 0
    host.wait(lambda: version_of(host, "audit")["version"] != before, 10, "the reload")
    database.publish("Changed", "Thing", "00000000-0000-4000-8000-000000000001", {"n": 1})
    wait_for(lambda: count(database, "event_audit_log") == 1, 10, "the audit row")


def test_which_version_ran_where_is_written_down(database, make_host):
    """Interfaces 4: event_handler_versions, precise to a commit interval; nothing where nothing ran."""
    make_seen(database)
    host = make_host(settings={"database": {"url": database.url}, "positions": {"interval": "100ms"}},
                     handlers={"recorder": recorder()}).start()
    key = "00000000-0000-4000-8000-000000000001"
    shard = str(database.value("select moontide_shard(%s)", (key,)))

    def versions():
        return database.query("select partition, version, from_place, to_place"
                              " from event_handler_versions where handler = 'recorder'"
                              " order by from_place, at")

    def publish(n):
        id = database.publish("Changed", "Thing", key, {"n": n})
        return database.value("select seq from domain_events where id::text = %s", (id,))

    def version():
        return host.ask("/v1/handlers/recorder").json()["version"]
    first, one = publish(1), version()
    host.wait(lambda: versions(), 20, "written down")
    assert [row[:2] for row in versions()] == [(shard, one)]
    assert versions()[0][2] <= first and versions()[0][3] is None

    host.handler("recorder", recorder(version="2"))
    host.wait(lambda: version() != one, 20, "the new version")
    second, two = publish(2), version()
    host.wait(lambda: len(versions()) == 2, 20, "written down")
    old, new = versions()
    assert (old[:2], new[:2]) == ((shard, one), (shard, two))
    assert first < new[2] <= second and old[3] == new[2] and new[3] is None
    assert host.stop() == 0
    host.start()  # the same version: nothing new
    third = publish(3)
    host.wait(lambda: database.value("select max(seq) from event_handler_positions") > third, 20, "saved")
    assert host.stop() == 0
    assert len(versions()) == 2
