"""A moontide host under test: its folder, its configuration, its life.

A test says what it wants in settings and handler files, and asks the host what
a user could ask: HTTP, metrics, log lines, the database, the exit code. Waiting
is always for a condition, never for a time.
"""

import json
import os
import re
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

from servers import ROOT, Server, free_port, tail, wait_for

PRESET = os.environ.get("MOONTIDE_PRESET", "dev")
BINARY = Path(os.environ.get("MOONTIDE_BINARY") or ROOT / "build" / PRESET / "moontide")
SLOWER = {"asan": 3, "tsan": 6}.get(PRESET, 1)  # how much longer everything may take
FULL = bool(os.environ.get("MOONTIDE_TEST_FULL"))


def to_lua(value, indent=""):
    """Python data as a Lua table, for conf/moontide.lua."""
    if value is None:
        return "nil"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, (list, tuple)):
        return "{ " + ", ".join(to_lua(v, indent) for v in value) + " }"
    if isinstance(value, dict):
        inner = indent + "  "
        lines = [f"{inner}[{json.dumps(k)}] = {to_lua(v, inner)},\n" for k, v in value.items()]
        return "{\n" + "".join(lines) + indent + "}"
    return json.dumps(str(value))


def merge(base, extra):
    for key, value in extra.items():
        if isinstance(value, dict) and isinstance(base.get(key), dict):
            merge(base[key], value)
        else:
            base[key] = value
    return base


def clean_environment(extra=None):
    """Nothing of the caller's settings may reach the host under test."""
    names = ("DATABASE_URL", "KAFKA_", "EVENT_BUS_", "DOMAIN_EVENTS_", "MOONTIDE_", "OTEL_", "PG")
    env = {k: v for k, v in os.environ.items() if not k.startswith(names)}
    env.update(extra or {})
    return env


class Reply:
    def __init__(self, status, headers, body):
        self.status, self.headers, self.body = status, headers, body

    def json(self):
        return json.loads(self.body)


