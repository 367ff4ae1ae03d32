"""Private servers for the tests and for `./dev up`.

Each server keeps its files in a folder of its own, listens on a random port of
127.0.0.1 and dies with the process that started it (setpriv --pdeathsig), so
that nothing of the machine is used and nothing is left behind.
"""

import glob
import os
import pwd
import random
import shutil
import signal
import socket
import subprocess
import time
import uuid
from pathlib import Path

import psycopg2
from confluent_kafka.admin import AdminClient

ROOT = Path(__file__).resolve().parent.parent
KAFKA_LIBS = ROOT / ".cache" / "kafka" / "libs"


def wait_for(condition, timeout=30.0, what="condition"):
    """Ask `condition` until it says something true; give that back."""
    deadline = time.monotonic() + timeout
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"{what}: not within {timeout:g} s (last: {value!r})")
        time.sleep(0.02)


def free_port():
    """Below those that the kernel gives to outgoing connections: these would
    take one away before the server that it is for has it."""
    while True:
        with socket.socket() as s:
            try:
                port = random.SystemRandom().randrange(10000, 32000)
                s.bind(("127.0.0.1", port))
                return port
            except OSError:
                pass


def children_of(pid):
    found = []
    for task in glob.glob(f"/proc/{pid}/task/*/children"):
        try:
            found += [int(child) for child in Path(task).read_text().split()]
        except OSError:
            pass  # the thread has ended meanwhile
    return found


def tail(path, lines=20):
    try:
        return "\n".join(Path(path).read_text(errors="replace").splitlines()[-lines:])
    except OSError:
        return ""


class Server:
    """A child process with a log file, ended by its pid only."""

    def __init__(self, folder):
        self.folder = Path(folder)
        self.process = None

    def spawn(self, argv, user=None, **kwargs):
        guard = ["setpriv", "--pdeathsig", "KILL"]
        if user:
            guard += [f"--reuid={user}", f"--regid={user}", "--clear-groups"]
        self.log = self.folder / "server.log"
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                guard + [str(a) for a in argv], stdin=subprocess.DEVNULL,
                stdout=log, stderr=log, start_new_session=True, **kwargs)

    def running(self):
        return self.process is not None and self.process.poll() is None

    def await_ready(self, condition, timeout, what):
        def ready():
            if not self.running():
                raise RuntimeError(f"{what} ended by itself:\n{tail(self.log)}")
            return condition()
        wait_for(ready, timeout, what)

    def end(self, sig=signal.SIGTERM, timeout=20):
        if not self.running():
            return
        self.process.send_signal(sig)
        try:
            self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class Authority:
    """A certificate authority of its own, and certificates for 127.0.0.1."""

    def __init__(self, folder):
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.ca, self.ca_key = self.folder / "ca.pem", self.folder / "ca.key"
        self.openssl("req", "-x509", "-keyout", self.ca_key, "-out", self.ca, "-subj",
                     f"/CN={self.folder.name}", "-days", "2", *self.NEW_KEY)

    NEW_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-noenc")

    def openssl(self, *args):
        done = subprocess.run(["openssl", *(str(a) for a in args)], capture_output=True, text=True)
        if done.returncode != 0:
            raise RuntimeError(f"openssl {args[0]}: {done.stderr}")

    def issue(self, name):
        """A certificate for localhost and 127.0.0.1: its path and its key's."""
        cert, key, wish = (self.folder / f"{name}.{end}" for end in ("pem", "key", "csr"))
        names = self.folder / f"{name}.names"
        names.write_text("subjectAltName=DNS:localhost,IP:127.0.0.1\n")
        self.openssl("req", "-new", "-keyout", key, "-out", wish, "-subj", f"/CN={name}",
                     *self.NEW_KEY)
        self.openssl("x509", "-req", "-in", wish, "-out", cert, "-CA", self.ca, "-CAkey",
                     self.ca_key, "-CAcreateserial", "-days", "2", "-extfile", names)
        return cert, key


