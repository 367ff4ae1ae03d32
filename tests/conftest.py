"""Fixtures: a PostgreSQL cluster and an Apache Kafka for each xdist worker, a
database, topics and hosts for each test."""

import itertools
import shutil
import sys
import tempfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tools"), str(ROOT / "tests" / "integration")]

from harness import Catcher, Database, Host, Topics  # noqa: E402
from servers import Authority, Kafka, Postgres  # noqa: E402

numbers = itertools.count(1)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item):
    outcome = yield
    setattr(item, "rep_" + outcome.get_result().when, outcome.get_result())


@pytest.fixture(scope="session")
def scratch():
    """A folder the user `postgres` may enter, which pytest's own is not."""
    folder = Path(tempfile.mkdtemp(prefix="moontide-test-", dir="/tmp"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def postgres(scratch):
    server = Postgres(scratch / "pg").init().start()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def authority(scratch):
    """Who signs the certificates of the servers under test."""
    return Authority(scratch / "authority")


@pytest.fixture(scope="session")
def kafka(scratch, authority):
    server = Kafka(scratch / "kafka", authority).init().start()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def migrated(postgres, scratch):
    """The name of a database with the schema, to be copied for each test."""
    postgres.query("create database template_moontide")
    host = Host(scratch / "migrate",
                settings={"database": {"url": postgres.url("template_moontide")}})
    host.cli("migrate", "up", "-c", str(host.conf))
    return "template_moontide"


@pytest.fixture
def database(postgres, migrated):
    name = f"t{next(numbers)}"
    postgres.query(f"create database {name} template {migrated}")
    yield Database(postgres, name)
    postgres.query(f"drop database {name} with (force)")


@pytest.fixture
def own_postgres(scratch):
    """A cluster the test may break."""
    server = Postgres(scratch / f"pg{next(numbers)}", settings={"wal_level": "logical"})
    yield server.init().start()
    server.stop()


@pytest.fixture
def topics(kafka, request):
    return Topics(kafka, f"t{next(numbers)}.{request.node.name.split('[')[0][:60]}")


@pytest.fixture
def make_host(tmp_path, request):
    """make_host(settings=…, handlers=…, env=…): not started; ended by us."""
    hosts = []

    def make(**kwargs):
        hosts.append(Host(tmp_path / f"host{len(hosts)}", **kwargs))
        return hosts[-1]

    yield make
    report = getattr(request.node, "rep_call", None)
    for host in hosts:
        if report is not None and report.failed:
            sys.stderr.write(host.obituary())
        host.clean_up()


@pytest.fixture
def catcher(tmp_path):
    """Mail and webhooks arrive here."""
    server = Catcher(tmp_path / "catcher")
    yield server
    server.end()
