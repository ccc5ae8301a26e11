/* A team of threads that start together and are timed from the common start to the last one's end. */
#ifndef STOW_TEAM_H
#define STOW_TEAM_H

#include <stddef.h>
#include <stdint.h>

typedef struct {
    int index, count;
    void *task;
} stow_member;

typedef void (*stow_work)(const stow_member *member);

/* Seconds that `count` threads need for `work`; negative where threads cannot be had. */
double stow_run(stow_work work, void *task, int count);

/* Share of the last run's time in which its busiest thread was on a core; 1 where nothing else wanted the cores. */
double stow_running(void);

/* The part [first, last) of `total` items that falls to one member, in steps of `grain`. */
void stow_share(const stow_member *member, size_t total, size_t grain, size_t *first, size_t *last);

#endif
