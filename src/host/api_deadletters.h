/* The routes below /v1/dead-letters, for the table in api.c. */
#ifndef MT_HOST_API_DEADLETTERS_H
#define MT_HOST_API_DEADLETTERS_H

#include "http/server.h"

http_handler_fn get_dead_letters, get_dead_groups, get_dead_letter;
http_handler_fn post_redrive, post_redrive_one;
http_handler_fn post_discard, post_discard_one, post_edit;

#endif
