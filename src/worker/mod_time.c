/* moontide.time and moontide.timer. */
#include "worker/task.h"

#include "base/clock.h"
#include "base/mem.h"
#include "worker/zone.h"

#include <stdio.h>
#include <stdlib.h>

static int l_unix(lua_State *L)
{
    lua_pushnumber(L, (double)clock_wall_us() / 1e6);
    return 1;
}

static int l_parse(lua_State *L)
{
    size_t len;
    const char *text = luaL_checklstring(L, 1, &len);
    int64_t us = clock_parse(text, len);

    if (us == INT64_MIN)
        return push_err(L, CLASS_PERMANENT, "time",
                        "%.100s is no RFC 3339 time", text);
    vm_push_int64(L, us);
    return 1;
}

static int64_t check_us(lua_State *L, int index)
{
    int64_t us;

    if (vm_to_int64(L, index, &us))
        return us;
    us = (int64_t)luaL_checknumber(L, index);
    luaL_argcheck(
        L, us > -(int64_t)62135596800000000 && us < (int64_t)253402300800000000,
        index, "a time between the years 1 and 9999 expected");
    return us;
}

static int64_t floor_div(int64_t a, int64_t b)
{
    return a / b - (a % b < 0);
}

struct parts {
    int64_t year;
    int month, day, hour, min, sec, wday;
};

static struct parts split(int64_t seconds)
{
    int64_t days = floor_div(seconds, 86400);
    int left = (int)(seconds - days * 86400);
    struct parts p = {.hour = left / 3600,
                      .min = left / 60 % 60,
                      .sec = left % 60,
                      .wday = (int)(((days + 3) % 7 + 7) % 7) + 1};

    date_from_days(days, &p.year, &p.month, &p.day);
    return p;
}

static int unknown_zone(lua_State *L, const char *zone)
{
    return push_err(L, CLASS_PERMANENT, "time_zone", "unknown time zone %.64s",
                    zone);
}

/* (µs, zone) → RFC 3339 */
static int l_format(lua_State *L)
{
    int64_t us = check_us(L, 1);
    const char *zone = luaL_optstring(L, 2, NULL);
    int64_t seconds = floor_div(us, 1000000);
    int32_t offset = 0;
    char text[64], suffix[16] = "Z";
    struct parts p;

    if (zone && !zone_offset(zone, seconds, &offset))
        return unknown_zone(L, zone);
    if (zone)
        snprintf(suffix, sizeof(suffix), "%c%02d:%02d", offset < 0 ? '-' : '+',
                 abs(offset) / 3600, abs(offset) / 60 % 60);
    p = split(seconds + offset);
    snprintf(text, sizeof(text), "%04lld-%02d-%02dT%02d:%02d:%02d.%06d%s",
             (long long)p.year, p.month, p.day, p.hour, p.min, p.sec,
             (int)(us - seconds * 1000000), suffix);
    lua_pushstring(L, text);
    return 1;
}

static void set_int(lua_State *L, const char *name, int64_t value)
{
    lua_pushnumber(L, (double)value);
    lua_setfield(L, -2, name);
}

static int l_in_zone(lua_State *L)
{
    int64_t seconds = floor_div(check_us(L, 1), 1000000);
    const char *zone = luaL_checkstring(L, 2);
    int32_t offset;
    struct parts p;

    if (!zone_offset(zone, seconds, &offset))
        return unknown_zone(L, zone);
    p = split(seconds + offset);
    lua_createtable(L, 0, 7);
    set_int(L, "year", p.year);
    set_int(L, "month", p.month);
    set_int(L, "day", p.day);
    set_int(L, "hour", p.hour);
    set_int(L, "min", p.min);
    set_int(L, "sec", p.sec);
    set_int(L, "wday", p.wday);
    return 1;
}

int time_open(lua_State *L)
{
    static const luaL_Reg functions[] = {{"unix", l_unix},
                                         {"parse", l_parse},
                                         {"format", l_format},
                                         {"in_zone", l_in_zone},
                                         {NULL, NULL}};

    luaL_newlib(L, functions);
    return 1;
}

/* --- moontide.timer ------------------------------------------------------------- */

struct nap {
    struct owned owned;
    ev_timer timer;
    struct ev_loop *loop;
};

static void drop_nap(struct owned *owned)
{
    struct nap *nap = CONTAINER_OF(owned, struct nap, owned);

    ev_timer_stop(nap->loop, &nap->timer);
    free(nap);
}

static int push_true(lua_State *L, void *arg)
{
    (void)arg;
    lua_pushboolean(L, 1);
    return 1;
}

static void on_wake(struct ev_loop *loop, ev_timer *timer, int events)
{
    struct nap *nap = timer->data;

    (void)loop;
    (void)events;
    task_resume(&nap->owned, push_true, NULL);
    free(nap);
}

static int l_sleep(lua_State *L)
{
    struct task *task = task_enter(L, "timer.sleep");
    int64_t ms = check_duration_ms(L, 1, "timer.sleep", -1);
    struct nap *nap;

    luaL_argcheck(L, ms >= 0, 1, "a duration expected");
    if (task_runtime(task)->mode != MODE_PERFORM)
        return push_true(L, NULL); /* a dry run does not wait */
    nap = xcalloc(1, sizeof(*nap));
    nap->loop = task_runtime(task)->loop;
    ev_now_update(nap->loop);
    ev_timer_init(&nap->timer, on_wake, (double)ms / 1000, 0);
    nap->timer.data = nap;
    ev_timer_start(nap->loop, &nap->timer);
    task_own(task, &nap->owned, drop_nap);
    return task_suspend(L, &nap->owned);
}

int timer_open(lua_State *L)
{
    static const luaL_Reg functions[] = {{"sleep", l_sleep}, {NULL, NULL}};

    luaL_newlib(L, functions);
    return 1;
}
