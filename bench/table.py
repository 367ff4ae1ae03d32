"""The table of targets and figures in docs/PERFORMANCE.md, from bench/results/*.json:
what has a target has a row, met or not by the median.

`./dev bench all` ends with it, `./dev bench table` writes it again.
"""

import json
import re
import sys

from common import RESULTS, ROOT, shown, told_of

PAGE = ROOT / "docs" / "PERFORMANCE.md"
START, END = "<!-- bench -->", "<!-- /bench -->"


def is_met(target, median):
    """By the target's text: `≥ 0.65`, `≤ 2,000`; without a sign, what it says."""
    sign, number = re.match(r"([≥≤]?) ?([\d.,]+)", target).groups()
    wanted = float(number.replace(",", ""))
    if sign == "≥":
        return median >= wanted
    return median <= wanted


def named(rows):
    """Rows with their whole names: an indented one belongs to the one above it."""
    above = ""
    for row in rows:
        what = row["what"]
        if not what.startswith(" "):
            above = what.split(":")[0]
        yield (f"{above}: {what.strip()}" if what.startswith(" ") else what), row


def figure(row):
    unit = "" if row["unit"] in ("", "ratio") else f" {row['unit']}"
    text = f"{shown(row['median'])}{unit}"
    if row["min"] != row["max"]:
        text += f" ({shown(row['min'])} to {shown(row['max'])})"
    return text


def lines_of(result):
    for what, row in named(result["rows"]):
        if row["target"]:
            met = "met" if is_met(row["target"], row["median"]) else "**not met**"
            yield (f"| `{result['name']}` | {what} | {row['target']} | {figure(row)} "
                   f"| {met} |")


def heading(results):
    """Where and when; of which commits, as one benchmark may be run again alone."""
    machines = [r["machine"] for r in results]
    places = "; ".join(sorted({told_of(m) for m in machines}))
    commits = ", ".join(sorted({m["commit"] for m in machines}))
    dates = sorted(m["date"][:10] for m in machines)
    when = dates[0] if dates[0] == dates[-1] else f"{dates[0]} to {dates[-1]}"
    return (f"{places}; commit {commits}; {when}. Medians, and the range where there was "
            "more than one run.")


def table(results):
    rows = [line for result in results for line in lines_of(result)]
    return "\n".join([START, heading(results), "",
                      "| benchmark | what | target | figure | |", "| --- | --- | --- | --- | --- |",
                      *rows, END])


def main():
    results = [json.loads(file.read_text()) for file in sorted(RESULTS.glob("*.json"))]
    results = [r for r in results if r.get("machine", {}).get("versions")]
    page = PAGE.read_text()
    if not results or page.count(START) != 1 or page.count(END) != 1:
        sys.exit(f"nothing in {RESULTS}, or not one {START} … {END} in {PAGE}")
    before, rest = page.split(START)
    PAGE.write_text(before + table(results) + rest.split(END)[1])
    print(f"  {PAGE}")


main()
