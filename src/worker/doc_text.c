/*
 * Finding nodes in a document's text. The text was validated by the parser, so
 * skipping needs no checks beyond strings and brackets.
 */
#include "worker/doc.h"

static bool is_space(char c)
{
    return c == ' ' || c == '\t' || c == '\n' || c == '\r';
}

static const char *skip_space(const char *at, const char *end)
{
    while (at < end && is_space(*at))
        at++;
    return at;
}

/* Is the quote at `quote` part of a string that began after `start`? */
static bool is_escaped(const char *start, const char *quote)
{
    const char *at = quote;

    while (at > start && at[-1] == '\\')
        at--;
    return (quote - at) % 2 == 1;
}

/* `at` is on the opening quote; returns what follows the closing one. */
static const char *skip_string(const char *at, const char *end)
{
    const char *start = at + 1;

    do
        at = memchr(at + 1, '"', (size_t)(end - at - 1));
    while (at && is_escaped(start, at));
    return at ? at + 1 : end;
}

static const char *skip_container(const char *at, const char *end)
{
    int depth = 0;

    while (at < end) {
        char c = *at;

        if (c == '"') {
            at = skip_string(at, end);
            continue;
        }
        at++;
        if (c == '{' || c == '[')
            depth++;
        else if ((c == '}' || c == ']') && --depth == 0)
            break;
    }
    return at;
}

static const char *skip_value(const char *at, const char *end)
{
    if (*at == '"')
        return skip_string(at, end);
    if (*at == '{' || *at == '[')
        return skip_container(at, end);
    while (at < end && *at != ',' && *at != '}' && *at != ']' && !is_space(*at))
        at++;
    return at;
}

static void iter_at(struct doc_iter *it, const struct doc *doc, uint32_t node,
                    const char *at)
{
    *it = (struct doc_iter){.doc = doc,
                            .at = at + 1, /* past the bracket */
                            .end = doc->text.ptr + doc->text.len,
                            .node = node + 1,
                            .is_object = node_type(doc, node) == NODE_OBJECT};
}

void doc_iter_init(struct doc_iter *it, const struct doc *doc, uint32_t node)
{
    iter_at(it, doc, node, doc_locate(doc, node).ptr);
}

bool doc_iter_next(struct doc_iter *it, struct doc_member *member)
{
    const char *start;

    if (node_is_end(it->doc, it->node))
        return false;
    *member = (struct doc_member){0};
    it->at = skip_space(it->at, it->end);
    if (*it->at == ',')
        it->at = skip_space(it->at + 1, it->end);
    if (it->is_object) {
        start = it->at;
        it->at = skip_string(it->at, it->end);
        member->key = it->node++;
        member->key_text = (struct slice){start, (size_t)(it->at - start)};
        it->at = skip_space(it->at, it->end);
        it->at = skip_space(it->at + 1, it->end); /* the colon */
    }
    start = it->at;
    it->at = skip_value(it->at, it->end);
    member->node = it->node;
    member->text = (struct slice){start, (size_t)(it->at - start)};
    it->node = node_after(it->doc, it->node);
    return true;
}

struct slice doc_locate(const struct doc *doc, uint32_t node)
{
    const char *end = doc->text.ptr + doc->text.len;
    const char *at = skip_space(doc->text.ptr, end);
    struct slice here = {at, (size_t)(skip_value(at, end) - at)};
    struct doc_member member = {.node = DOC_ROOT, .text = here};

    while (member.node != node) {
        struct doc_iter it;

        iter_at(&it, doc, member.node, member.text.ptr);
        /* Down into the member that holds the node. */
        while (doc_iter_next(&it, &member) &&
               node_after(doc, member.node) <= node)
            ;
    }
    return member.text;
}