class Postgres(Server):
    """A cluster of its own. The server refuses to run as root, so root hands
    it to the user `postgres`, which Debian's package makes."""

    SETTINGS = {
        "fsync": "off", "full_page_writes": "off", "synchronous_commit": "off",
        "max_connections": "200", "shared_buffers": "64MB",
        "max_prepared_transactions": "4", "max_locks_per_transaction": "256",
    }

    def __init__(self, folder, port=None, settings=None, trust_crash=True):
        super().__init__(folder)
        self.port = port or free_port()
        self.settings = dict(self.SETTINGS if trust_crash else {"max_connections": "200"})
        self.settings.update(settings or {})
        self.user = "postgres" if os.geteuid() == 0 else None
        self.owner = self.user or pwd.getpwuid(os.geteuid()).pw_name
        self.env = None  # the caller's
        self.bin = Path(sorted(glob.glob("/usr/lib/postgresql/*/bin"),
                               key=lambda p: int(p.split("/")[4]))[-1])

    @property
    def data(self):
        return self.folder / "data"

    def url(self, database="postgres", user="postgres"):
        return f"postgres://{user}@127.0.0.1:{self.port}/{database}"

    def as_owner(self, argv, check=True):
        if self.user:
            argv = ["setpriv", f"--reuid={self.user}", f"--regid={self.user}",
                    "--clear-groups"] + argv
        return subprocess.run([str(a) for a in argv], check=check, cwd="/",
                              stdout=subprocess.DEVNULL)

    def may_enter(self, folder):
        """Whether the server's user reaches `folder`."""
        return self.as_owner(["test", "-x", folder], check=False).returncode == 0

    def init(self):
        """Make the cluster, once; its superuser is `postgres`."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.user:
            shutil.chown(self.folder, self.user, self.user)
        if not (self.data / "PG_VERSION").exists():
            self.as_owner([self.bin / "initdb", "-D", self.data, "-U", "postgres",
                           "-A", "trust", "-E", "UTF8", "--locale=C.UTF-8", "--no-sync"])
        return self

    def start(self):
        (self.data / "postmaster.pid").unlink(missing_ok=True)
        options = dict(self.settings, port=self.port, listen_addresses="127.0.0.1",
                       unix_socket_directories="")
        self.spawn([self.bin / "postgres", "-D", self.data]
                   + [f"--{name}={value}" for name, value in options.items()],
                   user=self.user, cwd="/", env=self.env)
        self.await_ready(self.answers, 30, "PostgreSQL")
        return self

    def answers(self):
        try:
            psycopg2.connect(self.url(), connect_timeout=2).close()
            return True
        except psycopg2.OperationalError:
            return False

    def connect(self, database="postgres", autocommit=True):
        connection = psycopg2.connect(self.url(database))
        connection.autocommit = autocommit
        return connection

    def query(self, sql, args=None, database="postgres"):
        connection = self.connect(database)
        try:
            with connection.cursor() as cursor:
                cursor.execute(sql, args)
                return cursor.fetchall() if cursor.description else []
        finally:
            connection.close()

    def stop(self, sig=signal.SIGINT):
        """SIGINT is PostgreSQL's fast shutdown, SIGQUIT its crash."""
        self.end(sig)

    def kill(self):
        """SIGKILL for all of its processes at once, as a power cut ends them."""
        pids = [self.process.pid, *children_of(self.process.pid)]
        for pid in pids:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass  # it had just ended
        self.process.wait()
        wait_for(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in pids), 10,
                 "the server's processes end")

    def standby(self, folder, settings=None):
        """A second cluster that follows this one; not started."""
        other = Postgres(folder, settings=dict(self.settings, **(settings or {})))
        other.folder.mkdir(parents=True)
        if self.user:
            shutil.chown(other.folder, self.user, self.user)
        self.as_owner([self.bin / "pg_basebackup", "-D", other.data, "-d", self.url(), "-R",
                       "-c", "fast"])
        return other

    def promote(self):
        self.query("select pg_promote(true, 30)")


