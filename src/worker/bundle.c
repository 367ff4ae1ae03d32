#include "worker/bundle.h"

#include "base/digest.h"
#include "base/mem.h"
#include "worker/vm_internal.h"

#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_FILE ((size_t)16 << 20)

bool read_whole_file(const char *path, char **text, size_t *len,
                     struct err *err)
{
    FILE *file = fopen(path, "re");
    size_t cap = 1 << 16, n;

    if (!file)
        return err_set(err, ERR_PERMANENT, "%s: %s", path, strerror(errno));
    *text = xmalloc(cap);
    *len = 0;
    while ((n = fread(*text + *len, 1, cap - *len, file)) > 0) {
        *len += n;
        if (*len > MAX_FILE)
            break;
        if (*len == cap)
            *text = xrealloc(*text, cap *= 2);
    }
    if (ferror(file) || *len > MAX_FILE) {
        err_set(err, ERR_PERMANENT, "%s: %s", path,
                *len > MAX_FILE ? "larger than 16 MiB" : strerror(errno));
        free(*text);
        fclose(file);
        return false;
    }
    fclose(file);
    return true;
}

/* The last two parts of a path: what messages and chunk names show, for Lua
 * cuts long ones. */
static const char *short_path(const char *path)
{
    const char *slash = strrchr(path, '/');

    while (slash && slash > path && slash[-1] != '/')
        slash--;
    return slash ? slash : path;
}

void builder_init(struct builder *b, const char *path, const char *root,
                  const char *templates)
{
    *b = (struct builder){.path = path,
                          .root = root,
                          .templates = templates,
                          .files = json_array(),
                          .sources = json_object(),
                          .modules = json_object(),
                          .template_texts = json_object()};
    snprintf(b->main, sizeof(b->main), "%s", short_path(path));
}

void builder_fini(struct builder *b)
{
    json_decref(b->files);
    json_decref(b->sources);
    json_decref(b->modules);
    json_decref(b->template_texts);
}

/* --- from disk ------------------------------------------------------------------------ */

static void note_file(struct builder *b, const char *path, struct slice text)
{
    char hex[SHA256_HEX_SIZE];

    digest_sha256(text, hex);
    json_array_append_new(b->files,
                          json_pack("{s:s, s:s}", "path", path, "sha256", hex));
}

/* Read a file into `to` under `key`. */
static bool take_file(struct builder *b, const char *path, const char *key,
                      json_t *to, struct err *err)
{
    char *text;
    size_t len;
    json_t *value;

    if (!read_whole_file(path, &text, &len, err))
        return false;
    note_file(b, path, (struct slice){text, len});
    value = json_stringn(text, len);
    free(text);
    if (!value)
        return err_set(err, ERR_PERMANENT, "%s: not UTF-8 text", path);
    json_object_set_new(to, key, value);
    return true;
}

static bool is_module_name(const char *name)
{
    if (!*name || strstr(name, "..") || *name == '.')
        return false;
    return strspn(name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
                        "0123456789_.-") == strlen(name);
}

static bool try_module(struct builder *b, const char *dir, size_t dir_len,
                       const char *name, const char *suffix)
{
    char path[PATH_MAX], shown[PATH_MAX];
    const char *base;
    struct err err;
    int n = snprintf(path, sizeof(path), "%.*s/%s%s", (int)dir_len, dir, name,
                     suffix);

    if (n < 0 || (size_t)n >= sizeof(path))
        return false;
    for (char *at = path + dir_len + 1; at < path + n - strlen(suffix); at++)
        if (*at == '.')
            *at = '/';
    base = memrchr(dir, '/', dir_len);
    snprintf(shown, sizeof(shown), "%s", base ? path + (base - dir) + 1 : path);
    if (!take_file(b, path, shown, b->sources, &err))
        return false;
    json_object_set_new(b->modules, name, json_string(shown));
    return true;
}

static bool find_module(struct builder *b, const char *name)
{
    const char *slash = strrchr(b->path, '/');
    size_t beside = slash ? (size_t)(slash - b->path) : 1;
    const char *dir = slash ? b->path : ".";

    if (b->root && (try_module(b, b->root, strlen(b->root), name, ".lua") ||
                    try_module(b, b->root, strlen(b->root), name, "/init.lua")))
        return true;
    return try_module(b, dir, beside, name, ".lua");
}

static bool find_template(struct builder *b, const char *name)
{
    char path[PATH_MAX];
    struct err err;

    if (!b->templates || strstr(name, "..") || *name == '/')
        return false;
    snprintf(path, sizeof(path), "%s/%s", b->templates, name);
    return take_file(b, path, name, b->template_texts, &err);
}

/* --- for the VM ------------------------------------------------------------------------- */

static void push_text(lua_State *L, const json_t *text)
{
    lua_pushlstring(L, json_string_value(text), json_string_length(text));
}

int bundle_push_main(lua_State *L, struct vm *vm)
{
    struct builder *b = vm->builder;
    const char *chunk;
    json_t *text;
    struct err err;

    if (b) {
        chunk = b->main;
        if (!take_file(b, b->path, chunk, b->sources, &err))
            return luaL_error(L, "%s", err.msg);
        text = json_object_get(b->sources, chunk);
    } else {
        chunk = json_string_value(json_object_get(vm->bundle, "main"));
        text = json_object_get(json_object_get(vm->bundle, "sources"),
                               chunk ? chunk : "");
    }
    if (!json_is_string(text))
        return luaL_error(L, "the bundle has no main source");
    push_text(L, text);
    lua_pushstring(L, chunk);
    return 2;
}

int bundle_push_module(lua_State *L, struct vm *vm, const char *name)
{
    struct builder *b = vm->builder;
    json_t *modules = b ? b->modules : json_object_get(vm->bundle, "modules");
    json_t *sources = b ? b->sources : json_object_get(vm->bundle, "sources");
    const char *chunk;

    if (b && is_module_name(name) && !json_object_get(modules, name))
        find_module(b, name);
    chunk = json_string_value(json_object_get(modules, name));
    if (!chunk || !json_is_string(json_object_get(sources, chunk))) {
        lua_pushnil(L);
        lua_pushstring(L, b ? "not in the folder of modules nor beside the "
                              "handler"
                            : "not part of this version");
        return 2;
    }
    push_text(L, json_object_get(sources, chunk));
    lua_pushstring(L, chunk);
    return 2;
}

bool bundle_push_template(lua_State *L, struct vm *vm, const char *path)
{
    struct builder *b = vm->builder;
    json_t *all =
        b ? b->template_texts : json_object_get(vm->bundle, "templates");
    json_t *text = json_object_get(all, path);

    if (!text && b && find_template(b, path))
        text = json_object_get(all, path);
    if (!json_is_string(text))
        return false;
    push_text(L, text);
    return true;
}
