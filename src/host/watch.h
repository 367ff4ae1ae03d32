/*
 * Folders whose files matter: tells once, a moment after the last of a burst
 * of changes. Editors' atomic saves, new and removed files, subfolders, and
 * the swap of a symbolic link to or inside a folder (mounted configuration)
 * all count. inotify(7).
 */
#ifndef MT_HOST_WATCH_H
#define MT_HOST_WATCH_H

#include <stddef.h>

struct ev_loop;
struct watch;

typedef void watch_fn(void *arg);

/* A folder that is not there is waited for. Copies the paths. NULL when the
 * kernel has no more watches: logged, and nothing is told. */
struct watch *watch_new(struct ev_loop *loop, const char *const *folders,
                        size_t n, watch_fn *changed, void *arg);
void watch_free(struct watch *w); /* NULL is allowed */

#endif
