/* The routes below /v1/deliveries, for the table in api.c. */
#ifndef MT_HOST_API_DELIVERIES_H
#define MT_HOST_API_DELIVERIES_H

#include "http/server.h"

http_handler_fn get_deliveries;
http_handler_fn post_deliveries_retry, post_deliveries_skip,
    post_deliveries_dead;

#endif
