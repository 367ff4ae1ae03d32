#include "base/jsontext.h"

#include "base/buf.h"
#include "base/check.h"

json_t *json_string_lossy(struct slice text)
{
    json_t *json = json_stringn(text.ptr ? text.ptr : "", text.len);
    struct buf quoted = {0};

    if (json)
        return json;
    buf_add_json(&quoted, text);
    json = json_loadb(quoted.ptr, quoted.len, JSON_DECODE_ANY | JSON_ALLOW_NUL,
                      NULL);
    buf_fini(&quoted);
    CHECK(json);
    return json;
}
