/* The routes below /v1/sources, for the table in api.c. */
#ifndef MT_HOST_API_SOURCES_H
#define MT_HOST_API_SOURCES_H

#include "http/server.h"

http_handler_fn get_sources, get_moves, post_move;

#endif
