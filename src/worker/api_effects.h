/* The C halves of the modules that act outside: each pushes the table of its
 * primitives, [-0, +1], which the Lua half of the same name makes public. */
#ifndef MT_WORKER_API_EFFECTS_H
#define MT_WORKER_API_EFFECTS_H

struct lua_State;

int api_db_open(struct lua_State *L);
int api_http_open(struct lua_State *L);
int api_mail_open(struct lua_State *L);
int api_events_open(struct lua_State *L);

#endif
