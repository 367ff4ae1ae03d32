"""What the benchmarks share: servers, measuring, pairs, tables, results.

A ratio of two medians from runs that alternate in one process of measuring is
what counts here; figures of their own depend on the machine and on the day.
CPU is user and system time of all threads of our processes, host and workers.
"""

import argparse
import json
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))

from profiler import Profiled, Profiler  # noqa: E402
from servers import (KAFKA_LIBS, Kafka, Postgres, Server, free_port, tail,  # noqa: E402
                     wait_for)

BUILD = ROOT / "build" / "release"
RESULTS = ROOT / "bench" / "results"
TICK_US = 1e6 / os.sysconf("SC_CLK_TCK")

# The soft limit is wall time: where other work shares the machine, a handler that did
# nothing wrong would lose its VM, and with it what it has counted.
CONF = """return {{
  database = {{ url = "{database}" }},
  kafka = {{ brokers = "{brokers}", topics = {{ {topics} }}, group_id = "{group}" }},
  outbox = {{ {outbox} }},
  http = {{ listen = "127.0.0.1:{port}" }},
  workers = {{ count = {workers}, soft_limit = "10s" }},
  templates = {{ path = "{root}/templates" }},
  handlers = {{ path = "{handlers}", lua = "{root}/lua" }},
}}
"""


# --- processes ---------------------------------------------------------------

def stat_of(pid):
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()


def cpu_us(pid):
    """User and system time of a process, µs."""
    fields = stat_of(pid)
    return (int(fields[11]) + int(fields[12])) * TICK_US


def children(pid):
    found = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True)
    return [int(word) for word in found.stdout.split()]


def words_of(pid):
    """Its command line; nothing of a process that has just gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().split("\0")
    except OSError:
        return []


def tree_cpu_us(pid):
    """The same with its children, those that have gone, too."""
    total = 0
    for child in children(pid):
        try:
            total += cpu_us(child)
        except FileNotFoundError:
            pass  # it goes right now: its parent will have counted it
    fields = stat_of(pid)
    return cpu_us(pid) + total + (int(fields[13]) + int(fields[14])) * TICK_US


def peak_mib(pid):
    status = Path(f"/proc/{pid}/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+)", status)[1]) / 1024


def resident_mib(pid):
    status = Path(f"/proc/{pid}/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+)", status)[1]) / 1024


def run_json(program, *args):
    """One of the C programs, or the path of another; it prints one line of JSON
    and ends with us."""
    done = subprocess.run(["setpriv", "--pdeathsig", "KILL", str(BUILD / "bench" / program),
                           *(str(a) for a in args)],
                          capture_output=True, text=True, timeout=600)
    if done.returncode != 0:
        raise RuntimeError(f"{program} {args}: {done.stdout}{done.stderr}")
    return json.loads(done.stdout)


# --- moontide -----------------------------------------------------------------

HANDLERS = {
    "three": """return { subscribes = { "*" }, concurrency = 1000, start = "earliest",
  handle = function(event, ctx)
    local p = event.payload
    if event.type == nil or p.total == nil or p.currency == nil then
      error("a field is missing")
    end
  end }
