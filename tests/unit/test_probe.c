/*
 * The host's requests to checking processes: what hangs, crashes or is killed,
 * the server they are forked from included, and what is left of them. This
 * program is also the server (`probe --serve`), with children that do as their
 * request says, or real ones (MT_REAL), and a host that is killed (`host`).
 */
#include "base/buf.h"
#include "base/mem.h"
#include "host/probe.h"
#include "worker/probe_server.h"
#include "worker/worker.h"

#include <dirent.h>
#include <errno.h>
#include <ev.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#define LONG_MS 60000

/* --- a child ---------------------------------------------------------------------- */

static void say(const char *fmt, ...)
{
    va_list ap;

    va_start(ap, fmt);
    vprintf(fmt, ap);
    va_end(ap);
    fflush(stdout);
}

static int open_files(void)
{
    DIR *dir = opendir("/proc/self/fd");
    int n = 0;

    while (readdir(dir))
        n++;
    closedir(dir);
    return n - 3; /* ., .. and the folder itself */
}

static int serve_child(void)
{
    json_t *request = json_loadf(stdin, 0, NULL);
    const char *what = json_string_value(json_object_get(request, "do"));

    if (strcmp(what, "hang") == 0)
        for (;;)
            pause();
    if (strcmp(what, "hang_closed") == 0 && close(STDOUT_FILENO) == 0)
        for (;;)
            pause();
    if (strcmp(what, "crash") == 0) {
        signal(SIGSEGV, SIG_DFL); /* not a sanitizer's */
        raise(SIGSEGV);
    }
    if (strcmp(what, "kill_server") == 0 && kill(getppid(), SIGKILL) == 0)
        for (;;)
            pause();
    if (strcmp(what, "exit") == 0)
        _exit(7);
    if (strcmp(what, "half") == 0) {
        say("{\"ok\":tr");
        raise(SIGKILL);
    }
    while (strcmp(what, "wait") == 0 &&
           access(json_string_value(json_object_get(request, "file")), F_OK))
        usleep(1000);
    say("{\"ok\":true,\"pid\":%d,\"files\":%d}", (int)getpid(), open_files());
    _exit(0);
}

/* --- asking ------------------------------------------------------------------------ */

struct asked {
    struct probe *probe;
    json_t *answer;
    struct err err;
    bool is_done;
};

static void on_done(void *arg, const json_t *answer, const struct err *err)
{
    struct asked *a = arg;

    assert_false(a->is_done);
    a->is_done = true;
    if (answer)
        a->answer = json_deep_copy(answer);
    else
        a->err = *err;
}

static void ask(struct asked *a, const char *what, int64_t timeout_ms)
{
    json_t *request =
        json_pack("{s:s, s:s}", "do", what, "file", "/nonexistent");

    memset(a, 0, sizeof(*a));
    a->probe = probe_start(ev_default_loop(0), request, timeout_ms, on_done, a);
    json_decref(request);
}

static void finish(struct asked *a)
{
    while (!a->is_done)
        ev_run(ev_default_loop(0), EVRUN_ONCE);
}

static long number_in(const struct asked *a, const char *name)
{
    if (!a->answer)
        fail_msg("%s", a->err.msg);
    return (long)json_integer_value(json_object_get(a->answer, name));
}

static void ask_and_see(const char *what, const char *error)
{
    struct asked a;

    ask(&a, what, LONG_MS);
    finish(&a);
    assert_null(a.answer);
    assert_string_equal(a.err.msg, error);
    assert_int_equal(a.err.kind, ERR_PERMANENT);
}

static long ask_and_get(const char *name)
{
    struct asked a;
    long number;

    ask(&a, "say", LONG_MS);
    finish(&a);
    number = number_in(&a, name);
    json_decref(a.answer);
    return number;
}

/* --- processes ---------------------------------------------------------------------- */

/* Up to `max` children of a process. */
static size_t children_of(pid_t pid, pid_t *children, size_t max)
{
    char path[64];
    size_t n = 0;
    FILE *file;

    snprintf(path, sizeof(path), "/proc/%d/task/%d/children", (int)pid,
             (int)pid);
    file = fopen(path, "r");
    while (file && n < max && fscanf(file, "%d", &children[n]) == 1)
        n++;
    if (file)
        fclose(file);
    return n;
}

static pid_t server_of(pid_t host)
{
    pid_t pid = 0;

    assert_int_equal(children_of(host, &pid, 1), 1);
    return pid;
}

static void on_moment(struct ev_loop *loop, ev_timer *timer, int events)
{
    (void)loop; /* that the loop turns is enough */
    (void)timer;
    (void)events;
}

/* Let the loop turn until the server has `n` children. */
static void wait_for_children(size_t n)
{
    struct ev_loop *loop = ev_default_loop(0);
    pid_t pids[16];
    ev_timer moment;

    ev_timer_init(&moment, on_moment, 0.001, 0.001);
    ev_timer_start(loop, &moment);
    while (children_of(server_of(getpid()), pids, 16) != n)
        ev_run(loop, EVRUN_ONCE);
    ev_timer_stop(loop, &moment);
}

