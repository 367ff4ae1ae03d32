/* Where the API listens: http.listen as text, as a socket, and back. */
#ifndef MT_HTTP_LISTEN_H
#define MT_HTTP_LISTEN_H

#include "base/err.h"

#include <stdbool.h>
#include <stddef.h>
#include <sys/socket.h>

struct listen_address {
    struct sockaddr_storage at;
    socklen_t len;
    bool is_loopback;
};

/* "127.0.0.1:7600", "localhost:0", ":7600", "[::1]:7600". */
bool listen_parse(const char *text, struct listen_address *address,
                  struct err *err) MUST_CHECK;
/* A listening socket, or -1. `text` is for the error. */
int listen_open(const struct listen_address *address, const char *text,
                struct err *err) MUST_CHECK;
/* The address it got, with the port that was chosen for 0. Empty when that
 * cannot be told. */
void listen_name(int fd, char *name, size_t size);

/* Does a Host header name this machine's loopback? A name that only begins like
 * such an address does not. */
bool listen_is_loopback(const char *host);

#endif
