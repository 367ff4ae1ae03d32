// The only C++ of the host, behind the C interface of scan.h.
//
// simdjson wants some readable bytes after the text. Where the caller has none,
// the text is copied into a buffer that has them, and values are moved back to
// the caller's text by their distance from the start.

#include <simdjson.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

extern "C" {
#include "base/scan.h"
}

using namespace simdjson;

static const size_t NAME_BUCKETS = 64;

struct scan {
    ondemand::parser parser;
    std::string text;                // a copy with room for the padding
    const char *start = nullptr;     // of the text that is scanned
    std::deque<std::string> strings; // unescaped ones, of the last call

    std::vector<std::string_view> known{};     // the names asked for last
    std::vector<size_t> buckets[NAME_BUCKETS]; // places in `known`
};

namespace
{

bool fail(struct err *err, error_code code)
{
    return err_set(err, ERR_PERMANENT, "not valid JSON: %s",
                   error_message(code));
}

static_assert(SCAN_PADDING >= SIMDJSON_PADDING, "scan.h promises too little");

padded_string_view load(struct scan *s, struct slice json, bool padded)
{
    if (!s->strings.empty())
        s->strings.clear();
    if (padded) {
        s->start = json.ptr;
        return padded_string_view(json.ptr, json.len, json.len + SCAN_PADDING);
    }
    s->text.reserve(json.len + SIMDJSON_PADDING);
    s->text.assign(json.ptr ? json.ptr : "", json.len);
    s->start = s->text.data();
    return padded_string_view(s->text.data(), json.len,
                              json.len + SIMDJSON_PADDING);
}

struct slice moved(struct scan *s, struct slice json, std::string_view part)
{
    return {json.ptr + (part.data() - s->start), part.size()};
}

std::string_view trimmed(std::string_view token)
{
    while (!token.empty() && std::strchr(" \t\r\n", token.back()))
        token.remove_suffix(1);
    return token;
}

// Between the quotes, unless an escape is in it. Stage 1 has looked at the rest:
// the string ends, is UTF-8 and has no control characters.
error_code string_of(struct scan *s, struct slice json, ondemand::value value,
                     struct slice *out)
{
    const char *start = value.raw_json_token().data() + 1;
    const char *end = static_cast<const char *>(rawmemchr(start, '"'));
    std::string_view text(start, size_t(end - start));
    error_code code;

    if (!std::memchr(text.data(), '\\', text.size())) {
        *out = moved(s, json, text);
        return SUCCESS;
    }
    if ((code = value.get_string().get(text)))
        return code;
    s->strings.emplace_back(text);
    *out = {s->strings.back().data(), s->strings.back().size()};
    return SUCCESS;
}

error_code take(struct scan *s, struct slice json, ondemand::value value,
                struct slice *out)
{
    ondemand::json_type type;
    std::string_view text;
    error_code code = value.type().get(type);

