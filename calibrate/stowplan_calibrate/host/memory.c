/* Streams over host memory, and page faults. Every function returns seconds, negative on failure. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "team.h"

#define LINE 64

typedef struct {
    float *a, *b, *c;
    size_t floats;
    _Atomic uint32_t sink;
} stream;

static void do_read(const stow_member *member) {
    stream *task = member->task;
    size_t first, last;
    stow_share(member, task->floats, 4096, &first, &last);
    const uint32_t *words = (const uint32_t *)task->a;
    uint32_t sum[64] = {0}; /* independent sums, so that no addition waits for another */
    size_t i = first;
    for (; i + 64 <= last; i += 64)
        for (int j = 0; j < 64; j++) sum[j] += words[i + j];
    for (; i < last; i++) sum[0] += words[i];
    for (int j = 1; j < 64; j++) sum[0] += sum[j];
    task->sink += sum[0];
}

static void do_copy(const stow_member *member) {
    stream *task = member->task;
    size_t first, last;
    stow_share(member, task->floats, 4096, &first, &last);
    memcpy(task->a + first, task->b + first, (last - first) * sizeof(float));
}

static void do_triad(const stow_member *member) {
    stream *task = member->task;
    size_t first, last;
    stow_share(member, task->floats, 4096, &first, &last);
    float *restrict a = task->a;
    const float *restrict b = task->b, *restrict c = task->c;
    for (size_t i = first; i < last; i++) a[i] = b[i] + 3.0f * c[i];
}

static void do_touch(const stow_member *member) {
    stream *task = member->task;
    size_t first, last;
    stow_share(member, task->floats, 1024, &first, &last);
    uint32_t sum = 0;
    const volatile uint32_t *words = (const volatile uint32_t *)task->a;
    for (size_t i = first; i < last; i += 1024) sum += words[i]; /* one word of every page of 4 KiB */
    task->sink += sum;
}

double stow_read(float *a, size_t floats, int threads) {
    stream task = {a, NULL, NULL, floats, 0};
    return stow_run(do_read, &task, threads);
}

double stow_copy(float *a, float *b, size_t floats, int threads) {
    stream task = {a, b, NULL, floats, 0};
    return stow_run(do_copy, &task, threads);
}

double stow_triad(float *a, float *b, float *c, size_t floats, int threads) {
    stream task = {a, b, c, floats, 0};
    return stow_run(do_triad, &task, threads);
}

/* First touch of fresh anonymous memory: one fault for every page. */
double stow_anonymous_faults(size_t bytes, int threads) {
    void *fresh = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (fresh == MAP_FAILED) return -1.0;
    madvise(fresh, bytes, MADV_NOHUGEPAGE);
    stream task = {fresh, NULL, NULL, bytes / sizeof(float), 0};
    double seconds = stow_run(do_touch, &task, threads);
    munmap(fresh, bytes);
    return seconds;
}

/* Reads a whole file through a memory map; `cold` drops it from the page cache first. */
double stow_mapped_read(const char *path, int threads, int cold, int every_byte) {
    int file = open(path, O_RDONLY);
    if (file < 0) return -1.0;
    struct stat known;
    if (fstat(file, &known) != 0 || known.st_size < 4096) {
        close(file);
        return -1.0;
    }
    size_t bytes = (size_t)known.st_size & ~(size_t)4095;
    if (cold && (fsync(file), posix_fadvise(file, 0, 0, POSIX_FADV_DONTNEED)) != 0) {
        close(file);
        return -1.0;
    }
    void *mapped = mmap(NULL, bytes, PROT_READ, MAP_SHARED, file, 0);
    close(file);
    if (mapped == MAP_FAILED) return -1.0;
    stream task = {mapped, NULL, NULL, bytes / sizeof(float), 0};
    double seconds = stow_run(every_byte ? do_read : do_touch, &task, threads);
    munmap(mapped, bytes);
    return seconds;
}