/* --- tests ------------------------------------------------------------------------- */

static void test_a_hanging_one_is_killed_and_others_go_on(void **state)
{
    struct asked hang, closed, other;

    (void)state;
    ask(&hang, "hang", 300);
    ask(&closed, "hang_closed", 300);
    ask(&other, "say", LONG_MS);
    finish(&other);
    assert_false(hang.is_done);
    assert_false(closed.is_done);
    json_decref(other.answer);
    finish(&hang);
    finish(&closed);
    assert_string_equal(hang.err.msg, "loading did not end within 300 ms (an "
                                      "endless loop?)");
    assert_string_equal(closed.err.msg, hang.err.msg);
    wait_for_children(0);
}

static void test_an_end_without_an_answer_is_told(void **state)
{
    pid_t server;

    (void)state;
    ask_and_get("pid");
    server = server_of(getpid());
    ask_and_see("crash", "the checking process was killed by signal 11");
    ask_and_see("exit", "the checking process exited with 7");
    ask_and_see("half", "the checking process was killed by signal 9");
    ask_and_get("pid");
    assert_int_equal(server_of(getpid()), server);
}

static void test_a_cancelled_one_is_killed(void **state)
{
    struct asked hang;

    (void)state;
    ask(&hang, "hang", LONG_MS);
    wait_for_children(1);
    probe_cancel(hang.probe);
    wait_for_children(0);
    assert_false(hang.is_done);
}

static void test_children_have_nothing_of_each_other(void **state)
{
    struct asked hangs[3];

    (void)state;
    for (int i = 0; i < 3; i++)
        ask(&hangs[i], "hang", LONG_MS);
    wait_for_children(3);
    assert_int_equal(ask_and_get("files"), 3);
    for (int i = 0; i < 3; i++)
        probe_cancel(hangs[i].probe);
    wait_for_children(0);
}

static void test_the_death_of_the_server_forgets_nobody(void **state)
{
    char file[] = "/tmp/moontide-probe-XXXXXX";
    json_t *request;
    struct asked waiting = {0};
    pid_t server, child;

    (void)state;
    close(mkstemp(file));
    unlink(file);
    request = json_pack("{s:s, s:s}", "do", "wait", "file", file);
    probe_start(ev_default_loop(0), request, LONG_MS, on_done, &waiting);
    wait_for_children(1);
    server = server_of(getpid());
    assert_int_equal(children_of(server, &child, 1), 1);
    kill(server, SIGKILL);
    assert_true(ask_and_get("pid") > 0);
    assert_int_not_equal(server_of(getpid()), server);
    wait_for_children(1);
    fclose(fopen(file, "w"));
    finish(&waiting);
    assert_int_not_equal(number_in(&waiting, "pid"), child);
    unlink(file);
    json_decref(waiting.answer);
    json_decref(request);
}

static void test_who_kills_each_server_is_given_up(void **state)
{
    struct asked killer;

    (void)state;
    ask(&killer, "kill_server", LONG_MS);
    finish(&killer);
    assert_null(killer.answer);
    assert_int_equal(killer.err.kind, ERR_RETRIABLE);
    assert_true(ask_and_get("pid") > 0);
}

static void test_another_loop_may_ask_meanwhile(void **state)
{
    json_t *request = json_pack("{s:s}", "do", "say"), *answer;
    struct asked crash;
    struct err err;

    (void)state;
    ask(&crash, "crash", LONG_MS);
    answer = probe_wait(request, LONG_MS, &err);
    assert_non_null(answer);
    finish(&crash);
    assert_string_equal(crash.err.msg,
                        "the checking process was killed by signal 11");
    json_decref(answer);
    json_decref(request);
}

/* --- the end of the host ---------------------------------------------------------------- */

/* Asks for one that hangs, and ends as it is told: by itself or not at all. */
static int host_main(const char *how)
{
    struct asked hang, other;

    ask(&hang, "hang", LONG_MS);
    ask(&other, "say", LONG_MS);
    finish(&other);
    json_decref(other.answer);
    say("ready\n");
    if (strcmp(how, "kill") == 0)
        pause();
    return 0;
}

static pid_t start_host(const char *how, int *output)
{
    int out[2];
    pid_t pid;

    assert_int_equal(pipe(out), 0);
    pid = fork();
    if (pid == 0) {
        dup2(out[1], STDOUT_FILENO);
        close(out[0]);
        close(out[1]);
        execl(self_path(), "test_probe", "host", how, (char *)NULL);
        _exit(127);
    }
    close(out[1]);
    *output = out[0];
    return pid;
}

/* Those whose parent dies are ours, unless it has buried them. */
static void bury(pid_t pid)
{
    while (waitpid(pid, NULL, 0) < 0 && errno == EINTR)
        continue;
    assert_int_equal(kill(pid, 0), -1);
    assert_int_equal(errno, ESRCH);
}

