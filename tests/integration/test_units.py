"""Unit tests in C that also have a part for a real server."""

import os
import subprocess

import pytest
from harness import PRESET
from servers import ROOT


@pytest.mark.parametrize("name", ["pg", "migrate", "worker_sql", "worker_tx"])
def test_units_against_a_server(name, own_postgres):
    done = subprocess.run([ROOT / "build" / PRESET / "tests" / f"test_{name}"], cwd=ROOT,
                          env=dict(os.environ, MOONTIDE_TEST_PG=own_postgres.url()),
                          capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "SKIPPED" not in done.stdout + done.stderr