    if (code)
        return code;
    switch (type) {
    case ondemand::json_type::null: {
        bool is_null = false;
        code = value.is_null().get(is_null);
        return code ? code : is_null ? SUCCESS : N_ATOM_ERROR;
    }
    case ondemand::json_type::string: return string_of(s, json, value, out);
    case ondemand::json_type::object: {
        ondemand::object object;
        if (!(code = value.get_object().get(object)) &&
            !(code = object.raw_json().get(text)))
            *out = moved(s, json, trimmed(text));
        return code;
    }
    case ondemand::json_type::array: {
        ondemand::array array;
        if (!(code = value.get_array().get(array)) &&
            !(code = array.raw_json().get(text)))
            *out = moved(s, json, trimmed(text));
        return code;
    }
    case ondemand::json_type::number: {
        ondemand::number number;
        text = trimmed(value.raw_json_token());
        if (!(code = value.get_number().get(number)))
            *out = moved(s, json, text);
        return code;
    }
    case ondemand::json_type::boolean: {
        bool unused;
        text = trimmed(value.raw_json_token());
        if (!(code = value.get_bool().get(unused)))
            *out = moved(s, json, text);
        return code;
    }
    }
    return INCORRECT_TYPE;
}

size_t bucket_of(std::string_view name)
{
    return (name.size() + (name.empty() ? 0 : size_t(name[0]) * 4)) %
           NAME_BUCKETS;
}

// Callers ask for the same few names again and again.
void know(struct scan *s, const char *const *names, size_t n)
{
    auto is_same = [](std::string_view known, const char *name) {
        return known.data() == name;
    };

    if (std::equal(s->known.begin(), s->known.end(), names, names + n, is_same))
        return;
    s->known.assign(names, names + n);
    for (auto &bucket : s->buckets)
        bucket.clear();
    for (size_t i = 0; i < n; i++)
        s->buckets[bucket_of(s->known[i])].push_back(i);
}

// The index of the member's name, or as many as there are.
size_t index_of(const struct scan *s, std::string_view name)
{
    for (size_t i : s->buckets[bucket_of(name)])
        if (name == s->known[i])
            return i;
    return s->known.size();
}

// The name as it is between the quotes, unless an escape is in it.
error_code name_of(ondemand::field &field, std::string_view &name)
{
    const char *start = field.key().raw(), *end = start;

    while (*end != '"' && *end != '\\')
        end++;
    name = std::string_view(start, size_t(end - start));
    return *end == '"' ? SUCCESS : field.unescaped_key().get(name);
}

error_code members(struct scan *s, struct slice json, ondemand::document &doc,
                   struct slice *values)
{
    ondemand::object object;
    error_code code = doc.get_object().get(object);

    if (code)
        return code;
    for (auto item : object) {
        ondemand::field field;
        std::string_view name;

        if ((code = std::move(item).get(field)) ||
            (code = name_of(field, name)))
            return code;
        size_t i = index_of(s, name);
        if (i < s->known.size() && !values[i].ptr) {
            if ((code = take(s, json, field.value(), &values[i])))
                return code;
        }
    }
    const char *rest;
    return doc.current_location().get(rest) == OUT_OF_BOUNDS ? SUCCESS
                                                             : TAPE_ERROR;
}

error_code follow(ondemand::document &doc, std::string_view path,
                  ondemand::value &value)
{
    ondemand::object object;
    error_code code = doc.get_object().get(object);

    while (!code) {
        size_t dot = path.find('.');

        code = object.find_field_unordered(path.substr(0, dot)).get(value);
        if (code || dot == std::string_view::npos)
            return code;
        path.remove_prefix(dot + 1);
        code = value.get_object().get(object);
    }
    return code;
}

} // namespace

extern "C" {

struct scan *scan_new(void)
{
    return new scan;
}

void scan_free(struct scan *scan)
{
    delete scan;
}

bool scan_members(struct scan *s, struct slice json, bool padded,
                  const char *const *names, size_t n, struct slice *values,
                  struct err *err)
{
    ondemand::document doc;
    error_code code;

    std::memset(values, 0, n * sizeof(*values));
    know(s, names, n);
    if ((code = s->parser.iterate(load(s, json, padded)).get(doc)) ||
        (code = members(s, json, doc, values)))
        return fail(err, code);
    return true;
}

bool scan_path(struct scan *s, struct slice json, const char *path,
               struct slice *value, struct err *err)
{
    ondemand::document doc;
    ondemand::value found;
    error_code code;

    *value = {nullptr, 0};
    if ((code = s->parser.iterate(load(s, json, false)).get(doc)))
        return fail(err, code);
    code = follow(doc, path, found);
    if (code == NO_SUCH_FIELD || code == INCORRECT_TYPE)
        return true;
    if (code || (code = take(s, json, found, value)))
        return fail(err, code);
    return true;
}

bool scan_starts_with(struct slice json, char first)
{
    size_t i = 0;

    while (i < json.len && std::strchr(" \t\r\n", json.ptr[i]) && json.ptr[i])
        i++;
    return i < json.len && json.ptr[i] == first;
}

} // extern "C"
