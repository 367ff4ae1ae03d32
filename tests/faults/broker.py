"""Brokers that a scenario may break: librdkafka's mock cluster, and three nodes."""

import os
import subprocess
from pathlib import Path

from servers import ROOT
from stage import build_c

FETCH, LIST_OFFSETS, METADATA, OFFSET_COMMIT, OFFSET_FETCH = 1, 2, 3, 8, 9
FIND_COORDINATOR, JOIN_GROUP, HEARTBEAT, SYNC_GROUP = 10, 11, 12, 14

NOT_LEADER, TIMED_OUT, LOADING, NOT_AVAILABLE, NOT_COORDINATOR = 6, 7, 14, 15, 16
ILLEGAL_GENERATION, UNKNOWN_MEMBER, REBALANCING, STALE_EPOCH = 22, 25, 27, 74

#: What real brokers answer to what, besides the answer.
ERRORS = {
    FETCH: (NOT_LEADER, TIMED_OUT, STALE_EPOCH),
    LIST_OFFSETS: (NOT_LEADER, TIMED_OUT),
    OFFSET_COMMIT: (LOADING, NOT_AVAILABLE, NOT_COORDINATOR, TIMED_OUT, REBALANCING,
                    ILLEGAL_GENERATION),
    OFFSET_FETCH: (LOADING, NOT_COORDINATOR, TIMED_OUT),
    FIND_COORDINATOR: (NOT_AVAILABLE, TIMED_OUT),
    JOIN_GROUP: (LOADING, NOT_COORDINATOR, UNKNOWN_MEMBER),
    SYNC_GROUP: (NOT_COORDINATOR, REBALANCING),
    HEARTBEAT: (NOT_AVAILABLE, NOT_COORDINATOR, REBALANCING, ILLEGAL_GENERATION, UNKNOWN_MEMBER),
}


def flags_of(library):
    """Compiler and linker flags, as ./dev sees the library."""
    env = dict(os.environ, PKG_CONFIG_PATH=f"{ROOT}/.cache/deps/lib/pkgconfig:"
               + os.environ.get("PKG_CONFIG_PATH", ""))
    return subprocess.run(["pkg-config", "--cflags", "--libs", library], env=env, check=True,
                          capture_output=True, text=True).stdout.replace("-I", "-isystem").split()


class MockCluster:
    def __init__(self, folder):
        program = build_c(folder, "mock_cluster.c", *flags_of("rdkafka"))
        self.process = subprocess.Popen([program], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                        stderr=open(Path(folder) / "mock.log", "wb"), text=True)
        self.bootstrap = self.process.stdout.readline().strip()
        assert self.bootstrap, (Path(folder) / "mock.log").read_text()

    def tell(self, *words):
        line = " ".join(str(word) for word in words)
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        assert self.process.stdout.readline().strip() == "ok", line

    def inject(self, rng, share, requests=20):
        """Of the next requests of each kind, `share` fail in some way."""
        for api, codes in ERRORS.items():
            self.tell("fail", api, *(rng.choice(codes) if rng.random() < share else 0
                                     for _ in range(requests)))

    def heal(self):
        for api in ERRORS:
            self.tell("clear", api)

    def stop(self):
        self.process.stdin.close()
        self.process.wait(20)
