"""Fixtures of the fault suite, beside those of tests/conftest.py."""

import re

import pytest

from proxy import Proxy
from servers import Kafka, free_port
from stage import Stage


def pytest_addoption(parser):
    parser.addoption("--long", action="store_true", help="the counts of the plan, not the short ones")


@pytest.fixture(scope="session")
def kafka(scratch):
    """With a second listener, whose clients go through a port that a test may
    put a proxy on."""
    server = Kafka(scratch / "kafka", through=free_port()).init().start()
    yield server
    server.stop()


@pytest.fixture
def own_servers():
    """What a scenario starts for itself; ended after the hosts that use it."""
    servers = []
    yield servers
    for server in servers:
        server.stop()


# In the order of the arguments they are made, and against it they are ended.
@pytest.fixture
def stage(request, tmp_path, database, own_servers, make_host):
    row = re.match(r"test_([A-Z]\d+)", request.node.name).group(1)
    made = Stage(request, tmp_path, row, database, own_servers, make_host)
    yield made
    made.close()
    report = getattr(request.node, "rep_call", None)
    if report and hasattr(report, "wasxfail"):
        made.write_result("missing")
    elif report:
        made.write_result("passed" if report.passed else "failed")


@pytest.fixture
def kafka_proxy(kafka):
    """Between the broker and the clients of its second listener."""
    proxy = Proxy(kafka.inner, kafka.through)
    yield proxy
    proxy.end()
