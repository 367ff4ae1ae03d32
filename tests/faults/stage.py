"""What a scenario stands on: its seed, its journal, its producers and hosts,
and the line it leaves in the results."""

import json
import os
import random
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

from harness import SLOWER, Database
from journal import Journal
from oracle import assert_promises, judge, percentile
from proxy import Proxy
from scenes import QUICK_GROUP, make_seen, recorder
from servers import ROOT, Postgres, Server, wait_for

RESULTS = Path(os.environ.get("MOONTIDE_FAULTS_RESULTS")
               or Path(__file__).resolve().parent / "results")

STILL = 15  # seconds without any effect, after which no more are waited for

#: Does something that no transaction takes back: a row of its own for each run.
PLAIN = """
local db = require "moontide.db"
return {
  description = "Leaves a row for each time it runs, outside of any transaction.",
  subscribes = { %(types)s }, start = "earliest", concurrency = %(concurrency)d,
  allow = { db = true }, retry = { max_attempts = 1000, base = "50ms", cap = "500ms" },
  handle = function(event, ctx)
    local ok, err = db.exec(
      "INSERT INTO effects (handler, event_id, key, n) VALUES ($1, $2, $3, $4)",
      ctx.handler, event.id, event.aggregate_id, event.payload.n)
    if not ok then return ctx.retry(err) end
  end,
}
"""


def plain(types='"*"', concurrency=16):
    return PLAIN % {"types": types, "concurrency": concurrency}


def make_effects(database):
    database.query("""
        create table effects (place bigserial primary key, handler text, event_id text, key text,
                              n bigint, at timestamptz default clock_timestamp())""")