class Host:
    """One `moontide run` with a folder of its own; `under` is the command line of
    a tool that runs it."""

    def __init__(self, folder, settings=None, handlers=None, env=None, binary=None, under=()):
        self.binary, self.under = Path(binary or BINARY), [str(word) for word in under]
        self.folder = Path(folder)
        self.handlers = self.folder / "handlers"
        self.conf = self.folder / "moontide.lua"
        self.log = self.folder / "host.log"
        self.process = None
        self.env = clean_environment(env)
        self.settings = merge({
            "http": {"listen": "127.0.0.1:0"},
            "log": {"format": "json"},
            "handlers": {"path": str(self.handlers)},
            "workers": {"count": 2},
        }, settings or {})
        self.handlers.mkdir(parents=True, exist_ok=True)
        for name, text in (handlers or {}).items():
            self.handler(name, text)
        self.write_conf()

    # --- files ------------------------------------------------------------

    def write_conf(self):
        self.conf.write_text("return " + to_lua(self.settings) + "\n")

    def handler(self, name, text):
        """Save a handler as an editor does: a new file renamed over the old."""
        path = self.handlers / f"{name}.lua"
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = path.with_name(f".{path.name}.new")
        fresh.write_text(text)
        fresh.replace(path)
        return path

    # --- life -------------------------------------------------------------

    def cli(self, *args, check=True, timeout=60, input=None, env=None):
        """Run one command of the binary; gives the finished process."""
        done = subprocess.run([str(self.binary), *args], env=dict(self.env, **(env or {})),
                              cwd=self.folder, input=input, capture_output=True,
                              text=True, timeout=timeout)
        if check and done.returncode != 0:
            raise AssertionError(f"moontide {' '.join(args)}: exit {done.returncode}\n"
                                 f"{done.stdout}{done.stderr}")
        return done

    def spawn(self, *args):
        """Start the host without waiting for it to be of use."""
        self.log_start = self.log.stat().st_size if self.log.exists() else 0
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", *self.under, str(self.binary), "run", "-c",
                 str(self.conf), *args],
                env=self.env, cwd=self.folder, stdin=subprocess.DEVNULL,
                stdout=log, stderr=log)
        return self

    def start(self, *args, timeout=30):
        self.spawn(*args)
        self.wait(lambda: self.log_lines("started") and self.ask("/healthz"), timeout, "host up")
        return self

    def wait(self, condition, timeout=30, what="condition"):
        """wait_for() that gives up at once when the host has ended."""
        def alive():
            value = condition()
            if not value and self.process.poll() is not None:
                raise AssertionError(f"{what}: the host ended with {self.process.returncode}:\n"
                                     f"{tail(self.log, 30)}")
            return value
        try:
            return wait_for(alive, timeout, what)
        except AssertionError as fault:
            raise AssertionError(f"{fault}\n--- host.log\n{tail(self.log, 30)}") from None

    def stop(self, sig=signal.SIGTERM, timeout=30):
        """As an operator would; gives the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(sig)
        return self.process.wait(timeout)

    def kill(self):
        """SIGKILL, as fate would."""
        self.process.kill()
        self.process.wait()

    def clean_up(self):
        if self.process and self.process.poll() is None:
            workers = self.worker_pids()
            self.kill()
            wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers), 10,
                     "workers end with their host")

    def obituary(self):
        """What a failed test should show of it."""
        text = f"--- {self.log}\n{tail(self.log, 40)}\n" if self.log.exists() else ""
        if self.process and self.process.poll() is None:
            reply = self.port and self.ask("/v1/status")
            text += f"--- /v1/status\n{reply.body.decode() if reply else 'no answer'}\n"
        return text

    # --- processes ----------------------------------------------------------

    def worker_pids(self):
        """Its children that run handlers; probes are short-lived and not these."""
        found = []
        for task in Path(f"/proc/{self.process.pid}/task").glob("*/children"):
            for pid in task.read_text().split():
                try:
                    argv = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
                except OSError:
                    continue
                if b"worker" in argv:
                    found.append(int(pid))
        return found

    @staticmethod
    def rss_kib(pid):
        status = Path(f"/proc/{pid}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+)", status).group(1))

    # --- what it says ---------------------------------------------------------

    def log_lines(self, phrase=None):
        """Log lines since the last start, as dictionaries."""
        found = []
        if not self.log.exists():
            return found
        with open(self.log, "rb") as file:
            file.seek(self.log_start)
            for line in file:
                try:
                    entry = json.loads(line)
                except ValueError:
                    continue
                if isinstance(entry, dict) and (phrase is None or entry.get("message") == phrase):
                    found.append(entry)
        return found

    def log_text(self):
        with open(self.log, "rb") as file:
            file.seek(self.log_start)
            return file.read().decode(errors="replace")

    @property
    def port(self):
        lines = self.log_lines("listening")
        return int(lines[-1]["addr"].rpartition(":")[2]) if lines else None

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}"

    def ask(self, path, method="GET", body=None, token=None, timeout=10):
        """One HTTP request; None when the host does not answer."""
        request = urllib.request.Request(self.url + path, method=method)
        if body is not None:
            request.data = json.dumps(body).encode()
            request.add_header("Content-Type", "application/json")
        if token:
            request.add_header("Authorization", f"Bearer {token}")
        try:
            with urllib.request.urlopen(request, timeout=timeout) as reply:
                return Reply(reply.status, reply.headers, reply.read())
        except urllib.error.HTTPError as refused:
            return Reply(refused.code, refused.headers, refused.read())
        except OSError:
            return None

    def metrics(self):
        """Every sample of /metrics: 'name{label="x"}' -> value."""
        reply = self.ask("/metrics")
        samples = {}
        for line in reply.body.decode().splitlines() if reply else ():
            if line and not line.startswith("#"):
                name, value = line.rsplit(" ", 1)
                samples[name] = float(value)
        return samples

    def metric(self, name, /, **labels):
        """Sum of the samples of `name` that carry these labels."""
        total = 0.0
        for sample, value in self.metrics().items():
            base, _, rest = sample.partition("{")
            if base == name and all(f'{k}="{v}"' in rest for k, v in labels.items()):
                total += value
        return total


class Catcher(Server):
    """tools/catcher.py with ports of its own."""

    def __init__(self, folder, *options):
        super().__init__(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.smtp, self.http = free_port(), free_port()
        self.spawn([sys.executable, ROOT / "tools/catcher.py", "--smtp-port", self.smtp,
                    "--http-port", self.http, "--out", self.folder / "caught.jsonl", *options])
        self.await_ready(lambda: self.items() is not None, 20, "the catcher")

    def items(self, kind=None):
        """What arrived, as the catcher keeps it."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.http}/items.json", timeout=5) as r:
                return [item for item in json.load(r) if kind in (None, item["kind"])]
        except OSError:
            return None

    def settings(self):
        """The setting `mail` of a host that sends here."""
        return {"url": f"smtp://127.0.0.1:{self.smtp}", "from": "moontide <demo@example.com>"}