""",
}


class Host(Server):
    """`moontide run` of the release build; one handler file or those of the
    repository."""

    profiler = None  # set for all of them by --profile

    def __init__(self, folder, handlers, database="", brokers="", topics=(), group=None,
                 workers=1, outbox=""):
        super().__init__(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.port = free_port()
        for name, text in handlers.items():
            (self.folder / "handlers").mkdir(exist_ok=True)
            (self.folder / "handlers" / f"{name}.lua").write_text(text)
        self.conf = self.folder / "moontide.lua"
        self.conf.write_text(CONF.format(
            database=database, brokers=brokers, root=ROOT, port=self.port, workers=workers,
            topics=", ".join(f'"{t}"' for t in topics), outbox=outbox,
            group=group or f"bench-{time.time_ns()}", handlers=self.folder / "handlers"))

    def cli(self, *args):
        done = subprocess.run([str(BUILD / "moontide"), *args, "-c", str(self.conf)],
                              capture_output=True, text=True)
        if done.returncode != 0:
            raise RuntimeError(f"moontide {args}: {done.stdout}{done.stderr}")
        return done.stdout

    def argv(self):
        argv = [BUILD / "moontide", "run", "-c", self.conf]
        return self.profiler.argv(argv) if self.profiler else argv

    def log_has(self, words):
        return words in self.log.read_text(errors="replace")

    def start(self):
        self.spawn(self.argv())
        if self.profiler:
            self.profiler.attach(self.process.pid, self.workers)
        self.await_ready(lambda: self.page("/healthz") is not None, 30, "the host")
        return self

    def end(self, *args, **kwargs):
        """With --profile, the benchmark is over after the first one."""
        profiled = self.profiler and self.profiler.detach()
        super().end(*args, **kwargs)
        if profiled and sys.exc_info()[0] is None:
            self.profiler.draw()
            raise Profiled

    def page(self, path):
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=5) as reply:
                return reply.read().decode()
        except OSError:
            return None

    def metric(self, name, labels=""):
        """The sum over the series that have these labels."""
        page = self.page("/metrics") or ""
        found = re.findall(rf"^{name}(?:{{(.*?)}})? ([0-9.e+-]+)$", page, re.M)
        return sum(float(value) for label, value in found if labels in label)

    def workers(self):
        """Not the probes, which come and go."""
        return [pid for pid in children(self.process.pid) if "worker" in words_of(pid)]

    def cpu_us(self):
        """Host and workers."""
        workers = 0
        for pid in self.workers():
            try:
                workers += cpu_us(pid)
            except FileNotFoundError:
                pass  # a probe that has just ended
        return cpu_us(self.process.pid), workers

    def drain_all(self, handler, events, timeout=600):
        """Until the handler has settled so many events. Rates are taken from the
        first look that shows any to the last one that shows not yet all."""
        first = before = None
        deadline = time.monotonic() + timeout
        while True:
            count = self.metric("moontide_settled_total", f'handler="{handler}",how="ack"')
            now, (host, workers) = time.monotonic(), self.cpu_us()
            look = (now, count, host, workers)
            if count and not first:  # of a short one there is no better
                first = before if before and count >= events else look
            before = look
            if count >= events:
                break
            if now > deadline or not self.running():
                raise RuntimeError(f"{count} of {events} events:\n{tail(self.log)}")
            time.sleep(0.05)
        n = count - first[1]
        return {
            "events": n, "seconds": now - first[0], "rate": n / (now - first[0]),
            "host_us": (host - first[2]) / n, "worker_us": (workers - first[3]) / n,
            "cpu_us": (host + workers - first[2] - first[3]) / n,
            "host_mib": peak_mib(self.process.pid),
            "worker_mib": max(peak_mib(pid) for pid in self.workers()),
        }


# --- the outbox -----------------------------------------------------------------

FILL_OUTBOX = """
insert into domain_events (aggregate_id, aggregate_type, event_type, event_version, event_data,
                           metadata, occurred_at)
select 'o-' || n %% 100000, 'Order',
       (array['order.created', 'order.paid', 'order.payment_failed', 'order.shipped'])[1 + n %% 4],
       1,
       jsonb_build_object('number', 'R-' || n, 'customer', jsonb_build_object('name', md5(n::text),
                          'email', md5(n::text) || '@example.com'),
                          'total', n %% 100000 / 100.0, 'currency', 'USD',
                          'items', jsonb_build_array(jsonb_build_object('sku', 'A-' || n %% 1000,
                          'name', md5((n * 7)::text), 'quantity', n %% 9, 'price', n %% 200)),
                          'note', repeat(md5((n * 3)::text), 5 + n %% 4)),
       jsonb_build_object('actorId', 'u-' || n %% 997, 'correlationId', 'c-' || n), now()
