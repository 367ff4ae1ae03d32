#include "sources/decode.h"

#include "base/buf.h"
#include "base/scan.h"
#include "base/utf8.h"

#include <string.h>
#include <strings.h>

#define ID_MAX 1024 /* bytes */

#define MEMBERS(X)                              \
    X(ID, "id")                                 \
    X(EVENT_TYPE, "eventType")                  \
    X(EVENT_VERSION, "eventVersion")            \
    X(AGGREGATE_TYPE, "aggregateType")          \
    X(AGGREGATE_ID, "aggregateId")              \
    X(AGGREGATE_VERSION, "aggregateVersion")    \
    X(OCCURRED_AT, "occurredAt")                \
    X(METADATA, "metadata")                     \
    X(SPECVERSION, "specversion")               \
    X(TYPE, "type")                             \
    X(SOURCE, "source")                         \
    X(SUBJECT, "subject")                       \
    X(TIME, "time")                             \
    X(DATAVERSION, "dataversion")               \
    X(CE_AGGREGATE_TYPE, "aggregatetype")       \
    X(CE_AGGREGATE_VERSION, "aggregateversion") \
    X(TRACEPARENT, "traceparent")               \
    X(CORRELATION_ID, "correlationid")

enum member {
#define X(id, name) MEMBER_##id,
    MEMBERS(X)
#undef X
        MEMBER_COUNT,
};

static const char *const member_names[] = {
#define X(id, name) name,
    MEMBERS(X)
#undef X
};

/* A name as it is outside, and the fact it gives. */
struct mapping {
    struct slice name;
    enum fact fact;
};

#define NAMED(name, fact)              \
    {                                  \
        {name, sizeof(name) - 1}, fact \
    }

static const struct mapping native_headers[] = {
    NAMED("id", FACT_ID),
    NAMED("type", FACT_TYPE),
    NAMED("version", FACT_VERSION),
    NAMED("aggregate_type", FACT_AGGREGATE_TYPE),
    NAMED("occurred_at", FACT_OCCURRED_AT),
    NAMED("traceparent", FACT_TRACEPARENT),
    NAMED("correlation_id", FACT_CORRELATION_ID),
};

static const struct mapping cloud_headers[] = {
    NAMED("ce_id", FACT_ID),
    NAMED("ce_type", FACT_TYPE),
    NAMED("ce_dataversion", FACT_VERSION),
    NAMED("ce_aggregatetype", FACT_AGGREGATE_TYPE),
    NAMED("ce_aggregateversion", FACT_AGGREGATE_VERSION),
    NAMED("ce_subject", FACT_AGGREGATE_ID),
    NAMED("ce_time", FACT_OCCURRED_AT),
    NAMED("ce_traceparent", FACT_TRACEPARENT),
    NAMED("ce_correlationid", FACT_CORRELATION_ID),
};

/* The router's `table.fields.additional.placement` chooses names; these are
 * the columns' own and those of its documentation. */
static const struct mapping debezium_headers[] = {
    NAMED("id", FACT_ID),
    NAMED("eventType", FACT_TYPE),
    NAMED("event_type", FACT_TYPE),
    NAMED("type", FACT_TYPE),
    NAMED("version", FACT_VERSION),
    NAMED("eventVersion", FACT_VERSION),
    NAMED("aggregateType", FACT_AGGREGATE_TYPE),
    NAMED("aggregatetype", FACT_AGGREGATE_TYPE),
    NAMED("aggregate_type", FACT_AGGREGATE_TYPE),
    NAMED("aggregateId", FACT_AGGREGATE_ID),
    NAMED("aggregateid", FACT_AGGREGATE_ID),
    NAMED("occurred_at", FACT_OCCURRED_AT),
    NAMED("traceparent", FACT_TRACEPARENT),
    NAMED("correlation_id", FACT_CORRELATION_ID),
};

#define COUNT(table) (sizeof(table) / sizeof((table)[0]))

bool format_parse(const char *name, enum format *format)
{
    static const char *const names[] = {"auto", "native", "cloudevents",
                                        "debezium"};

    for (size_t i = 0; i < COUNT(names); i++) {
        if (strcmp(name, names[i]) == 0) {
            *format = (enum format)i;
            return true;
        }
    }
    return false;
}

static bool is_text(struct slice value)
{
    return value.len > 0 && utf8_is_valid(value.ptr, value.len);
}

