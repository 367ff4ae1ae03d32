/* The outbox source as JSON, for /v1/status and /v1/sources. */
#include "sources/outbox_priv.h"

static const char *state_name(const struct outbox_source *s)
{
    bool is_paused = s->readings.len > 0;

    if (s->trouble)
        return "trouble";
    if (s->is_absent)
        return "absent";
    if (!s->is_open)
        return "opening";
    if (!outbox_shards_opened(s))
        return "waiting"; /* for a lease: other hosts have all shards */
    if (!s->readings.len)
        return "opening";
    for (size_t i = 0; i < s->readings.len; i++)
        is_paused = is_paused && s->readings.at[i]->is_paused;
    return is_paused ? "paused" : "reading";
}

static int64_t missing(const struct ranges *r)
{
    int64_t n = 0;

    for (size_t i = 0; i < r->len; i++)
        n += r->at[i].last - r->at[i].first + 1;
    return n;
}

json_t *outbox_source_json(const struct outbox_source *s)
{
    const struct reading *front = readings_front(&s->readings);

    return json_pack(
        "{s:s, s:s, s:s, s:b, s:s?, s:I, s:I, s:I, s:f, s:O?, s:I, s:i, s:o}",
        "kind", "outbox", "table", s->table, "state", state_name(s),
        "connected", outbox_source_connected(s), "trouble", s->trouble, "last",
        (json_int_t)(front ? front->cursor.last : 0), "missing",
        (json_int_t)(front ? missing(&front->cursor.gaps) : 0), "readings",
        (json_int_t)s->readings.len, "oldestGapSeconds",
        outbox_source_gap_age(s), "heldBy", s->holder, "wakeUps",
        (json_int_t)s->rings, "shards", (int)outbox_source_shards(s), "hosts",
        outbox_lease_json(s->lease));
}
