#include "http/listen.h"

#include <arpa/inet.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <unistd.h>

bool listen_parse(const char *text, struct listen_address *address,
                  struct err *err)
{
    struct sockaddr_in *v4 = (struct sockaddr_in *)(void *)&address->at;
    struct sockaddr_in6 *v6 = (struct sockaddr_in6 *)(void *)&address->at;
    const char *colon = strrchr(text, ':');
    char host[64], *end = NULL;
    long port = colon ? strtol(colon + 1, &end, 10) : -1;

    memset(address, 0, sizeof(*address));
    if (!colon || !colon[1] || *end || port < 0 || port > 65535 ||
        (size_t)(colon - text) >= sizeof(host))
        goto bad;
    snprintf(host, sizeof(host), "%.*s", (int)(colon - text), text);
    if (strcmp(host, "localhost") == 0)
        snprintf(host, sizeof(host), "127.0.0.1");
    if (inet_pton(AF_INET, *host ? host : "0.0.0.0", &v4->sin_addr) == 1) {
        v4->sin_family = AF_INET;
        v4->sin_port = htons((uint16_t)port);
        address->len = sizeof(*v4);
        address->is_loopback = (ntohl(v4->sin_addr.s_addr) >> 24) == 127;
        return true;
    }
    if (host[0] == '[' && host[strlen(host) - 1] == ']') {
        host[strlen(host) - 1] = '\0';
        if (inet_pton(AF_INET6, host + 1, &v6->sin6_addr) == 1) {
            v6->sin6_family = AF_INET6;
            v6->sin6_port = htons((uint16_t)port);
            address->len = sizeof(*v6);
            address->is_loopback = IN6_IS_ADDR_LOOPBACK(&v6->sin6_addr);
            return true;
        }
    }
bad:
    return err_set(err, ERR_PERMANENT,
                   "http.listen = \"%s\" is not address:port", text);
}

int listen_open(const struct listen_address *address, const char *text,
                struct err *err)
{
    int one = 1;
    int fd = socket(address->at.ss_family,
                    SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

    if (fd >= 0) {
        setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
        if (bind(fd, (const struct sockaddr *)(const void *)&address->at,
                 address->len) == 0 &&
            listen(fd, 256) == 0)
            return fd;
    }
    err_set(err, ERR_PERMANENT, "cannot listen on %s: %m", text);
    if (fd >= 0)
        close(fd);
    return -1;
}

void listen_name(int fd, char *name, size_t size)
{
    struct sockaddr_storage addr = {0};
    socklen_t len = sizeof(addr);
    char host[64] = "?";
    int port = 0;

    if (getsockname(fd, (struct sockaddr *)(void *)&addr, &len) != 0)
        return;
    if (addr.ss_family == AF_INET) {
        struct sockaddr_in *v4 = (struct sockaddr_in *)(void *)&addr;

        inet_ntop(AF_INET, &v4->sin_addr, host, sizeof(host));
        port = ntohs(v4->sin_port);
        snprintf(name, size, "%s:%d", host, port);
    } else {
        struct sockaddr_in6 *v6 = (struct sockaddr_in6 *)(void *)&addr;

        inet_ntop(AF_INET6, &v6->sin6_addr, host, sizeof(host));
        port = ntohs(v6->sin6_port);
        snprintf(name, size, "[%s]:%d", host, port);
    }
}

bool listen_is_loopback(const char *host)
{
    struct in_addr v4;
    char name[16]; /* nothing of ours is longer */
    size_t len = *host == '[' ? strcspn(host, "]") + 1 : strcspn(host, ":");

    if (len > strlen(host) || len >= sizeof(name) ||
        (host[len] != '\0' && host[len] != ':'))
        return false;
    snprintf(name, sizeof(name), "%.*s", (int)len, host);
    return strcasecmp(name, "localhost") == 0 || strcmp(name, "[::1]") == 0 ||
           (inet_pton(AF_INET, name, &v4) == 1 &&
            ntohl(v4.s_addr) >> 24 == 127);
}
