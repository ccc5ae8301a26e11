/* Reads and writes of one file by several threads, each with one request in flight. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "team.h"

#ifndef O_DIRECT
#define O_DIRECT 0
#endif
#define PAGE 4096

typedef struct {
    const char *path;
    size_t block, blocks, per_thread;
    int write, direct, scattered;
    _Atomic int problem;
} requests;

static void fail(requests *task, int problem) {
    int none = 0;
    atomic_compare_exchange_strong(&task->problem, &none, problem);
}

static void do_requests(const stow_member *member) {
    requests *task = member->task;
    int mode = (task->write ? O_WRONLY : O_RDONLY) | (task->direct ? O_DIRECT : 0);
    int file = open(task->path, mode);
    if (file < 0) {
        fail(task, errno);
        return;
    }
    void *buffer = NULL;
    if (posix_memalign(&buffer, PAGE, task->block) != 0) {
        close(file);
        fail(task, ENOMEM);
        return;
    }
    memset(buffer, 0x5a + member->index, task->block);
    uint64_t random = 0x9e3779b97f4a7c15u * (uint64_t)(member->index + 1);
    for (size_t i = 0; i < task->per_thread && task->problem == 0; i++) {
        size_t at = i * (size_t)member->count + (size_t)member->index;
        if (task->scattered) {
            random ^= random << 13, random ^= random >> 7, random ^= random << 17;
            at = (size_t)random;
        }
        off_t where = (off_t)(at % task->blocks * task->block);
        ssize_t done = task->write ? pwrite(file, buffer, task->block, where) : pread(file, buffer, task->block, where);
        if (done != (ssize_t)task->block) fail(task, done < 0 ? errno : ENOSPC);
    }
    if (task->write && task->problem == 0 && fdatasync(file) != 0) fail(task, errno);
    free(buffer);
    close(file);
}

/* Seconds for `per_thread` requests of `block` bytes on each of `threads`; minus the error number on failure. */
double stow_disk(const char *path, size_t file_bytes, size_t block, size_t per_thread, int threads, int write, int direct,
                 int scattered) {
    requests task = {path, block, file_bytes / block, per_thread, write, direct, scattered, 0};
    if (task.blocks == 0) return -(double)EINVAL;
    double seconds = stow_run(do_requests, &task, threads);
    return task.problem ? -(double)task.problem : seconds;
}

/* Drops a file's pages from the page cache; 0 where the system has done it. */
int stow_forget(const char *path) {
    int file = open(path, O_RDONLY);
    if (file < 0) return errno;
    int problem = fsync(file) != 0 ? errno : posix_fadvise(file, 0, 0, POSIX_FADV_DONTNEED);
    close(file);
    return problem;
}
