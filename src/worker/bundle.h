/*
 * Where a VM's texts come from: the bundle, or, while the probe builds one, the
 * disk, with everything that was read noted in the bundle.
 */
#ifndef MT_WORKER_BUNDLE_H
#define MT_WORKER_BUNDLE_H

#include "base/err.h"

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>

struct lua_State;
struct spec;
struct vm;

/* The folders of a bundle being built, and what was read so far. */
struct builder {
    char main[256];        /* chunk name: folder and file */
    bool is_config;        /* the configuration file: with os.getenv */
    struct spec *spec;     /* what moontide.testing works on */
    bool is_spec;          /* a spec file: with moontide.testing */
    const char *path;      /* of the handler's file, as given */
    const char *root;      /* folder of shared modules, or NULL */
    const char *templates; /* folder, or NULL */
    json_t *files, *sources, *modules, *template_texts;
};

/* → text, chunk name */
int bundle_push_main(struct lua_State *L, struct vm *vm);
/* → text, chunk name | nil, why */
int bundle_push_module(struct lua_State *L, struct vm *vm, const char *name);
/* → text; false and nothing when there is none */
bool bundle_push_template(struct lua_State *L, struct vm *vm, const char *path);

void builder_init(struct builder *b, const char *path, const char *root,
                  const char *templates);
void builder_fini(struct builder *b);

/* A whole file as heap text; false says why. */
bool read_whole_file(const char *path, char **text, size_t *len,
                     struct err *err) MUST_CHECK;

#endif
