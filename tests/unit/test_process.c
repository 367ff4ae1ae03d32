/* Has a process ended? Only where that is certain. */
#include "base/process.h"

#include "base/mem.h"

#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

/* A child that waits to be killed, and what it says of itself. */
static pid_t child_new(char text[static 512])
{
    int ends[2];
    ssize_t len;
    pid_t pid;

    assert_int_equal(pipe(ends), 0);
    pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        char *self = process_self();

        if (write(ends[1], self, strlen(self)) < 0)
            _exit(1);
        for (;;)
            pause();
    }
    close(ends[1]);
    len = read(ends[0], text, 511);
    close(ends[0]);
    assert_true(len > 0);
    text[len] = '\0';
    return pid;
}

static void who_lives_has_not_ended(void **state)
{
    char *self = process_self();

    (void)state;
    assert_true(*self);
    assert_false(process_has_ended(self));
    free(self);
}

static void a_stopped_process_lives(void **state)
{
    char text[512];
    pid_t pid = child_new(text);

    (void)state;
    kill(pid, SIGSTOP);
    assert_int_equal(waitpid(pid, NULL, WUNTRACED), pid);
    assert_false(process_has_ended(text));
    kill(pid, SIGKILL);
    assert_int_equal(waitpid(pid, NULL, 0), pid);
    assert_true(process_has_ended(text));
}

static void a_zombie_has_ended(void **state)
{
    char text[512];
    pid_t pid = child_new(text);
    siginfo_t info;

    (void)state;
    kill(pid, SIGKILL);
    assert_int_equal(waitid(P_PID, (id_t)pid, &info, WEXITED | WNOWAIT), 0);
    assert_true(process_has_ended(text));
    assert_int_equal(waitpid(pid, NULL, 0), pid);
}

/* The pid was given to another one since. */
static void the_start_tells_one_pid_from_the_next(void **state)
{
    char *self = process_self(), *other;

    (void)state;
    *strrchr(self, ' ') = '\0';
    other = xasprintf("%s 1", self);
    assert_true(process_has_ended(other));
    free(other);
    free(self);
}

static void elsewhere_nobody_has_ended(void **state)
{
    char text[512], *space;
    pid_t pid = child_new(text);

    (void)state;
    kill(pid, SIGKILL);
    assert_int_equal(waitpid(pid, NULL, 0), pid);
    assert_true(process_has_ended(text));
    text[0] = text[0] == '0' ? '1' : '0'; /* another boot, another machine */
    assert_false(process_has_ended(text));
    text[0] = 'x';
    assert_false(process_has_ended(text));

    pid = child_new(text);
    kill(pid, SIGKILL);
    assert_int_equal(waitpid(pid, NULL, 0), pid);
    space = strchr(text, ']'); /* another PID namespace */
    space[-1] = space[-1] == '0' ? '1' : '0';
    assert_false(process_has_ended(text));
}

static void what_makes_no_sense_has_not_ended(void **state)
{
    char *self = process_self();
    size_t words = 0;

    (void)state;
    assert_false(process_has_ended(""));
    assert_false(process_has_ended("1 2"));
    for (char *at = self; words < 3; at++)
        if (*at == ' ' && ++words == 3)
            memcpy(at + 1, "-1 x", 5);
    assert_false(process_has_ended(self));
    free(self);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(who_lives_has_not_ended),
        cmocka_unit_test(a_stopped_process_lives),
        cmocka_unit_test(a_zombie_has_ended),
        cmocka_unit_test(the_start_tells_one_pid_from_the_next),
        cmocka_unit_test(elsewhere_nobody_has_ended),
        cmocka_unit_test(what_makes_no_sense_has_not_ended),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
