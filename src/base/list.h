/* An intrusive doubly linked list: the links live in the objects. */
#ifndef MT_BASE_LIST_H
#define MT_BASE_LIST_H

#include <stdbool.h>
#include <stddef.h>

struct list {
    struct list *next, *prev;
};

#define CONTAINER_OF(ptr, type, member) \
    ((type *)(void *)((char *)(ptr)-offsetof(type, member)))

static inline void list_init(struct list *head)
{
    head->next = head->prev = head;
}

static inline bool list_is_empty(const struct list *head)
{
    return head->next == head;
}

/* Put `item` before `at`: at the end of the list when `at` is its head. */
static inline void list_insert(struct list *at, struct list *item)
{
    item->prev = at->prev;
    item->next = at;
    at->prev->next = item;
    at->prev = item;
}

static inline void list_append(struct list *head, struct list *item)
{
    list_insert(head, item);
}

/* Afterwards `item` is a list of its own, so removing twice does no harm. */
static inline void list_remove(struct list *item)
{
    item->prev->next = item->next;
    item->next->prev = item->prev;
    list_init(item);
}

#define list_foreach(pos, head) \
    for (struct list *pos = (head)->next; pos != (head); pos = pos->next)

/* The current item may be removed inside the loop. */
#define list_foreach_safe(pos, head)                               \
    for (struct list *pos = (head)->next, *pos##_next = pos->next; \
         pos != (head); pos = pos##_next, pos##_next = pos->next)

#endif
