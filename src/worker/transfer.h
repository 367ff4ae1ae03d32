/*
 * libcurl's multi interface on libev: transfers of one process, side by side.
 * Names are resolved on libcurl's own threads. One per runtime.
 */
#ifndef MT_WORKER_TRANSFER_H
#define MT_WORKER_TRANSFER_H

#include <curl/curl.h>
#include <stdbool.h>

struct runtime;
struct transfers;

typedef void transfer_fn(void *arg, CURLcode code);

struct transfers *transfers_of(struct runtime *rt);

/* Begin; `fn` is called once from the loop, never from inside this call, and
 * `easy` is the caller's again then. CURLOPT_PRIVATE is used here. */
void transfer_start(struct transfers *ts, CURL *easy, transfer_fn *fn,
                    void *arg);

/* Take a running one back; its `fn` is not called. */
void transfer_abort(struct transfers *ts, CURL *easy);

#endif
