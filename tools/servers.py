"""Private servers for the tests and for `./dev up`.

Each server keeps its files in a folder of its own, listens on a random port of
127.0.0.1 and dies with the process that started it (setpriv --pdeathsig), so
that nothing of the machine is used and nothing is left behind.
"""

import glob
import os
import pwd
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
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


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
                   user=self.user, cwd="/")
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


class Kafka(Server):
    """Apache Kafka, one node that is broker and controller (KRaft)."""

    PROPERTIES = """
process.roles=broker,controller
node.id=1
listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}
advertised.listeners=PLAINTEXT://127.0.0.1:{port}
controller.listener.names=CONTROLLER
controller.quorum.bootstrap.servers=127.0.0.1:{controller}
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT
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
"""

    JVM = ["-Xmx768m", "-Xms256m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1",
           "-Xshare:auto", "-Djava.awt.headless=true"]

    #: The second listener, for who asks for one: users with passwords over TLS.
    SECURE = """
listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller},SASL_SSL://127.0.0.1:{secure}
advertised.listeners=PLAINTEXT://127.0.0.1:{port},SASL_SSL://127.0.0.1:{secure}
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,SASL_SSL:SASL_SSL
sasl.enabled.mechanisms=PLAIN,SCRAM-SHA-256
ssl.keystore.type=PKCS12
ssl.keystore.location={folder}/broker.p12
ssl.keystore.password=changeit
listener.name.sasl_ssl.plain.sasl.jaas.config=org.apache.kafka.common.security.plain.PlainLoginModule required user_{user}="{password}";
listener.name.sasl_ssl.scram-sha-256.sasl.jaas.config=org.apache.kafka.common.security.scram.ScramLoginModule required;
"""
    USER, PASSWORD = "moon", "tide and ebb"

    def __init__(self, folder, authority=None):
        super().__init__(folder)
        self.port, self.controller = free_port(), free_port()
        self.bootstrap = f"127.0.0.1:{self.port}"
        self.authority = authority
        self.secure = free_port() if authority else None

    @property
    def properties(self):
        return self.folder / "server.properties"

    def java(self, *args):
        return ["java", *self.JVM, "-cp", f"{KAFKA_LIBS}/*", *args]

    def init(self):
        if not KAFKA_LIBS.is_dir():
            raise RuntimeError("no jars of Apache Kafka: run ./dev deps")
        self.folder.mkdir(parents=True, exist_ok=True)
        cluster = str(uuid.uuid4()).replace("-", "")[:22]
        argv = self.java("kafka.tools.StorageTool", "format", "--standalone",
                         "-t", cluster, "-c", str(self.properties))
        text = self.PROPERTIES
        if self.authority:
            # Of two lines with the same name the later one counts.
            text += self.SECURE
            argv += ["--add-scram",
                     f"SCRAM-SHA-256=[name={self.USER},password={self.PASSWORD}]"]
            cert, key = self.authority.issue("broker")
            self.authority.openssl("pkcs12", "-export", "-in", cert, "-inkey", key, "-out",
                                   self.folder / "broker.p12", "-passout", "pass:changeit")
        self.properties.write_text(text.format(
            port=self.port, controller=self.controller, folder=self.folder,
            secure=self.secure, user=self.USER, password=self.PASSWORD))
        subprocess.run(argv, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT)
        return self

    def start(self):
        self.spawn(self.java("kafka.Kafka", self.properties))
        self.await_ready(self.answers, 90, "Apache Kafka")
        return self

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
