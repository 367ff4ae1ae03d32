#include "worker/doc.h"

#include <simdjson.h>
#include <string>

/*
 * simdjson's DOM parser does not take integers beyond 64 bits, though JSON
 * allows them. A text refused for a number is parsed once more with ".0" after
 * such integers: same tape, and the exact digits are still in the text.
 */
struct doc_parser {
    simdjson::dom::parser parser{};
    struct doc *holder =
        nullptr; /* whose document lies in the parser's memory */
};

/* More than this is given back once the document has gone. */
static const size_t KEEP_BYTES = 256 * 1024;

extern "C" struct doc_parser *doc_parser_new(void)
{
    return new doc_parser;
}

extern "C" void doc_parser_free(struct doc_parser *p)
{
    if (p && p->holder)
        doc_settle(p->holder);
    delete p;
}

static bool is_digit(char c)
{
    return c >= '0' && c <= '9';
}

/* Do the digits at `at` go beyond 64 bits? */
static bool is_too_wide(const char *at, size_t len, bool is_negative)
{
    const char *most =
        is_negative ? "9223372036854775808" : "18446744073709551615";
    size_t most_len = strlen(most);

    return len > most_len ||
           (len == most_len && memcmp(at, most, most_len) > 0);
}

static std::string widen_integers(struct slice text)
{
    std::string out;
    bool in_string = false;

    out.reserve(text.len + 64);
    for (size_t i = 0; i < text.len;) {
        char c = text.ptr[i];

        if (in_string || !is_digit(c)) {
            if (in_string && c == '\\' && i + 1 < text.len)
                out += text.ptr[i++];
            else if (c == '"')
                in_string = !in_string;
            out += text.ptr[i++];
            continue;
        }
        size_t start = i;
        bool is_integer = true;
        while (i < text.len && (is_digit(text.ptr[i]) ||
                                strchr(".eE+-", text.ptr[i]) != nullptr))
            is_integer &= is_digit(text.ptr[i++]);
        out.append(text.ptr + start, i - start);
        if (is_integer && is_too_wide(text.ptr + start, i - start,
                                      start > 0 && text.ptr[start - 1] == '-'))
            out += ".0";
    }
    return out;
}

static bool is_number_trouble(simdjson::error_code code)
{
    return code == simdjson::NUMBER_ERROR || code == simdjson::TAPE_ERROR;
}

static simdjson::error_code parse(struct doc_parser *p, struct slice text,
                                  bool padded)
{
    simdjson::dom::element element;
    simdjson::error_code code =
        p->parser.parse(text.ptr, text.len, !padded).get(element);

    if (is_number_trouble(code)) {
        simdjson::padded_string wide(widen_integers(text));
        code = p->parser.parse(wide).get(element);
    }
    return code;
}

extern "C" bool doc_parse(struct doc_parser *p, struct doc *doc,
                          struct slice text, bool padded, struct err *err)
{
    doc_fini(doc);
    if (p->holder)
        doc_settle(p->holder);
    if (p->parser.capacity() > KEEP_BYTES && text.len <= KEEP_BYTES)
        p->parser = simdjson::dom::parser();
    simdjson::error_code code = parse(p, text, padded);
    if (code != simdjson::SUCCESS)
        return err_code(err, ERR_PERMANENT, "json", "%s",
                        simdjson::error_message(code));
    doc->tape = p->parser.doc.tape.get();
    doc->strings = p->parser.doc.string_buf.get();
    doc->text = text;
    doc->parser = p;
    p->holder = doc;
    return true;
}

static size_t tape_words(const struct doc *doc)
{
    /* The root word holds the index behind the last one. */
    return (size_t)(doc->tape[0] & 0xffffffffu);
}

/* Strings are laid down in the order of the tape: the last one ends them. */
static size_t string_bytes(const struct doc *doc)
{
    size_t words = tape_words(doc), bytes = 0;

    for (size_t i = 1; i < words; i++) {
        int type = node_type(doc, (uint32_t)i);

        if (type == NODE_STRING) {
            struct slice s = node_text(doc, (uint32_t)i);

            bytes = (size_t)((const uint8_t *)s.ptr - doc->strings) + s.len + 1;
        } else if (type == NODE_INT || type == NODE_UINT ||
                   type == NODE_DOUBLE) {
            i++;
        }
    }
    return bytes;
}

extern "C" size_t doc_bytes(const struct doc *doc)
{
    return tape_words(doc) * sizeof(uint64_t) + string_bytes(doc);
}

extern "C" void doc_copy(struct doc *doc, void *to)
{
    size_t tape = tape_words(doc) * sizeof(uint64_t);
    size_t strings = string_bytes(doc);
    char *bytes = static_cast<char *>(to);

    memcpy(bytes, doc->tape, tape);
    memcpy(bytes + tape, doc->strings, strings);
    doc->tape = reinterpret_cast<const uint64_t *>(bytes);
    doc->strings = reinterpret_cast<const uint8_t *>(bytes + tape);
    if (doc->parser)
        doc->parser->holder = nullptr;
    doc->parser = nullptr;
}

extern "C" void doc_settle(struct doc *doc)
{
    if (!doc->parser)
        return;
    void *own = malloc(doc_bytes(doc));

    if (!own)
        abort();
    doc_copy(doc, own);
    doc->own = own;
}

extern "C" void doc_fini(struct doc *doc)
{
    if (doc->parser)
        doc->parser->holder = nullptr;
    free(doc->own);
    memset(doc, 0, sizeof(*doc));
}
