#include "worker/worker_start.h"

#include "base/buf.h"
#include "base/log.h"
#include "base/settings.h"
#include "worker/worker.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

json_t *start_config(int fd, struct err *err)
{
    struct buf text = {0};
    json_error_t error;
    json_t *config = NULL;
    ssize_t n;

    while ((n = read(fd, buf_reserve(&text, 65536), 65536)) > 0)
        text.len += (size_t)n;
    close(fd);
    if (n == 0)
        config = json_loadb(text.ptr ? text.ptr : "", text.len, 0, &error);
    if (n < 0)
        err_set(err, ERR_FATAL, "reading the configuration: %s",
                strerror(errno));
    else if (!config)
        err_set(err, ERR_FATAL, "the configuration is no JSON: %s", error.text);
    buf_fini(&text);
    return config;
}

void start_log(const json_t *config, int index)
{
    const json_t *log = json_object_get(config, "log");
    const char *level = json_string_value(json_object_get(log, "level"));
    const char *format = json_string_value(json_object_get(log, "format"));
    enum log_level at = LOG_INFO;
    char name[32];

    if (level)
        log_level_parse(level, &at);
    snprintf(name, sizeof(name), "worker-%d", index);
    log_init(at, format && strcmp(format, "json") == 0 ? LOG_JSON : LOG_HUMAN,
             name);
}

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#    define IS_SANITIZED 1
#else
#    define IS_SANITIZED 0
#endif

/* Address space: Lua's stack, our libraries, rings, and the limits of as many
 * handlers as one may reasonably have here. The allocator's limit is what
 * usually acts; this is the second belt. */
void start_limits(const struct runtime *rt)
{
    struct rlimit none = {0, 0}, space;
    const json_t *limit = runtime_setting(rt, "workers.memory_limit");
    rlim_t per_vm = json_is_integer(limit) ? (rlim_t)json_integer_value(limit)
                                           : (rlim_t)64 << 20;

    setrlimit(RLIMIT_CORE, &none);
    space.rlim_cur = space.rlim_max =
        LUA_STACK_BYTES + ((rlim_t)2 << 30) + 32 * per_vm;
    if (!IS_SANITIZED)
        setrlimit(RLIMIT_AS, &space);
}

bool start_fds(int argc, char **argv, int fds[4])
{
    for (int i = 1; i + 1 < argc; i++)
        if (strcmp(argv[i], "--fds") == 0)
            return sscanf(argv[i + 1], "%d,%d,%d,%d", &fds[0], &fds[1], &fds[2],
                          &fds[3]) == 4;
    return false;
}
