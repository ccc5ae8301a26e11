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
    double ended, busy;
} runner;

static _Thread_local double last_running = 1.0;

static double now_on(clockid_t clock) {
    struct timespec now;
    clock_gettime(clock, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

double stow_running(void) { return last_running; }

void stow_share(const stow_member *member, size_t total, size_t grain, size_t *first, size_t *last) {
    size_t pieces = (total + grain - 1) / grain;
    *first = pieces * (size_t)member->index / (size_t)member->count * grain;
    *last = pieces * (size_t)(member->index + 1) / (size_t)member->count * grain;
    if (*last > total) *last = total;
    if (*first > total) *first = total;
}

static void do_work(runner *self) {
    double began = now_on(CLOCK_THREAD_CPUTIME_ID);
    self->work(&self->member);
    self->busy = now_on(CLOCK_THREAD_CPUTIME_ID) - began;
    self->ended = now_on(CLOCK_MONOTONIC);
}

static void *run_one(void *given) {
    runner *self = given;
    atomic_fetch_add(&self->start->arrived, 1);
    while (!atomic_load(&self->start->open)) {
        struct timespec pause = {0, 20000};
        nanosleep(&pause, NULL);
    }
    if (atomic_load(&self->start->failed)) return NULL;
    do_work(self);
    return NULL;
}

double stow_run(stow_work work, void *task, int count) {
    if (count < 1 || count > MOST_THREADS) return -1.0;
    runner team[MOST_THREADS];
    pthread_t threads[MOST_THREADS];
    gate start = {0, 0, 0};
    int made = 0;
    for (int i = 0; i < count; i++) {
        team[i] = (runner){{i, count, task}, work, &start, 0.0, 0.0};
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
    double began = now_on(CLOCK_MONOTONIC);
    atomic_store(&start.open, 1);
    int failed = atomic_load(&start.failed);
    if (!failed) do_work(&team[0]);
    double ended = team[0].ended, busy = team[0].busy;
    for (int i = 1; i <= made; i++) {
        pthread_join(threads[i], NULL);
        if (team[i].ended > ended) ended = team[i].ended;
        if (team[i].busy > busy) busy = team[i].busy;
    }
    if (failed || ended <= began) return -1.0;
    last_running = busy < ended - began ? busy / (ended - began) : 1.0;
    return ended - began;
}
