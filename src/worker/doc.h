/*
 * JSON documents: simdjson parses and validates, C walks its tape.
 *
 * A document is a tape of words (type in the top byte; simdjson's format) and
 * a buffer of strings. It lies in the parser's memory until the parser is used
 * again; doc_claim() moves the former one to memory of its own first, so a
 * holder always has a good document. The text is kept beside it: what nobody
 * changed is written again from its own bytes.
 */
#ifndef MT_WORKER_DOC_H
#define MT_WORKER_DOC_H

#include <stdint.h>
#include <string.h>

#ifdef __cplusplus
extern "C" {
#endif

#include "base/err.h"
#include "base/slice.h"

struct doc_parser;

struct doc {
    const uint64_t *tape; /* NULL: not parsed */
    const uint8_t *strings;
    struct slice text; /* what was parsed; must live as long as the doc */
    void *own;         /* heap copy of tape and strings, or NULL */
    struct doc_parser *parser; /* whose memory is used, or NULL */
};

struct doc_parser *doc_parser_new(void);
void doc_parser_free(struct doc_parser *p);

/* Parse `text`. With `padded`, MSG_PADDING bytes after it can be read. */
bool doc_parse(struct doc_parser *p, struct doc *doc, struct slice text,
               bool padded, struct err *err) MUST_CHECK;

/* Move a document out of its parser's memory. */
void doc_settle(struct doc *doc);
void doc_fini(struct doc *doc);

/* Bytes that tape and strings need, and a copy of them at `to`. */
size_t doc_bytes(const struct doc *doc);
void doc_copy(struct doc *doc, void *to);

#ifdef __cplusplus
}
#endif

/* --- walking: nodes are indices into the tape; 0 is "none" ------------------ */

enum node_type {
    NODE_OBJECT = '{',
    NODE_ARRAY = '[',
    NODE_STRING = '"',
    NODE_INT = 'l',
    NODE_UINT = 'u',
    NODE_DOUBLE = 'd',
    NODE_TRUE = 't',
    NODE_FALSE = 'f',
    NODE_NULL = 'n',
};

#define DOC_ROOT 1u

static inline int node_type(const struct doc *doc, uint32_t node)
{
    return (int)(doc->tape[node] >> 56);
}

/* The node after this one and all that is in it. */
static inline uint32_t node_after(const struct doc *doc, uint32_t node)
{
    switch (node_type(doc, node)) {
    case NODE_OBJECT:
    case NODE_ARRAY: return (uint32_t)doc->tape[node];
    case NODE_INT:
    case NODE_UINT:
    case NODE_DOUBLE: return node + 2;
    default: return node + 1;
    }
}

static inline bool node_is_end(const struct doc *doc, uint32_t node)
{
    int type = node_type(doc, node);

    return type == '}' || type == ']';
}

static inline struct slice node_text(const struct doc *doc, uint32_t node)
{
    const uint8_t *at = doc->strings + (doc->tape[node] & 0x00ffffffffffffffu);
    uint32_t len;

    memcpy(&len, at, sizeof(len));
    return (struct slice){(const char *)at + sizeof(len), len};
}

static inline int64_t node_int(const struct doc *doc, uint32_t node)
{
    return (int64_t)doc->tape[node + 1];
}

static inline double node_double(const struct doc *doc, uint32_t node)
{
    double d;

    memcpy(&d, &doc->tape[node + 1], sizeof(d));
    return d;
}

/* The value of `key` in an object, or 0. */
static inline uint32_t node_find(const struct doc *doc, uint32_t object,
                                 const char *key, size_t len)
{
    uint32_t at = object + 1;

    while (!node_is_end(doc, at)) {
        struct slice name = node_text(doc, at);

        at++;
        if (name.len == len && memcmp(name.ptr, key, len) == 0)
            return at;
        at = node_after(doc, at);
    }
    return 0;
}

#ifdef __cplusplus
extern "C" {
#endif

/* The bytes of a node in the document's text. */
struct slice doc_locate(const struct doc *doc, uint32_t node);

/* Walk the members of a container in tape and text together. */
struct doc_iter {
    const struct doc *doc;
    const char *at, *end;
    uint32_t node; /* of the next member: its key in an object */
    bool is_object;
};

struct doc_member {
    uint32_t key; /* node, 0 in arrays */
    uint32_t node;
    struct slice key_text; /* with its quotes */
    struct slice text;
};

void doc_iter_init(struct doc_iter *it, const struct doc *doc, uint32_t node);
bool doc_iter_next(struct doc_iter *it, struct doc_member *member);

#ifdef __cplusplus
}
#endif

#endif
