#include "worker/letter.h"

#include "base/mem.h"

#include <stdlib.h>
#include <string.h>

static const char *text_of(const json_t *json, const char *name)
{
    const char *text = json_string_value(json_object_get(json, name));

    return text ? text : "";
}

static int nibble(char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

/* Facts and body in one block with what readers of a ring may look at behind
 * them: they are parsed where they lie. */
static size_t facts_size(const json_t *facts)
{
    size_t size = 0;

    for (int i = 0; i < FACT_COUNT; i++)
        size +=
            json_string_length(json_object_get(facts, fact_name((enum fact)i)));
    return size;
}

static char *put_facts(struct event_msg *m, const json_t *facts, char *at)
{
    for (int i = 0; i < FACT_COUNT; i++) {
        const json_t *fact = json_object_get(facts, fact_name((enum fact)i));
        size_t len = json_string_length(fact);

        if (!json_is_string(fact))
            continue;
        memcpy(at, json_string_value(fact), len);
        m->facts[i] = (struct slice){at, len};
        at += len;
    }
    return at;
}

static bool put_body(struct event_msg *m, const char *hex, char *at,
                     struct err *err)
{
    size_t len = strlen(hex) / 2;

    m->body = (struct slice){at, len};
    for (size_t i = 0; i < len; i++) {
        int high = nibble(hex[2 * i]), low = nibble(hex[2 * i + 1]);

        if (high < 0 || low < 0)
            return err_set(err, ERR_PERMANENT, "bodyHex is no hexadecimal");
        at[i] = (char)(high << 4 | low);
    }
    return true;
}

/* The partition orders/3 is of the topic orders; the outbox has its table. */
static void put_place(struct event_msg *m, const json_t *json)
{
    const char *partition = text_of(json, "partition");
    const char *slash = strrchr(partition, '/');

    m->source = strcmp(text_of(json, "source"), "kafka") == 0 ? SOURCE_KAFKA
                                                              : SOURCE_OUTBOX;
    m->partition = slice_of(partition);
    m->topic = slash ? (struct slice){partition, (size_t)(slash - partition)}
                     : SLICE_LIT("domain_events");
    m->place = json_integer_value(json_object_get(json, "place"));
}

bool letter_read(struct letter *letter, const json_t *json, struct err *err)
{
    const json_t *facts = json_object_get(json, "facts");
    const char *hex = text_of(json, "bodyHex");
    size_t size = facts_size(facts) + strlen(hex) / 2;
    char *at;

    *letter = (struct letter){0};
    if (!body_form_parse(text_of(json, "format"), &letter->m.form))
        return err_set(err, ERR_PERMANENT, "a letter has no known format");
    put_place(&letter->m, json);
    letter->bytes = xcalloc(size + MSG_PADDING, 1);
    at = put_facts(&letter->m, facts, letter->bytes);
    if (put_body(&letter->m, hex, at, err))
        return true;
    letter_fini(letter);
    return false;
}

void letter_fini(struct letter *letter)
{
    free(letter->bytes);
    letter->bytes = NULL;
}