/* The row of a header's name, or `n`. */
static size_t row_of(const struct mapping *table, size_t n, struct slice name)
{
    size_t i = 0;

    while (i < n && !slice_eq(table[i].name, name))
        i++;
    return i;
}

/* Of several headers for one fact the table's first wins, and of two with the
 * same name the first; what is no text gives none. */
static void take_headers(const struct kafka_kept *kept,
                         const struct mapping *table, size_t n,
                         struct slice *facts)
{
    size_t best[FACT_COUNT];

    for (int i = 0; i < FACT_COUNT; i++)
        best[i] = facts[i].ptr ? 0 : n;
    for (size_t i = 0; i < kept->nheaders; i++) {
        const struct kafka_header *header = &kept->headers[i];
        size_t row = row_of(table, n, header->name);

        if (row == n || row >= best[table[row].fact] || !is_text(header->value))
            continue;
        facts[table[row].fact] = header->value;
        best[table[row].fact] = row;
    }
}

static struct slice or_else(struct slice value, struct slice other)
{
    return value.ptr ? value : other;
}

/* The record's key, where it can be an aggregate's id. */
static struct slice key_text(const struct kafka_kept *kept)
{
    return is_text(kept->key) ? kept->key : (struct slice){NULL, 0};
}

/* A scanned value, moved where it lives as long as the record. */
static struct slice keep(struct kafka_kept *kept, struct slice value)
{
    const char *start = kept->value.ptr;

    if (!value.ptr ||
        (value.ptr >= start && value.ptr < start + kept->value.len))
        return value;
    return kafka_kept_note(kept, value);
}

static void take_members(struct kafka_kept *kept, struct slice *facts,
                         const struct slice *members)
{
    static const enum member of_fact[FACT_COUNT] = {
        [FACT_ID] = MEMBER_ID,
        [FACT_TYPE] = MEMBER_EVENT_TYPE,
        [FACT_VERSION] = MEMBER_EVENT_VERSION,
        [FACT_AGGREGATE_TYPE] = MEMBER_AGGREGATE_TYPE,
        [FACT_AGGREGATE_ID] = MEMBER_AGGREGATE_ID,
        [FACT_AGGREGATE_VERSION] = MEMBER_AGGREGATE_VERSION,
        [FACT_OCCURRED_AT] = MEMBER_OCCURRED_AT,
        [FACT_METADATA] = MEMBER_METADATA,
        [FACT_TRACEPARENT] = MEMBER_TRACEPARENT,
        [FACT_CORRELATION_ID] = MEMBER_CORRELATION_ID,
    };

    for (size_t i = 0; i < FACT_COUNT; i++)
        if (!facts[i].ptr && members[of_fact[i]].len)
            facts[i] = keep(kept, members[of_fact[i]]);
}

/* CloudEvents are unique by source and id together. */
static void join_id(struct kafka_kept *kept, struct slice source,
                    struct slice *id)
{
    struct buf joined = {0};

    if (!source.len || !id->ptr)
        return;
    buf_add(&joined, source.ptr, source.len);
    buf_add_char(&joined, '#');
    buf_add(&joined, id->ptr, id->len);
    *id = kafka_kept_note(kept, (struct slice){joined.ptr, joined.len});
    buf_fini(&joined);
}

static bool needs_type(const struct slice *facts, struct err *err,
                       const char *where)
{
    if (facts[FACT_TYPE].len)
        return true;
    return err_code(err, ERR_PERMANENT, "no_type", "no event type in %s",
                    where);
}

static bool is_json_type(struct slice type)
{
    static const char json[] = "json";

    for (size_t i = 0; i + 4 <= type.len; i++)
        if (strncasecmp(type.ptr + i, json, 4) == 0)
            return true;
    return false;
}

/* --- the formats ----------------------------------------------------------- */

/* Extension attributes become the metadata. */
static void cloud_metadata(struct kafka_kept *kept, struct slice *metadata)
{
    struct buf json = {0};

    for (size_t i = 0; i < kept->nheaders; i++) {
        const struct kafka_header *header = &kept->headers[i];
        bool is_known = strncmp(header->name.ptr, "ce_", 3) != 0 ||
                        strcmp(header->name.ptr, "ce_source") == 0 ||
                        strcmp(header->name.ptr, "ce_specversion") == 0;

        for (size_t j = 0; !is_known && j < COUNT(cloud_headers); j++)
            is_known = slice_eq(header->name, cloud_headers[j].name);
        if (is_known || !is_text(header->value))
            continue;
        buf_add_char(&json, json.len ? ',' : '{');
        buf_add_json(&json, slice_of(header->name.ptr + 3));
        buf_add_char(&json, ':');
        buf_add_json(&json, header->value);
    }
    if (json.len) {
        buf_add_char(&json, '}');
        *metadata = kafka_kept_note(kept, (struct slice){json.ptr, json.len});
    }
    buf_fini(&json);
}