class Producer(Server):
    """producer.py with a journal of its own."""

    def __init__(self, folder, journal, into, **options):
        super().__init__(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.ends_itself = "count" in options
        argv = [sys.executable, ROOT / "tests/faults/producer.py", into,
                "--journal", journal.path]
        for name, value in options.items():
            argv += [f"--{name.replace('_', '-')}", str(value)]
        self.spawn(argv)

    def wait(self, timeout=300):
        """Until it has written all that it was told to."""
        code = self.process.wait(timeout * SLOWER)
        assert code == 0, f"the producer: exit {code}\n{self.log.read_text()[-2000:]}"

    def finish(self):
        """Write no more than was asked for; wait for the answers under way."""
        if self.running() and not self.ends_itself:
            self.await_ready(lambda: "ready" in self.log.read_text(), 20, "the producer")
            self.process.terminate()
        self.wait(320)


class Stage:
    def __init__(self, request, folder, row, database, servers, make_host):
        self.request, self.folder, self.row = request, folder, row
        self.servers, self.make_host = servers, make_host
        self.long = request.config.getoption("--long")
        self.seed = int(os.environ.get("MOONTIDE_TEST_SEED")
                        or random.SystemRandom().randrange(10**9))
        print(f"{request.node.name}: MOONTIDE_TEST_SEED={self.seed}")
        self.rng = random.Random(self.seed)
        self.journal = Journal(folder / "journal")
        self.producers, self.proxies = [], []
        self.figures = {"faults": 0, "duplicates": 0, "recovery": 0.0}
        self.began = time.monotonic()
        self.database = self.with_tables(database)

    # --- what it is made of -----------------------------------------------------

    def sized(self, short, long):
        return long if self.long else short

    @property
    def topics(self):
        return self.request.getfixturevalue("topics")

    @property
    def topic(self):
        return getattr(self, "_topic", None) or self.make_topic()

    def make_topic(self, **config):
        self._topic = self.topics.create("events", 8, **config)
        return self._topic

    def own_folder(self):
        """One that the user `postgres` may enter."""
        folder = Path(tempfile.mkdtemp(dir=self.request.getfixturevalue("scratch")))
        folder.chmod(0o755)
        return folder

    def own_database(self, trust_crash=False, **settings):
        """A cluster that may be broken, with moontide's schema in it."""
        server = Postgres(self.own_folder() / "pg", settings=settings,
                          trust_crash=trust_crash).init().start()
        self.servers.append(server)
        server.query("create database shop")
        self.database = Database(server, "shop")
        host = self.make_host(settings={"database": {"url": self.database.url}})
        host.cli("migrate", "up", "-c", str(host.conf))
        self.with_tables(self.database)
        return server

    @staticmethod
    def with_tables(database):
        make_seen(database)
        make_effects(database)
        return database

    def proxy(self, target, **options):
        self.proxies.append(Proxy(target, rng=random.Random(self.seed), **options))
        return self.proxies[-1]

    def on_kafka(self, bootstrap=None, topics=None, **more):
        settings = {"database": {"url": self.database.url}, "outbox": {"enabled": "off"},
                    "kafka": {"brokers": bootstrap or self.topics.bootstrap,
                              "topics": topics or [self.topic], "group_id": self.topics.prefix},
                    "rdkafka": {**QUICK_GROUP, "reconnect.backoff.max.ms": 1000,
                                "topic.metadata.refresh.interval.ms": 1000}}
        return merged(settings, more)

    def on_outbox(self, **more):
        return merged({"database": {"url": self.database.url}, "outbox": {"interval": "50ms"}},
                      more)

    def host(self, settings, handlers=None, **more):
        """With a handler in a transaction (`tx`) and one without (`plain`)."""
        if handlers is None:
            handlers = {"tx": recorder(), "plain": plain()}
        return self.make_host(settings=settings, handlers=handlers, **more)

    def produce(self, into="outbox", to=None, **options):
        number = len(self.producers)
        if into == "kafka":
            options.setdefault("topic", self.topic)
            to = to or self.topics.bootstrap
        producer = Producer(self.folder / f"producer{number}", self.journal, into,
                            to=to or self.database.url, seed=f"{self.seed}.{number}", **options)
        self.producers.append(producer)
        return producer

    # --- what happens -------------------------------------------------------------

    def fault(self, number=1):
        self.figures["faults"] += number

    @contextmanager
    def recovery(self, limit, what):
        """The time from healing until the inside is done; no more than `limit`."""
        start = time.monotonic()
        yield
        took = time.monotonic() - start
        self.figures["recovery"] = max(self.figures["recovery"], took)
        assert took <= limit * SLOWER, f"{what}: {took:.1f} s, allowed are {limit} s"

    def timed(self, condition, timeout, what):
        """Seconds until it is true, looked at every millisecond."""
        start = time.monotonic()
        while not condition():
            assert time.monotonic() < start + timeout * SLOWER, f"{what}: not within {timeout} s"
            time.sleep(0.001)
        return time.monotonic() - start

    @staticmethod
    def hold(seconds):
        """The fault itself lasts so long; nothing is waited for."""
        time.sleep(seconds)

    def progress(self, host, table="seen", limit=30, what="effects go on"):
        """Wait for an effect that was not there; how long that took."""
        before = self.count(table)
        with self.recovery(limit, what):
            host.wait(lambda: self.count(table) > before, 2 * limit * SLOWER, what)

    def count(self, table="seen"):
        return self.database.value(f"select count(*) from {table}")

    def count_of(self, handler, table="seen"):
        return self.database.value(f"select count(*) from {table} where handler = %s", (handler,))

    def journaled(self, number, timeout=60):
        wait_for(lambda: self.journal.count() >= number, timeout * SLOWER,
                 f"{number} acknowledged events")

    def ended(self, handler, table):
        return not judge(self.database, self.journal.read(), handler, table).lost

    def drain(self, hosts, handlers=(("tx", "seen"), ("plain", "effects")), timeout=60):
        """Until every acknowledged event has come out of each handler, or nothing
        has come any more for a while: then the comparison says what is missing."""
        hosts = hosts if isinstance(hosts, (list, tuple)) else [hosts]
        for producer in self.producers:
            producer.finish()
        last = [0, time.monotonic()]

        def is_over():
            count = [judge(self.database, self.journal.read(), *which).ended for which in handlers]
            if count != last[0]:
                last[:] = count, time.monotonic()
            return (all(self.ended(*which) for which in handlers)
                    or time.monotonic() > last[1] + STILL * SLOWER)
        try:
            hosts[0].wait(is_over, timeout * SLOWER, "the end of all events")
            hosts[0].wait(lambda: sum(host.metric("moontide_source_lag") for host in hosts) == 0,
                          20 * SLOWER, "no lag")
        except AssertionError as fault:
            print(fault)

    def check(self, handler="tx", table="seen", duplicates=0, ordered=True):
        found = assert_promises(self.database, self.journal.read(), handler, table, duplicates,
                                ordered)
        self.figures["duplicates"] = max(self.figures["duplicates"], found.duplicates)
        return found

    def check_both(self, duplicates):
        """Exactly once in transactions; without them no more often than allowed."""
        self.check("tx")
        self.check("plain", "effects", duplicates)
        assert not self.database.query("select * from event_dead_letters limit 3")

    # --- the end --------------------------------------------------------------------

    def close(self):
        for producer in self.producers:
            producer.end()
        for proxy in self.proxies:
            proxy.end()

    def write_result(self, passed):
        RESULTS.mkdir(exist_ok=True)
        run = os.environ.get("MOONTIDE_FAULTS_RUN") or time.strftime("%Y%m%d-%H%M%S")
        line = {"run": run, "row": self.row, "test": self.request.node.name, "seed": self.seed,
                "form": "long" if self.long else "short", "events": self.journal.count(),
                "result": passed, "seconds": round(time.monotonic() - self.began, 1),
                **{k: round(v, 2) for k, v in self.figures.items()}}
        with open(RESULTS / f"{run}.jsonl", "a") as file:
            file.write(json.dumps(line) + "\n")


def merged(settings, more):
    for name, value in more.items():
        if isinstance(value, dict) and isinstance(settings.get(name), dict):
            merged(settings[name], value)
        else:
            settings[name] = value
    return settings


def build_c(folder, source, *options):
    """Compile one of this folder's small C programs."""
    out = Path(folder) / Path(source).stem
    subprocess.run(["cc", "-std=c11", "-D_GNU_SOURCE", "-O1", "-Wall", "-Wextra", "-Werror",
                    str(ROOT / "tests/faults" / source), "-o", str(out), *options], check=True)
    return out


__all__ = ["Stage", "plain", "build_c", "percentile", "merged"]
