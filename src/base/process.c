#include "base/process.h"

#include "base/mem.h"

#include <errno.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* What /proc says of a process. */
struct stat_line {
    char state;
    long threads;
    unsigned long long start; /* ticks since boot: a pid is given again */
};

static bool read_text(const char *path, char *text, size_t size)
{
    FILE *file = fopen(path, "re");
    size_t len;

    if (!file)
        return false;
    len = fread(text, 1, size - 1, file);
    text[len] = '\0';
    fclose(file);
    return len > 0;
}

/* The name in brackets may hold anything, brackets too. */
static bool read_stat(long pid, struct stat_line *line)
{
    char path[64], text[1024];
    const char *end;

    snprintf(path, sizeof(path), "/proc/%ld/stat", pid);
    if (!read_text(path, text, sizeof(text)) || !(end = strrchr(text, ')')))
        return false;
    return sscanf(end + 1,
                  " %c %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s"
                  " %*s %*s %ld %*s %llu",
                  &line->state, &line->threads, &line->start) == 3;
}

static bool read_link(const char *path, char text[static 64])
{
    ssize_t len = readlink(path, text, 63);

    text[len > 0 ? len : 0] = '\0';
    return len > 0;
}

/* Where a pid and a start mean the same: ends in a space. NULL: not known, or
 * /proc is that of another namespace. */
static char *place(void)
{
    char boot[64], pids[64], times[64], self[64];

    if (!read_text("/proc/sys/kernel/random/boot_id", boot, sizeof(boot)) ||
        !read_link("/proc/self/ns/pid", pids) ||
        !read_link("/proc/self", self) || strtol(self, NULL, 10) != getpid())
        return NULL;
    if (!read_link("/proc/self/ns/time", times)) /* before Linux 5.6 */
        strcpy(times, "-");
    boot[strcspn(boot, "\n")] = '\0';
    return xasprintf("%s %s %s ", boot, pids, times);
}

char *process_self(void)
{
    struct stat_line line;
    char *here = place(), *text;

    if (!here || !read_stat(getpid(), &line)) {
        free(here);
        return xstrdup("");
    }
    text = xasprintf("%s%ld %llu", here, (long)getpid(), line.start);
    free(here);
    return text;
}

/* A pid that cannot be signalled for want of rights is somebody's. */
static bool is_gone(long pid, unsigned long long start)
{
    struct stat_line line;

    if (kill((pid_t)pid, 0) != 0 && errno == ESRCH)
        return true;
    return read_stat(pid, &line) &&
           (line.start != start ||
            (strchr("ZX", line.state) && line.threads <= 1));
}

bool process_has_ended(const char *process)
{
    char *here = place();
    bool is_here = here && strncmp(process, here, strlen(here)) == 0;
    unsigned long long start;
    long pid;

    if (is_here)
        process += strlen(here);
    free(here);
    return is_here && sscanf(process, "%ld %llu", &pid, &start) == 2 &&
           pid > 0 && pid <= INT_MAX && is_gone(pid, start);
}