class Database:
    """The test's own database in the worker's cluster."""

    def __init__(self, server, name):
        self.server, self.name = server, name
        self.url = server.url(name)

    def query(self, sql, args=None):
        return self.server.query(sql, args, self.name)

    def value(self, sql, args=None):
        rows = self.query(sql, args)
        return rows[0][0] if rows else None

    def connect(self, autocommit=False):
        return self.server.connect(self.name, autocommit)

    def publish(self, type, aggregate_type, aggregate_id, payload, **more):
        """publish_event() in a transaction of its own; gives the id."""
        named = {"type": type, "aggregate_type": aggregate_type, "aggregate_id": aggregate_id,
                 "payload": json.dumps(payload), **more}
        if isinstance(named.get("metadata"), dict):
            named["metadata"] = json.dumps(named["metadata"])
        args = ", ".join(f"{key} => %({key})s" for key in named)
        return self.value(f"select publish_event({args})", named)


class Topics:
    """Topics on the worker's broker, with names of the test's own."""

    def __init__(self, kafka, prefix):
        from confluent_kafka.admin import AdminClient

        self.kafka, self.prefix = kafka, prefix
        self.bootstrap = kafka.bootstrap
        self.admin = AdminClient({"bootstrap.servers": self.bootstrap})

    def create(self, name="events", partitions=8, replicas=1, **config):
        from confluent_kafka.admin import NewTopic

        topic = f"{self.prefix}.{name}"
        new = NewTopic(topic, num_partitions=partitions, replication_factor=replicas,
                       config={k.replace("_", "."): str(v) for k, v in config.items()})
        self.admin.create_topics([new])[topic].result(30)
        return topic

    def producer(self, **config):
        from confluent_kafka import Producer

        return Producer({"bootstrap.servers": self.bootstrap, "linger.ms": 5,
                         "enable.idempotence": True,
                         **{k.replace("_", "."): v for k, v in config.items()}})

    def produce(self, topic, records):
        """Write (key, value, headers) records and wait until they are stored."""
        faults = []
        producer = self.producer()
        for key, value, headers in records:
            while True:
                try:
                    producer.produce(topic, key=key, value=value, headers=headers,
                                     on_delivery=lambda err, _: err and faults.append(err))
                    break
                except BufferError:
                    producer.poll(0.1)
        producer.flush(60)
        assert not faults, faults[:3]

    def consumer(self, **config):
        from confluent_kafka import Consumer

        return Consumer({"bootstrap.servers": self.bootstrap, "group.id": f"{self.prefix}.reader",
                         "auto.offset.reset": "earliest", "enable.auto.commit": False,
                         **{k.replace("_", "."): v for k, v in config.items()}})

    def ends(self, topic):
        """partition -> high watermark."""
        from confluent_kafka import TopicPartition

        consumer = self.consumer()
        try:
            partitions = consumer.list_topics(topic, 10).topics[topic].partitions
            return {p: consumer.get_watermark_offsets(TopicPartition(topic, p), 10)[1]
                    for p in partitions}
        finally:
            consumer.close()

    def committed(self, topic, group):
        """partition -> committed offset, -1001 when there is none."""
        from confluent_kafka import TopicPartition

        consumer = self.consumer(group_id=group)
        try:
            asked = [TopicPartition(topic, p) for p in self.ends(topic)]
            return {t.partition: t.offset for t in consumer.committed(asked, timeout=10)}
        finally:
            consumer.close()

    def read_all(self, topic):
        """Every record of the topic up to its present end."""
        from confluent_kafka import OFFSET_BEGINNING, TopicPartition

        ends = {p: end for p, end in self.ends(topic).items() if end > 0}
        consumer = self.consumer()
        records = []
        try:
            consumer.assign([TopicPartition(topic, p, OFFSET_BEGINNING) for p in ends])
            while ends:
                record = consumer.poll(10)
                assert record is not None and record.error() is None, f"{topic}: {record}"
                records.append(record)
                if record.offset() + 1 >= ends[record.partition()]:
                    del ends[record.partition()]
            return records
        finally:
            consumer.close()


def envelope(number, type="TestHappened", aggregate_type="Test", aggregate_id=None, payload=None,
             id=None, **more):
    """A native JSON envelope (docs/HANDLERS.md) as bytes."""
    body = {
        "id": id or f"00000000-0000-4000-8000-{number:012d}",
        "eventType": type, "eventVersion": 1,
        "aggregateType": aggregate_type, "aggregateId": aggregate_id or f"a{number % 97}",
        "occurredAt": "2026-01-31T12:00:00.000000Z",
        "payload": payload if payload is not None else {"n": number}, "metadata": {},
    }
    body.update(more)
    return json.dumps(body).encode()
