/* What is kept of an event beside its body, as JSON that jsonb takes. */
#ifndef MT_STORES_EVENT_JSON_H
#define MT_STORES_EVENT_JSON_H

#include <jansson.h>

struct event;

/* Headers of its Kafka record; empty where there are none. Gives. */
json_t *event_headers_json(const struct event *event);
/* Fact name → text, the absent ones left out. Gives. */
json_t *event_facts_json(const struct event *event);

#endif
