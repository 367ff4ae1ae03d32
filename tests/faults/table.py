#!/usr/bin/python3
"""Writes the table of docs/RELIABILITY.md from the last runs in results/.

One line for each scenario: how many runs, what they went through, how it ended.
`table.py [RUNS]`, five by default; a row counts only its last form (short, long).
"""

import json
import re
import sys
from collections import defaultdict
from pathlib import Path

HERE = Path(__file__).resolve().parent
PAGE = HERE.parent.parent / "docs" / "RELIABILITY.md"
MARKERS = "<!-- results -->", "<!-- end of results -->"

HEAD = """| row | scenario | runs | events | faults | duplicates | slowest recovery | result |
| --- | --- | ---: | ---: | ---: | ---: | ---: | --- |"""


def lines_of(runs):
    files = sorted((HERE / "results").glob("*.jsonl"), key=lambda file: file.stat().st_mtime)
    for file in files[-runs:]:
        for line in file.read_text().splitlines():
            yield json.loads(line)


def title(test):
    return re.sub(r"^test_[A-Z]\d+_", "", test).replace("_", " ")


def order(row):
    return "ABPDTLEF".index(row[0]), int(row[1:])


def result(lines):
    results = [line["result"] for line in lines]
    if set(results) == {"missing"}:
        return "not there yet"
    passed = results.count("passed")
    return "passed" if passed == len(results) else f"**passed {passed} of {len(results)}**"


def table(lines):
    scenarios = defaultdict(list)
    for line in lines:
        scenarios[line["row"], line["test"]].append(line)
    rows = [HEAD]
    for (row, test), runs in sorted(scenarios.items(), key=lambda item: (order(item[0][0]), item[0][1])):
        is_missing = result(runs) == "not there yet"
        figures = ["", "", "", ""] if is_missing else [
            f"{sum(run['events'] for run in runs):,}", f"{sum(run['faults'] for run in runs):,}",
            f"{sum(run['duplicates'] for run in runs):,}", f"{max(run['recovery'] for run in runs):.1f} s"]
        rows.append(f"| {row} | {title(test)} | {len(runs)} | " + " | ".join(figures)
                    + f" | {result(runs)} |")
    return "\n".join(rows)


def main():
    lines = list(lines_of(int(sys.argv[1]) if len(sys.argv) > 1 else 5))
    if not lines:
        sys.exit("no results: ./dev test faults writes them")
    runs, forms = {line["run"] for line in lines}, {line["form"] for line in lines}
    seeds = len({line["seed"] for line in lines})
    said = (f"{len(runs)} runs, {' and '.join(sorted(forms))} form, {len(lines)} scenarios with"
            f" {seeds} seeds.")
    text = PAGE.read_text()
    before, rest = text.split(MARKERS[0])
    after = rest.split(MARKERS[1])[1]
    PAGE.write_text(f"{before}{MARKERS[0]}\n\n{said}\n\n{table(lines)}\n\n{MARKERS[1]}{after}")


if __name__ == "__main__":
    main()
