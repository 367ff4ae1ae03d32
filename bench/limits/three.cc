#include "three.h"

#include <simdjson.h>

struct three {
    simdjson::dom::parser parser;
};

extern "C" struct three *three_new(void)
{
    return new three;
}

extern "C" void three_free(struct three *t)
{
    delete t;
}

extern "C" int three_read(struct three *t, const void *json, size_t len)
{
    simdjson::dom::element doc, payload, value;
    std::string_view text;

    if (t->parser.parse(static_cast<const char *>(json), len).get(doc) ||
        doc["payload"].get(payload))
        return 0;
    return !doc["eventType"].get(text) + !payload["total"].get(value) +
           !payload["currency"].get(text);
}
