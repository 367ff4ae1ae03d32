"""Instructions per event, counted by callgrind: how speed is kept on machines
whose clocks cannot be trusted.

`./dev bench instructions` counts and compares with bench/instructions.json;
`--write` makes the counts the ones to keep, to be committed with what changed
them; `--check` fails when one has grown by more than 3 %. What depends on the
processor is fixed: simdjson's implementation and glibc's choice of functions; addresses too.
Counts of another compiler or library are not comparable, and are not compared.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROGRAM = ROOT / "build" / "release" / "bench" / "instructions"
KEPT = ROOT / "bench" / "instructions.json"
GROWTH = 1.03

FIXED = {
    "SIMDJSON_FORCE_IMPLEMENTATION": "westmere",
    "GLIBC_TUNABLES": "glibc.cpu.hwcaps=-AVX,-AVX_Fast_Unaligned_Load,-AVX2,-AVX512F,-AVX512VL,"
                      "-ERMS,-FSRM,-BMI2,-MOVBE:glibc.malloc.tcache_count=7",
}
PACKAGES = ("gcc-12", "libc6", "libluajit-5.1-2", "libsimdjson14", "libev4", "libjansson4",
            "valgrind")

HOST, WORKER, SHORT = 20000, 1000, 200
CASES = {
    "host, facts in headers": ("host", HOST, "headers"),
    "host, facts in the envelope": ("host", HOST, "envelope"),
    "host, each of four handlers": ("host", HOST, "headers", 4),
    "worker, three fields": ("worker", WORKER, "three"),
    "worker, the whole payload": ("worker", WORKER, "walk"),
    "worker, event.raw": ("worker", WORKER, "raw"),
    "worker, nothing": ("worker", WORKER, "none"),
    "worker, each of four handlers": ("worker", WORKER, "three", 4),
}


def count(*args, out="/dev/null"):
    done = subprocess.run(
        ["setarch", "--addr-no-randomize", "valgrind", "--tool=callgrind", "--instr-atstart=no", f"--callgrind-out-file={out}",
         str(PROGRAM), *(str(a) for a in args)],
        capture_output=True, text=True, env={**os.environ, **FIXED})
    found = re.search(r"Collected : (\d+)", done.stderr)
    if done.returncode != 0 or not found:
        raise RuntimeError(f"{args}: {done.stderr[-2000:]}")
    return int(found[1])


def per_event(case):
    """The host counts only its own part; of a worker, what more events add. Of
    several handlers, what each of them costs."""
    path, events, *rest = CASES[case]
    handlers = rest[1] if len(rest) > 1 else 1
    if path == "host":
        return round(count(path, events, *rest) / events / handlers)
    # A timer that fires meanwhile only adds.
    most = min(count(path, events, *rest) for _ in range(3))
    least = min(count(path, SHORT, *rest) for _ in range(3))
    return round((most - least) / (events - SHORT) / handlers)


def versions():
    """None where a package is another one: the counts are of Debian 12."""
    done = subprocess.run(["dpkg-query", "-W", "-f", "${Package} ${Version}\\n", *PACKAGES],
                          capture_output=True, text=True)
    return dict(line.split() for line in done.stdout.splitlines() if " " in line)


def compare(kept, counts):
    """True when nothing has grown."""
    good = True
    for case, now in counts.items():
        before = kept["counts"].get(case)
        grown = before is None or now > before * GROWTH
        good = good and not grown
        word = "" if before is None else f"{now / before - 1:+.1%}"
        print(f"  {case:<30} {now:>7,} {before or 0:>7,}  {word}{'  MORE' if grown else ''}")
    return good


def kept_of_run(result):
    from common import machine  # which needs what the servers need

    return json.dumps({"name": "instructions", "machine": machine(), "rows": [],
                       **json.loads(result)}, indent=1) + "\n"


def main():
    parser = argparse.ArgumentParser(prog="./dev bench instructions", description=__doc__)
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--profile", metavar="CASE", help="leave callgrind's output of one case")
    parser.add_argument("--out", help="write the counts there")
    args = parser.parse_args()
    if args.profile:
        out = Path(tempfile.gettempdir()) / "callgrind.out"
        count(*CASES[args.profile], out=out)
        print(f"  callgrind_annotate {out}")
        return 0
    kept = json.loads(KEPT.read_text()) if KEPT.exists() else {"versions": {}, "counts": {}}
    if args.check and kept["versions"] != versions():
        print("  instructions per event: not compared, the counts are of other versions")
        return 0
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        counts = dict(zip(CASES, pool.map(per_event, CASES)))
    good = compare(kept, counts)
    result = json.dumps({"versions": versions(), "counts": counts}, indent=1) + "\n"
    if args.write:
        KEPT.write_text(result)
    if args.out:
        Path(args.out).write_text(kept_of_run(result))
    if args.check and not good:
        print("  an event costs more than before: make it cheaper, or say why and commit\n"
              "  bench/instructions.json as ./dev bench instructions --write leaves it")
        return 1
    return 0


sys.exit(main())
