/*
 * Finding nodes in a document's text. The text was validated by the parser, so
 * skipping needs no checks beyond strings and brackets.
 */
#include "base/find.h"
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

/* `at` is on the opening quote; returns what follows the closing one. */
static const char *skip_string(const char *at, const char *end)
{
    at = find_either(at + 1, end, '"', '\\');
    while (at < end && *at == '\\')
        at = end - at > 2 ? find_either(at + 2, end, '"', '\\') : end;
    return at < end ? at + 1 : end;
}

static const char *skip_container(const char *at, const char *end)
{
    int depth = 0;

    while ((at = find_structure(at, end)) < end) {
        if (*at == '"') {
            at = skip_string(at, end);
            continue;
        }
        depth += *at == '{' || *at == '[' ? 1 : -1;
        at++;
        if (depth == 0)
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
    struct doc_member member = {.node = DOC_ROOT, .text = {at, 0}};

    if (node == DOC_ROOT)
        member.text.len = (size_t)(skip_value(at, end) - at);
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
