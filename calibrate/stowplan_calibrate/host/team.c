#define _GNU_SOURCE
#include "team.h"

#include <pthread.h>
#include <stdatomic.h>
#include <time.h>

#define MOST_THREADS 1024

typedef struct {
    atomic_int arrived, open, failed;
} gate;

typedef struct {
    stow_member member;
    stow_work work;
    gate *start;
    double ended;
} runner;

double stow_now(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

void stow_share(const stow_member *member, size_t total, size_t grain, size_t *first, size_t *last) {
    size_t pieces = (total + grain - 1) / grain;
    *first = pieces * (size_t)member->index / (size_t)member->count * grain;
    *last = pieces * (size_t)(member->index + 1) / (size_t)member->count * grain;
    if (*last > total) *last = total;
    if (*first > total) *first = total;
}

static void *run_one(void *given) {
    runner *self = given;
    atomic_fetch_add(&self->start->arrived, 1);
    while (!atomic_load(&self->start->open)) {
        struct timespec pause = {0, 20000};
        nanosleep(&pause, NULL);
    }
    if (atomic_load(&self->start->failed)) return NULL;
    self->work(&self->member);
    self->ended = stow_now();
    return NULL;
}

double stow_run(stow_work work, void *task, int count) {
    if (count < 1 || count > MOST_THREADS) return -1.0;
    runner team[MOST_THREADS];
    pthread_t threads[MOST_THREADS];
    gate start = {0, 0, 0};
    int made = 0;
    for (int i = 0; i < count; i++) {
        team[i] = (runner){{i, count, task}, work, &start, 0.0};
    }
    for (int i = 1; i < count; i++, made++) {
        if (pthread_create(&threads[i], NULL, run_one, &team[i]) != 0) {
            atomic_store(&start.failed, 1);
            break;
        }
    }
    while (atomic_load(&start.arrived) < made) {
        struct timespec pause = {0, 20000};
        nanosleep(&pause, NULL);
    }
    double began = stow_now();
    atomic_store(&start.open, 1);
    if (!atomic_load(&start.failed)) work(&team[0].member);
    double ended = stow_now();
    for (int i = 1; i <= made; i++) {
        pthread_join(threads[i], NULL);
        if (team[i].ended > ended) ended = team[i].ended;
    }
    return atomic_load(&start.failed) ? -1.0 : ended - began;
}