static bool cloud_binary(struct kafka_kept *kept, struct decoded *out,
                         struct err *err)
{
    struct slice type = kafka_kept_header(kept, SLICE_LIT("content-type"));

    take_headers(kept, cloud_headers, COUNT(cloud_headers), out->facts);
    join_id(kept, kafka_kept_header(kept, SLICE_LIT("ce_source")),
            &out->facts[FACT_ID]);
    cloud_metadata(kept, &out->facts[FACT_METADATA]);
    out->facts[FACT_AGGREGATE_ID] =
        or_else(out->facts[FACT_AGGREGATE_ID], key_text(kept));
    out->form = !type.ptr || is_json_type(type) ? BODY_PAYLOAD : BODY_BINARY;
    /* An event may have no data; some write that as an empty record. */
    if (!kept->value.ptr || (!kept->value.len && out->form == BODY_PAYLOAD))
        out->body = SLICE_LIT("null");
    return needs_type(out->facts, err, "the CloudEvent's headers");
}

static bool cloud_structured(struct kafka_kept *kept, struct slice *members,
                             struct decoded *out, struct err *err)
{
    members[MEMBER_EVENT_TYPE] = members[MEMBER_TYPE];
    members[MEMBER_EVENT_VERSION] = members[MEMBER_DATAVERSION];
    members[MEMBER_AGGREGATE_TYPE] = members[MEMBER_CE_AGGREGATE_TYPE];
    members[MEMBER_AGGREGATE_ID] = members[MEMBER_SUBJECT];
    members[MEMBER_AGGREGATE_VERSION] = members[MEMBER_CE_AGGREGATE_VERSION];
    members[MEMBER_OCCURRED_AT] = members[MEMBER_TIME];
    members[MEMBER_METADATA] = (struct slice){NULL, 0}; /* the extensions */
    memset(out->facts, 0, sizeof(out->facts));
    take_members(kept, out->facts, members);
    join_id(kept, members[MEMBER_SOURCE], &out->facts[FACT_ID]);
    out->facts[FACT_AGGREGATE_ID] =
        or_else(out->facts[FACT_AGGREGATE_ID], key_text(kept));
    out->form = BODY_CLOUDEVENTS;
    return needs_type(out->facts, err, "the CloudEvent");
}

/* With the JSON converter's schemas on, the value is {"schema", "payload"}. */
static bool unwrap_schema(struct scan *scan, struct kafka_kept *kept,
                          struct decoded *out, struct err *err)
{
    static const char *const names[] = {"schema", "payload"};
    struct slice members[2];

    if (!scan_members(scan, out->body, false, names, 2, members, err))
        return false;
    if (members[0].ptr && members[1].ptr)
        out->body = keep(kept, members[1]);
    return true;
}

/* The payload column arrives as JSON, or as JSON inside a JSON string. */
static bool debezium(struct scan *scan, struct kafka_kept *kept,
                     struct decoded *out, struct err *err)
{
    static const char *const name[] = {"text"};
    struct buf wrapped = {0};
    struct slice text;
    bool ok = true;

    memset(out->facts, 0, sizeof(out->facts));
    take_headers(kept, debezium_headers, COUNT(debezium_headers), out->facts);
    out->facts[FACT_AGGREGATE_ID] =
        or_else(out->facts[FACT_AGGREGATE_ID], key_text(kept));
    out->form = BODY_PAYLOAD;
    if (scan_starts_with(out->body, '{'))
        ok = unwrap_schema(scan, kept, out, err);
    if (ok && scan_starts_with(out->body, '"')) {
        buf_add_text(&wrapped, "{\"text\":");
        buf_add(&wrapped, out->body.ptr, out->body.len);
        buf_add_char(&wrapped, '}');
        ok = scan_members(scan, (struct slice){wrapped.ptr, wrapped.len}, false,
                          name, 1, &text, err);
        if (ok)
            out->body = kafka_kept_note(kept, text);
        buf_fini(&wrapped);
    }
    return ok && needs_type(out->facts, err,
                            "the headers: let the outbox router place it with "
                            "type:header:eventType");
}

