"""What came out, held against the journal. moontide is never asked.

`seen` has one row for each committed transaction of a handler, `effects` one
for each time a handler without transaction ran. Dead letters and recorded
skips are ends too.
"""

from collections import Counter, defaultdict, namedtuple

Findings = namedtuple("Findings", "lost unexpected doubled inverted ended_twice duplicates ended")


def rows_of(database, table, handler):
    return database.query(
        f"select event_id, key, n from {table} where handler = %s order by place", (handler,))


def ends_of(database, handler):
    """Dead letters and skips: event id -> how it ended."""
    ends = {id: "dead" for id, in database.query(
        "select event_id from event_dead_letters where handler = %s", (handler,))}
    ends.update({id: "skip" for id, in database.query(
        "select event_id from event_deliveries where handler = %s and outcome = 'skip'",
        (handler,))})
    return ends


def inversions(rows):
    """Of the first time of each event: n must rise within its key."""
    last, met, found = defaultdict(lambda: -1), set(), []
    for id, key, n in rows:
        if id in met:
            continue
        met.add(id)
        if n <= last[key]:
            found.append((key, last[key], n))
        last[key] = n
    return found


def judge(database, journal, handler, table="seen", ordered=True):
    """What fits and what does not, for one handler."""
    rows, other = rows_of(database, table, handler), ends_of(database, handler)
    times = Counter(id for id, _, _ in rows)
    ended = set(times) | set(other)
    return Findings(
        lost=sorted(set(journal.acked) - ended),
        unexpected=sorted(ended - set(journal.acked) - set(journal.unknown)),
        doubled=sorted(id for id, n in times.items() if n > 1),
        inverted=inversions(rows) if ordered else [],
        ended_twice=sorted(set(times) & set(other)) if table == "seen" else [],
        duplicates=len(rows) - len(times), ended=len(ended))


def assert_promises(database, journal, handler, table="seen", duplicates=0, ordered=True):
    """`duplicates`: how many the row allows to a handler without transaction."""
    found = judge(database, journal, handler, table, ordered)
    faults = [f"{len(events)} {name}, such as {events[:3]}"
              for name, events in found._asdict().items()
              if name in ("lost", "unexpected", "inverted", "ended_twice") and events]
    if table == "seen" and found.doubled:
        faults.append(f"{len(found.doubled)} doubled, such as {found.doubled[:3]}")
    if found.duplicates > duplicates:
        faults.append(f"{found.duplicates} duplicates, allowed are {duplicates:.0f}")
    assert not faults, f"{handler} of {len(journal.acked)} events: " + "; ".join(faults)
    return found


def percentile(values, share):
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))] if ordered else 0.0


def latencies(database, journal, handler, table="seen"):
    """(when written, seconds from then to the effect) of each acknowledged event."""
    rows = database.query(
        f"select event_id, extract(epoch from min(at))::float8 from {table}"
        " where handler = %s group by 1", (handler,))
    known = {**journal.unknown, **journal.acked}
    return [(known[id].at, at - known[id].at) for id, at in rows if id in known]


def peak(database, table, handler, seconds):
    """The most events a handler did in any stretch of so many seconds."""
    times = [at for at, in database.query(
        f"select extract(epoch from at)::float8 from {table} where handler = %s order by 1",
        (handler,))]
    most = first = 0
    for last, at in enumerate(times):
        while times[first] < at - seconds:
            first += 1
        most = max(most, last - first + 1)
    return most
