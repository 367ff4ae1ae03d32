"""Where the time of host and worker goes, while a benchmark runs: perf where it
can record, else callgrind, which counts instructions and is fifty times slower.

The benchmark ends after its first run of ours. Left behind are flame graphs and
the folded stacks that they were drawn from.
"""

import os
import shutil
import signal
import subprocess
from collections import Counter
from pathlib import Path

from servers import wait_for

from flame import of_callgrind, of_perf, write_folded, write_svg

# Our release build keeps no frame pointers, and neither do Debian's libraries:
# the stacks are unwound from copies of them.
PERF = ["perf", "record", "-q", "-F", "499", "--call-graph", "dwarf,16384"]
CALLGRIND = ["valgrind", "-q", "--tool=callgrind", "--trace-children=yes",
             "--separate-callers=24", "--separate-recs=1"]


class Profiled(Exception):
    """The graphs are there; there is no reason to run on."""


def perf_works(folder):
    """Installed, allowed, and with samples: a container may lack any of it."""
    data = folder / "perf.try"
    if not shutil.which("perf"):
        print("  perf is not installed (Debian: linux-perf)")
        return False
    tried = subprocess.run([*PERF, "-o", data, "--", "sha256sum", shutil.which("perf")],
                           capture_output=True, text=True)
    told = subprocess.run(["perf", "script", "-i", data], capture_output=True, text=True)
    if tried.returncode == 0 and told.stdout.strip():
        return True
    print(f"  perf cannot record here: {tried.stderr.strip().splitlines()[-1:]}")
    return False


class Profiler:
    def __init__(self, name, folder, out):
        self.name, self.folder, self.out = name, folder, out
        self.perf, self.pid, self.workers = None, None, []
        self.works = perf_works(folder)
        if not self.works:
            print("  callgrind instead: instructions, not time, of a fiftieth of the events")

    def scale(self):
        return 1 if self.works else 0.02

    def argv(self, argv):
        """What to run instead of `argv`."""
        if self.works:  # it waits for perf, which then sees every thread of it
            return ["sh", "-c", 'kill -STOP $$; exec "$@"', "sh", *argv]
        return [*CALLGRIND, f"--callgrind-out-file={self.folder}/callgrind.%p", *argv]

    def attach(self, pid, workers):
        """To a host that was started with argv(), and to its first worker."""
        if self.works:
            self.record(pid)
            os.kill(pid, signal.SIGCONT)
        self.pid, self.workers = pid, wait_for(workers, 60, "a worker to profile")

    def record(self, pid):
        control, ack = self.folder / "perf.control", self.folder / "perf.ack"
        for fifo in (control, ack):
            os.mkfifo(fifo)
        stat = Path(f"/proc/{pid}/stat")
        wait_for(lambda: ") T " in stat.read_text(), 10, "a stopped host")
        self.perf = subprocess.Popen([*PERF, "-D", "-1", f"--control=fifo:{control},{ack}", "-o",
                                      self.folder / "perf.data", "-p", str(pid)],
                                     stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        control.write_text("enable\n")
        with open(ack) as answer:
            answer.readline()

    def detach(self):
        """True when there is something to draw."""
        if self.perf:
            self.perf.send_signal(signal.SIGINT)
            self.perf.wait()
        return bool(self.workers)

    def stacks(self):
        if self.works:
            return self.stacks_of_perf()
        return self.stacks_of_callgrind()

    def stacks_of_perf(self):
        told = subprocess.Popen(
            ["perf", "script", "--no-inline", "-F", "comm,pid,time,ip,sym,dso", "-i",
             self.folder / "perf.data"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            text=True, errors="replace")
        found = of_perf(told.stdout)
        told.wait()
        worker = sum((found.get(pid, Counter()) for pid in self.workers), Counter())
        return {"host": found.get(self.pid, Counter()), "worker": worker}

    def stacks_of_callgrind(self):
        """Probes and other short-lived children wrote files of their own."""
        found = {"host": Counter(), "worker": Counter()}
        for role, pids in (("host", [self.pid]), ("worker", self.workers)):
            for file in (self.folder / f"callgrind.{pid}" for pid in pids):
                with open(file, errors="replace") as lines:
                    found[role] += of_callgrind(lines)[1]
        return found

    def draw(self):
        unit = "samples of the processor" if self.works else "instructions"
        for role, stacks in self.stacks().items():
            if not stacks:
                raise RuntimeError(f"no samples of the {role}")
            base = self.out / f"{self.name}-{role}"
            write_folded(f"{base}.folded", stacks)
            write_svg(f"{base}.svg", f"{self.name}, {role}: {sum(stacks.values()):,} {unit}",
                      stacks)
            print(f"  {base}.svg")