from generate_series(%s, %s) n"""


def fill_outbox(server, database, events, a_transaction=100_000):
    """Events 1 to `events`, so many in each transaction."""
    for start in range(1, events + 1, a_transaction):
        server.query(FILL_OUTBOX, (start, min(events, start + a_transaction - 1)), database)
    server.query("vacuum analyze domain_events", database=database)


# --- running and telling ----------------------------------------------------------

class Bench:
    """Folder, arguments and results of one benchmark."""

    def __init__(self, name, what, pairs=5, options=lambda parser: None):
        self.name = name
        parser = argparse.ArgumentParser(prog=f"./dev bench {name}", description=what)
        parser.add_argument("--out", help="write the results there, as JSON")
        parser.add_argument("--pairs", type=int, default=pairs,
                            help=f"pairs after the warm-up ({pairs})")
        parser.add_argument("--scale", type=float, default=1.0,
                            help="a part of the events, for a first look (1)")
        parser.add_argument("--profile", action="store_true",
                            help="flame graphs of host and worker instead of figures")
        options(parser)
        self.args = parser.parse_args()
        self.folder = Path(tempfile.mkdtemp(prefix=f"moontide-bench-{name}-", dir="/tmp"))
        self.folder.chmod(0o755)
        self.servers, self.rows, self.raw = [], [], {}
        self.profiler = None
        if self.args.profile:
            self.profiler = Host.profiler = Profiler(name, self.folder, RESULTS)
            self.args.scale *= self.profiler.scale()

    def __enter__(self):
        return self

    def __exit__(self, kind, *exc):
        if kind and kind is not Profiled:
            for log in self.folder.glob("*/server.log"):
                print(f"--- {log}\n{tail(log)}", file=sys.stderr)
        for server in reversed(self.servers):
            server.stop() if hasattr(server, "stop") else server.end()
        shutil.rmtree(self.folder, ignore_errors=True)
        if self.profiler and not kind:
            print("  no host of it runs long enough for a profile")
        elif not kind:
            self.tell()
        return kind is Profiled

    def count(self, events):
        return max(1000, int(events * self.args.scale))

    def kafka(self):
        server = Kafka(self.folder / "kafka").init().start()
        self.servers.append(server)
        return server

    def postgres(self, **settings):
        server = Postgres(self.folder / "pg", settings=settings).init().start()
        self.servers.append(server)
        return server

    def drain(self, host, handler, events, server=None):
        """Start, drain, end: what drain_all() tells, and the CPU of `server`."""
        before = tree_cpu_us(server.process.pid) if server else 0
        host.start()
        try:
            result = host.drain_all(handler, events)
        finally:
            host.end(timeout=40)
        if server:
            result["server_us"] = (tree_cpu_us(server.process.pid) - before) / events
        return result

    def program(self, program, *args):
        """One of the C programs that run our own code."""
        if not self.profiler:
            return run_json(program, *args)
        argv = [str(a) for a in (BUILD / "bench" / program, *args)]
        with subprocess.Popen(self.profiler.argv(argv), stdout=subprocess.DEVNULL) as process:
            self.profiler.attach(process.pid, lambda: children(process.pid))
        self.profiler.detach()
        self.profiler.draw()
        raise Profiled

    def limit(self, program, *args, server=None):
        """One of bench/limits, with its rate and the CPU of `server`."""
        before = tree_cpu_us(server.process.pid) if server else 0
        result = run_json(program, *args)
        result["rate"] = result["events"] / result["seconds"]
        if server:
            spent = tree_cpu_us(server.process.pid) - before
            result["server_us"] = spent / result["events"]
        return result

    def pairs(self, ours, limit):
        """A B A B …: one pair to warm up, then as many as were asked for."""
        pairs = []
        for i in range(self.args.pairs + 1):
            pair = (ours(i), limit(i))
            if i > 0:
                pairs.append(pair)
        return pairs

    def repeat(self, run):
        run(0)
        return [run(i + 1) for i in range(self.args.pairs)]

    def row(self, what, values, unit="", target=""):
        """A line of the table: the median and the range."""
        values = list(values)
        self.rows.append({"what": what, "median": statistics.median(values),
                          "min": min(values), "max": max(values), "unit": unit,
                          "target": target})

    def tell(self):
        width = max((len(row["what"]) for row in self.rows), default=0)
        for row in self.rows:
            figures = " ".join(f"{shown(row[k]):>12}" for k in ("median", "min", "max"))
            print(f"  {row['what']:<{width}} {figures}  {row['unit']:<10} {row['target']}")
        where = machine()
        print(f"  {told_of(where)}; commit {where['commit']}")
        if self.args.out:
            Path(self.args.out).write_text(json.dumps(
                {"name": self.name, "machine": where, "rows": self.rows, "raw": self.raw},
                indent=1) + "\n")


def percentile(values, p):
    values = sorted(values)
    return values[min(len(values) - 1, int(len(values) * p))]


def shown(value):
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3f}" if abs(value) < 100 else f"{value:.1f}"


def output(*argv):
    """What a command says, or nothing where it is not installed."""
    try:
        done = subprocess.run([str(a) for a in argv], cwd=ROOT, capture_output=True, text=True)
    except OSError:
        return ""
    return done.stdout.strip()


def package(name):
    """A version without Debian's own part of it."""
    return re.sub(r"^\d+:|[-+~].*$", "", output("dpkg-query", "-W", "-f", "${Version}", name))


def versions():
    """Of what the figures depend on beside our own code."""
    jars = [jar.stem for jar in KAFKA_LIBS.glob("kafka-clients-*.jar")]
    return {
        "librdkafka": output("pkg-config", "--modversion", "rdkafka"),
        "PostgreSQL": output(Postgres("/tmp").bin / "postgres", "--version").split()[2],
        "Kafka": jars[0].rsplit("-", 1)[1] if jars else "",
        "LuaJIT": package("libluajit-5.1-2"),
        "simdjson": package("libsimdjson-dev"),
        "libc": package("libc6"),
        "gcc": output("cc", "-dumpfullversion"),
        "Debian": Path("/etc/debian_version").read_text().strip(),
    }


def commit():
    """What was built and measured; documents may differ."""
    changed = output("git", "status", "--porcelain", "--untracked-files=no", "--", "src", "lua",
                     "handlers", "bench", "CMakeLists.txt", "CMakePresets.json")
    return output("git", "rev-parse", "--short", "HEAD") + (" with changes" if changed else "")


def machine():
    cpu = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    memory = re.search(r"MemTotal:\s+(\d+)", Path("/proc/meminfo").read_text())
    return {"cpu": cpu[1] if cpu else platform.processor(), "cores": os.cpu_count(),
            "memory_gib": round(int(memory[1]) / 2**20), "kernel": platform.release(),
            "versions": versions(), "commit": commit(),
            "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}


def told_of(machine):
    """The line of a run that says where it ran."""
    versions = ", ".join(f"{name} {v}" for name, v in machine["versions"].items())
    return (f"{machine['cores']} cores of {machine['cpu']}, {machine['memory_gib']} GiB, "
            f"Linux {machine['kernel']}; {versions}")
