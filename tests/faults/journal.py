"""What was acknowledged, written down by who was told so.

One line an event, `state at n key id`, fsynced before the producer counts the
event as acknowledged. `acked` must come out; `unknown` (the connection ended
between the question and the answer) may, but no more than once.
"""

import os
import threading
import time
from collections import namedtuple
from pathlib import Path

Entry = namedtuple("Entry", "id key n at")


class Writer:
    """Any thread notes; one thread writes and fsyncs what has gathered."""

    def __init__(self, path):
        self.file = open(path, "ab", buffering=0)
        self.lines, self.kept, self.lock = [], 0, threading.Lock()
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self.run)
        self.thread.start()

    def note(self, state, id, key, n, at):
        with self.lock:
            self.lines.append(f"{state} {at:.6f} {n} {key} {id}\n")

    def keep(self):
        with self.lock:
            lines, self.lines = self.lines, []
        if lines:
            self.file.write("".join(lines).encode())
            os.fsync(self.file.fileno())
            self.kept += len(lines)

    def run(self):
        while not self.ended.wait(0.005):
            self.keep()

    def close(self):
        self.ended.set()
        self.thread.join()
        self.keep()
        self.file.close()


class Journal:
    """The same file, for who checks."""

    def __init__(self, path):
        self.path = Path(path)
        self.acked, self.unknown = {}, {}
        self.place = 0

    def read(self):
        """Take in what has been written since; gives the journal."""
        if not self.path.exists():
            return self
        with open(self.path, "rb") as file:
            file.seek(self.place)
            data = file.read()
        whole = data.rfind(b"\n") + 1
        self.place += whole
        for line in data[:whole].decode().splitlines():
            state, at, n, key, id = line.split(" ")
            into = self.acked if state == "acked" else self.unknown
            into[id] = Entry(id, key, int(n), float(at))
        return self

    def count(self):
        return len(self.read().acked)

    def add(self, id, key, n):
        """For events that a test writes itself."""
        self.acked[id] = Entry(id, key, n, time.time())