static bool native_scanned(struct kafka_kept *kept, struct slice *members,
                           struct decoded *out, struct err *err)
{
    take_members(kept, out->facts, members);
    out->facts[FACT_AGGREGATE_ID] =
        or_else(out->facts[FACT_AGGREGATE_ID], key_text(kept));
    out->form = BODY_NATIVE;
    return needs_type(out->facts, err, "headers or envelope (eventType)");
}

/* Headers that say all that routing needs: the body is left to the worker. */
static bool headers_suffice(const struct kafka_kept *kept, struct decoded *out)
{
    take_headers(kept, native_headers, COUNT(native_headers), out->facts);
    if (!out->facts[FACT_ID].ptr || !out->facts[FACT_TYPE].ptr ||
        !out->facts[FACT_AGGREGATE_TYPE].ptr || !kept->key.len ||
        !is_text(kept->key) || !scan_starts_with(kept->value, '{'))
        return false;
    out->facts[FACT_AGGREGATE_ID] = kept->key;
    out->form = BODY_NATIVE;
    return true;
}

static bool by_body(struct scan *scan, enum format format,
                    struct kafka_kept *kept, struct decoded *out,
                    struct err *err)
{
    struct slice members[MEMBER_COUNT] = {{NULL, 0}};
    struct err fault;
    bool is_object = scan_members(scan, kept->value, kept->is_padded,
                                  member_names, MEMBER_COUNT, members, &fault);

    if (!is_object && format == FORMAT_AUTO && out->facts[FACT_ID].ptr &&
        scan_starts_with(kept->value, '"'))
        return debezium(scan, kept, out, err);
    if (!is_object) {
        *err = fault;
        return false;
    }
    if (format == FORMAT_CLOUDEVENTS ||
        (format == FORMAT_AUTO && members[MEMBER_SPECVERSION].ptr))
        return cloud_structured(kept, members, out, err);
    if (format == FORMAT_AUTO && out->facts[FACT_ID].ptr &&
        !members[MEMBER_EVENT_TYPE].ptr)
        return debezium(scan, kept, out, err);
    return native_scanned(kept, members, out, err);
}

static bool has_value(const struct kafka_kept *kept, struct err *err)
{
    if (!kept->value.ptr)
        return err_code(err, ERR_PERMANENT, "tombstone",
                        "the record has no value (a tombstone)");
    if (kept->value.len == 0)
        return err_code(err, ERR_PERMANENT, "empty", "the record is empty");
    if (kept->value.len >= 3 && memcmp(kept->value.ptr, "\xef\xbb\xbf", 3) == 0)
        return err_code(err, ERR_PERMANENT, "bom",
                        "the record starts with a byte order mark");
    return true;
}

/* The id is a key of tables: their indexes take no more, and SQL's text ends
 * at a NUL, where two events would become one. */
static bool id_can_be_kept(struct slice id, struct err *err)
{
    if (id.len <= ID_MAX && (!id.len || !memchr(id.ptr, '\0', id.len)))
        return true;
    return err_code(err, ERR_PERMANENT, "id",
                    "the event's id has a NUL or more than %d bytes", ID_MAX);
}

static bool decode_by_format(struct scan *scan, enum format format,
                             struct kafka_kept *kept, struct decoded *out,
                             struct err *err)
{
    out->body = kept->value;
    if ((format == FORMAT_AUTO || format == FORMAT_CLOUDEVENTS) &&
        kafka_kept_header(kept, SLICE_LIT("ce_specversion")).ptr)
        return cloud_binary(kept, out, err);
    if (!has_value(kept, err))
        return false;
    if (format == FORMAT_DEBEZIUM)
        return debezium(scan, kept, out, err);
    if (format != FORMAT_CLOUDEVENTS && headers_suffice(kept, out))
        return true;
    return by_body(scan, format, kept, out, err);
}

bool decode_record(struct scan *scan, enum format format,
                   struct kafka_kept *kept, struct decoded *out,
                   struct err *err)
{
    memset(out, 0, sizeof(*out));
    return decode_by_format(scan, format, kept, out, err) &&
           id_can_be_kept(out->facts[FACT_ID], err);
}