static void test_nothing_outlives_a_killed_host(void **state)
{
    pid_t host, server, child;
    char text[16];
    int output;

    (void)state;
    prctl(PR_SET_CHILD_SUBREAPER, 1);
    host = start_host("kill", &output);
    assert_true(read(output, text, sizeof(text)) > 0);
    server = server_of(host);
    assert_int_equal(children_of(server, &child, 1), 1);
    kill(host, SIGKILL);
    bury(host);
    bury(server);
    bury(child);
    close(output);
}

/* The first test: we have no server of our own yet. */
static void test_nothing_outlives_a_host_that_ends(void **state)
{
    char text[16];
    int output, status;
    pid_t host;

    (void)state;
    prctl(PR_SET_CHILD_SUBREAPER, 1);
    host = start_host("end", &output);
    while (read(output, text, sizeof(text)) > 0)
        continue;
    assert_int_equal(waitpid(host, &status, 0), host);
    assert_int_equal(status, 0);
    assert_int_equal(waitpid(-1, NULL, 0), -1); /* nobody was left to us */
    assert_int_equal(errno, ECHILD);
    close(output);
}

/* --- real ones -------------------------------------------------------------------------- */

static char handler[] = "/tmp/moontide-chance-XXXXXX/h.lua";

static void write_handler(void)
{
    char *slash = strrchr(handler, '/');
    FILE *file;

    *slash = '\0';
    assert_non_null(mkdtemp(handler));
    *slash = '/';
    file = fopen(handler, "w");
    fputs("local crypto, uuid = require 'moontide.crypto', "
          "require 'moontide.uuid'\n"
          "return { subscribes = { 'T' }, handle = function() end,\n"
          "  config = { v4 = uuid.v4(), v7 = uuid.v7():sub(15),\n"
          "    bytes = crypto.hex(crypto.random(16)),\n"
          "    lua = tostring(math.random(2 ^ 50)) } }\n",
          file);
    fclose(file);
}

static json_t *config_of(struct asked *a)
{
    finish(a);
    if (!a->answer)
        fail_msg("%s", a->err.msg);
    return json_object_get(
        json_object_get(json_object_get(a->answer, "bundle"), "decl"),
        "config");
}

static void test_two_children_do_not_draw_the_same(void **state)
{
    struct ev_loop *loop = ev_default_loop(0);
    struct asked a = {0}, b = {0};
    json_t *request, *value;
    const char *name;

    (void)state;
    setenv("MT_REAL", "1", 1);
    if (children_of(getpid(), &(pid_t){0}, 1))
        kill(server_of(getpid()), SIGKILL);
    write_handler();
    request = json_pack("{s:s, s:s, s:n, s:{}}", "op", "handler", "path",
                        handler, "settings", "defaults");
    probe_start(loop, request, LONG_MS, on_done, &a);
    probe_start(loop, request, LONG_MS, on_done, &b);
    assert_int_equal(json_object_size(config_of(&a)), 4);
    json_object_foreach(config_of(&b), name, value)
        assert_false(json_equal(value, json_object_get(config_of(&a), name)));
    unsetenv("MT_REAL");
    json_decref(a.answer);
    json_decref(b.answer);
    json_decref(request);
    unlink(handler);
    *strrchr(handler, '/') = '\0';
    rmdir(handler);
}

/* A fork takes one thread along: there may be no other. */
static void test_the_server_has_one_thread(void **state)
{
    char path[64];
    int n = 0;
    DIR *dir;

    (void)state;
    snprintf(path, sizeof(path), "/proc/%d/task", (int)server_of(getpid()));
    dir = opendir(path);
    assert_non_null(dir);
    for (struct dirent *e; (e = readdir(dir)) != NULL;)
        n += e->d_name[0] != '.';
    closedir(dir);
    assert_int_equal(n, 1);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_nothing_outlives_a_host_that_ends),
        cmocka_unit_test(test_a_hanging_one_is_killed_and_others_go_on),
        cmocka_unit_test(test_an_end_without_an_answer_is_told),
        cmocka_unit_test(test_a_cancelled_one_is_killed),
        cmocka_unit_test(test_children_have_nothing_of_each_other),
        cmocka_unit_test(test_the_death_of_the_server_forgets_nobody),
        cmocka_unit_test(test_who_kills_each_server_is_given_up),
        cmocka_unit_test(test_another_loop_may_ask_meanwhile),
        cmocka_unit_test(test_nothing_outlives_a_killed_host),
        cmocka_unit_test(test_two_children_do_not_draw_the_same),
        cmocka_unit_test(test_the_server_has_one_thread),
    };

    if (argc > 2 && strcmp(argv[1], "host") == 0)
        return host_main(argv[2]);
    if (argc > 2 && strcmp(argv[1], "probe") == 0 && getenv("MT_REAL"))
        return probe_main(argc - 1, argv + 1);
    if (argc > 2 && strcmp(argv[1], "probe") == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        return probe_serve() ? serve_child() : 0;
    }
    return cmocka_run_group_tests(tests, NULL, NULL);
}
