// The only C++ of the host, behind the C interface of scan.h.
//
// simdjson wants some readable bytes after the text, so the text is copied
// into a buffer that has them; values are moved back to the caller's text by
// their distance from the start.

#include <simdjson.h>

#include <cstdlib>
#include <cstring>
#include <deque>
#include <string>
#include <string_view>

extern "C" {
#include "base/scan.h"
}

using namespace simdjson;

struct scan {
    ondemand::parser parser;
    std::string text;                // a copy with room for the padding
    std::deque<std::string> strings; // unescaped ones, of the last call
};

namespace
{

bool fail(struct err *err, error_code code)
{
    return err_set(err, ERR_PERMANENT, "not valid JSON: %s",
                   error_message(code));
}

padded_string_view load(struct scan *s, struct slice json)
{
    s->strings.clear();
    s->text.reserve(json.len + SIMDJSON_PADDING);
    s->text.assign(json.ptr ? json.ptr : "", json.len);
    return padded_string_view(s->text.data(), json.len,
                              json.len + SIMDJSON_PADDING);
}

struct slice moved(struct scan *s, struct slice json, std::string_view part)
{
    return {json.ptr + (part.data() - s->text.data()), part.size()};
}

std::string_view trimmed(std::string_view token)
{
    while (!token.empty() && std::strchr(" \t\r\n", token.back()))
        token.remove_suffix(1);
    return token;
}

error_code string_of(struct scan *s, struct slice json, ondemand::value value,
                     struct slice *out)
{
    std::string_view token = trimmed(value.raw_json_token());
    std::string_view text;
    error_code code = value.get_string().get(text);

    if (code)
        return code;
    if (token.size() == text.size() + 2) { // nothing was escaped
        *out = moved(s, json, token.substr(1, text.size()));
        return SUCCESS;
    }
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
            *out = moved(s, json, text);
        return code;
    }
    case ondemand::json_type::array: {
        ondemand::array array;
        if (!(code = value.get_array().get(array)) &&
            !(code = array.raw_json().get(text)))
            *out = moved(s, json, text);
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

// The index of the member's name, or n.
size_t index_of(std::string_view name, const char *const *names, size_t n)
{
    size_t i = 0;

    while (i < n && name != names[i])
        i++;
    return i;
}

error_code members(struct scan *s, struct slice json, ondemand::document &doc,
                   const char *const *names, size_t n, struct slice *values)
{
    ondemand::object object;
    error_code code = doc.get_object().get(object);

    if (code)
        return code;
    for (auto field : object) {
        std::string_view name;

        if ((code = field.unescaped_key().get(name)))
            return code;
        size_t i = index_of(name, names, n);
        if (i < n && !values[i].ptr) {
            ondemand::value value;
            if ((code = field.value().get(value)) ||
                (code = take(s, json, value, &values[i])))
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

bool scan_members(struct scan *s, struct slice json, const char *const *names,
                  size_t n, struct slice *values, struct err *err)
{
    ondemand::document doc;
    error_code code;

    std::memset(values, 0, n * sizeof(*values));
    if ((code = s->parser.iterate(load(s, json)).get(doc)) ||
        (code = members(s, json, doc, names, n, values)))
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
    if ((code = s->parser.iterate(load(s, json)).get(doc)))
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
