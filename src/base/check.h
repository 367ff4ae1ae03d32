/*
 * Assertions that stay on in release builds.
 *
 * CHECK() states something that is a bug in this program if it is false. It
 * is never used for input, configuration, peers or memory: those return a
 * struct err. Keep the condition cheap; nothing in it may have an effect.
 * Aborting is safe: the sources deliver again what was not settled.
 */
#ifndef MT_BASE_CHECK_H
#define MT_BASE_CHECK_H

#define CHECK(cond) \
    ((cond) ? (void)0 : check_failed(#cond, __FILE__, __LINE__, __func__))

/* For a switch that has handled every enumerator. */
#define UNREACHABLE() check_failed("unreachable", __FILE__, __LINE__, __func__)

/* Report a broken invariant on stderr and abort. */
_Noreturn void check_failed(const char *cond, const char *file, int line,
                            const char *func);

#endif