class Bouncer(Server):
    """pgbouncer in transaction mode before a cluster of the tests."""

    def __init__(self, folder, postgres, size=3):
        super().__init__(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.port, self.postgres = free_port(), postgres
        (self.folder / "users.txt").write_text('"postgres" ""\n')
        (self.folder / "pgbouncer.ini").write_text(f"""
[databases]
* = host=127.0.0.1 port={postgres.port}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {self.port}
unix_socket_dir =
auth_type = trust
auth_file = {self.folder}/users.txt
pool_mode = transaction
default_pool_size = {size}
admin_users = postgres
max_client_conn = 200
""")
        self.spawn(["/usr/sbin/pgbouncer", self.folder / "pgbouncer.ini"],
                   user=postgres.user, cwd="/")
        self.await_ready(self.answers, 10, "pgbouncer")

    def answers(self):
        with socket.socket() as s:
            return s.connect_ex(("127.0.0.1", self.port)) == 0

    def url(self, database):
        return f"postgres://postgres@127.0.0.1:{self.port}/{database.name}"

    def stop(self):
        self.end()

    def renew(self):
        """New sessions instead of those that moontide's clients have set up."""
        admin = psycopg2.connect(f"postgres://postgres@127.0.0.1:{self.port}/pgbouncer")
        admin.autocommit = True
        admin.cursor().execute("RECONNECT")
        admin.close()


class Kafka(Server):
    """Apache Kafka, one node that is broker and controller (KRaft).

    `through` is the port of a proxy that clients of a further listener (`inner`)
    are sent to. `voters` makes it one of several nodes: see KafkaCluster.
    """

    PROPERTIES = """
process.roles=broker,controller
node.id={node}
listeners={listeners}
advertised.listeners={advertised}
controller.listener.names=CONTROLLER
{quorum}
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,SASL_SSL:SASL_SSL,PROXIED:PLAINTEXT
log.dirs={folder}/logs
num.partitions=8
offsets.topic.num.partitions=4
offsets.topic.replication.factor=1
transaction.state.log.replication.factor=1
transaction.state.log.num.partitions=4
transaction.state.log.min.isr=1
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
group.initial.rebalance.delay.ms=0
group.min.session.timeout.ms=1000
auto.create.topics.enable=false
log.cleaner.dedupe.buffer.size=16777216
socket.request.max.bytes=268435456
"""

    JVM = ["-Xms256m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Xshare:auto",
           "-Djava.awt.headless=true"]

    #: The second listener, for who asks for one: users with passwords over TLS.
    SECURE = """
sasl.enabled.mechanisms=PLAIN,SCRAM-SHA-256
ssl.keystore.type=PKCS12
ssl.keystore.location={folder}/broker.p12
ssl.keystore.password=changeit
listener.name.sasl_ssl.plain.sasl.jaas.config=org.apache.kafka.common.security.plain.PlainLoginModule required user_{user}="{password}";
listener.name.sasl_ssl.scram-sha-256.sasl.jaas.config=org.apache.kafka.common.security.scram.ScramLoginModule required;
"""
    USER, PASSWORD = "moon", "tide and ebb"

    #: One of several nodes: no record that is acknowledged is on one of them alone.
    REPLICATED = """
default.replication.factor=3
min.insync.replicas=2
offsets.topic.replication.factor=3
transaction.state.log.replication.factor=3
transaction.state.log.min.isr=2
broker.session.timeout.ms=3000
broker.heartbeat.interval.ms=500
controller.quorum.election.timeout.ms=1000
controller.quorum.fetch.timeout.ms=2000
"""

    def __init__(self, folder, authority=None, through=None, node=1, heap="768m"):
        super().__init__(folder)
        self.port, self.controller = free_port(), free_port()
        self.bootstrap = f"127.0.0.1:{self.port}"
        self.authority = authority
        self.secure = free_port() if authority else None
        self.through, self.inner = through, free_port() if through else None
        self.node, self.heap = node, heap
        self.cluster, self.voters = str(uuid.uuid4()).replace("-", "")[:22], None

    @property
    def properties(self):
        return self.folder / "server.properties"

    def java(self, *args):
        return ["java", f"-Xmx{self.heap}", *self.JVM, "-cp", f"{KAFKA_LIBS}/*", *args]

    def init(self):
        if not KAFKA_LIBS.is_dir():
            raise RuntimeError("no jars of Apache Kafka: run ./dev deps")
        self.folder.mkdir(parents=True, exist_ok=True)
        argv = self.java("kafka.tools.StorageTool", "format", "-t", self.cluster,
                         "-c", str(self.properties), *([] if self.voters else ["--standalone"]))
        text = self.PROPERTIES + (self.REPLICATED if self.voters else "")
        if self.authority:
            # Of two lines with the same name the later one counts.
            text += self.SECURE
            argv += ["--add-scram",
                     f"SCRAM-SHA-256=[name={self.USER},password={self.PASSWORD}]"]
            cert, key = self.authority.issue("broker")
            self.authority.openssl("pkcs12", "-export", "-in", cert, "-inkey", key, "-out",
                                   self.folder / "broker.p12", "-passout", "pass:changeit")
        bound = [f"CONTROLLER://127.0.0.1:{self.controller}", *self.listeners(self.inner)]
        quorum = (f"controller.quorum.voters={self.voters}" if self.voters else
                  f"controller.quorum.bootstrap.servers=127.0.0.1:{self.controller}")
        self.properties.write_text(text.format(
            node=self.node, listeners=",".join(bound), quorum=quorum, folder=self.folder,
            advertised=",".join(self.listeners(self.through)), user=self.USER,
            password=self.PASSWORD))
        subprocess.run(argv, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT)
        return self

    def listeners(self, proxied):
        """Those for clients; the last one differs inside and outside."""
        ports = {"PLAINTEXT": self.port, "SASL_SSL": self.secure, "PROXIED": proxied}
        return [f"{name}://127.0.0.1:{port}" for name, port in ports.items() if port]

    def start(self):
        self.spawn(self.java("kafka.Kafka", self.properties))
        self.await_ready(self.answers, 90, "Apache Kafka")
        return self

    def run_tool(self, tool, *args):
        """One of Kafka's own tools, as its scripts call them."""
        subprocess.run(self.java(tool, "--bootstrap-server", self.bootstrap, *map(str, args)),
                       check=True, stdout=subprocess.DEVNULL)

    def answers(self):
        with socket.socket() as s:
            s.settimeout(1)
            if s.connect_ex(("127.0.0.1", self.port)) != 0:
                return False
        try:
            admin = AdminClient({"bootstrap.servers": self.bootstrap, "log_level": 0})
            return bool(admin.list_topics(timeout=2).brokers)
        except Exception:  # confluent_kafka raises its own kind for "not yet"
            return False

    def stop(self, sig=signal.SIGKILL):
        """Its data is thrown away with the folder: no reason to wait."""
        self.end(sig)


class KafkaCluster:
    """Several nodes, each broker and controller; every topic is on three."""

    def __init__(self, folder, nodes=3, heap="400m"):
        self.nodes = [Kafka(Path(folder) / f"node{n + 1}", node=n + 1, heap=heap)
                      for n in range(nodes)]
        self.bootstrap = ",".join(node.bootstrap for node in self.nodes)

    def start(self):
        voters = ",".join(f"{node.node}@127.0.0.1:{node.controller}" for node in self.nodes)
        for node in self.nodes:
            node.cluster, node.voters = self.nodes[0].cluster, voters
            node.init()
            node.spawn(node.java("kafka.Kafka", node.properties))
        wait_for(self.is_whole, 180, "three brokers")
        return self

    def is_whole(self):
        """All answer, and no partition lacks a replica."""
        try:
            found = AdminClient({"bootstrap.servers": self.bootstrap, "log_level": 0}).list_topics(
                timeout=2)
        except Exception:  # confluent_kafka raises its own kind for "not yet"
            return False
        return len(found.brokers) == len(self.nodes) and all(
            len(part.isrs) == len(part.replicas) and part.leader > 0
            for topic in found.topics.values() for part in topic.partitions.values())

    def leader(self, topic, partition=0):
        """The node that leads a partition."""
        found = AdminClient({"bootstrap.servers": self.bootstrap}).list_topics(topic, timeout=10)
        number = found.topics[topic].partitions[partition].leader
        return next(node for node in self.nodes if node.node == number)

    def stop(self):
        for node in self.nodes:
            node.stop()
