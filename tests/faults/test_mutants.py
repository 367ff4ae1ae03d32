"""Is the oracle awake? Builds that break a promise on purpose must fail."""

import os
import subprocess
import sys

import pytest
from harness import SLOWER
from servers import ROOT

#: What each does instead is at its #if; and the row that has to see it.
MUTANTS = {"auto_store": "A1", "max_offset": "A1", "id_watermark": "P5"}


def build(name):
    folder = ROOT / "build" / f"mutant-{name}"
    for command in (["cmake", "-S", ROOT, "-B", folder, "-G", "Ninja", f"-DMUTANT={name}",
                     "-DCMAKE_BUILD_TYPE=Debug", "-DBUILD_TESTING=OFF"],
                    ["cmake", "--build", folder, "--target", "moontide"]):
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return folder / "moontide"


@pytest.mark.xdist_group("mutants")
@pytest.mark.parametrize("name", MUTANTS)
def test_a_build_that_breaks_a_promise_is_caught(name, tmp_path):
    env = dict(os.environ, MOONTIDE_BINARY=str(build(name)), MOONTIDE_FAULTS_RESULTS=str(tmp_path),
               PYTHONDONTWRITEBYTECODE="1")
    for variable in ("PYTEST_XDIST_WORKER", "PYTEST_XDIST_WORKER_COUNT", "PYTEST_XDIST_TESTRUNUID",
                     "PYTEST_CURRENT_TEST"):
        env.pop(variable, None)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", ROOT / "tests/faults",
         "-k", MUTANTS[name]], env=env, capture_output=True, text=True, timeout=300 * SLOWER)
    text = done.stdout + done.stderr
    assert done.returncode == 1 and " lost, such as" in text, f"exit {done.returncode}\n{text[-3000:]}"
