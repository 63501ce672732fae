/* Random reads of one file by io_uring with nothing in between: what any backend is held against.
 *
 *   raw FILE BYTES DEPTH PAGES SECONDS DIRECT
 *
 * One registered file, registered buffers in random order out of PAGES pages (at least what DEPTH reads need), one
 * thread, one io_uring_enter for all that can be submitted. Prints reads and seconds. */
#define _GNU_SOURCE
#include <err.h>
#include <fcntl.h>
#include <linux/io_uring.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

/* Of Linux 6.1; older headers do not have them. */
#define SINGLE_ISSUER (1U << 12)
#define DEFER_TASKRUN (1U << 13)

static double now(void)
{
    struct timespec at;
    clock_gettime(CLOCK_MONOTONIC, &at);
    return at.tv_sec + at.tv_nsec * 1e-9;
}

static uint64_t state = 88172645463325252ULL;

static uint64_t draw(void)
{
    state ^= state << 13;
    state ^= state >> 7;
    return state ^= state << 17;
}

int main(int count, char **words)
{
    if (count != 7)
        errx(2, "raw FILE BYTES DEPTH PAGES SECONDS DIRECT");
    size_t bytes = strtoul(words[2], NULL, 10), page = sysconf(_SC_PAGESIZE);
    unsigned depth = atoi(words[3]);
    size_t pages = strtoul(words[4], NULL, 10), each = (bytes + page - 1) / page * page;
    double seconds = atof(words[5]);
    int file = open(words[1], O_RDONLY | (atoi(words[6]) ? O_DIRECT : 0));
    struct stat stat;
    if (file < 0 || fstat(file, &stat))
        err(1, "%s", words[1]);
    uint64_t blocks = stat.st_size / bytes;
    size_t slots = pages * page / each;
    if (slots < depth)
        slots = depth;
    char *data = mmap(NULL, slots * each, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
    struct io_uring_params params = { .flags = SINGLE_ISSUER | DEFER_TASKRUN };
    int ring = syscall(__NR_io_uring_setup, depth, &params);
    if (data == MAP_FAILED || ring < 0)
        err(1, "setup");
    struct iovec whole = { data, slots * each };
    if (syscall(__NR_io_uring_register, ring, IORING_REGISTER_BUFFERS, &whole, 1)
        || syscall(__NR_io_uring_register, ring, IORING_REGISTER_FILES, &file, 1))
        err(1, "register");
    size_t sq_len = params.sq_off.array + params.sq_entries * sizeof(unsigned);
    size_t cq_len = params.cq_off.cqes + params.cq_entries * sizeof(struct io_uring_cqe);
    int both = PROT_READ | PROT_WRITE, shared = MAP_SHARED | MAP_POPULATE;
    char *rings = mmap(NULL, sq_len > cq_len ? sq_len : cq_len, both, shared, ring, IORING_OFF_SQ_RING);
    struct io_uring_sqe *entries =
        mmap(NULL, params.sq_entries * sizeof *entries, both, shared, ring, IORING_OFF_SQES);
    if (rings == MAP_FAILED || entries == MAP_FAILED)
        err(1, "mmap");
    unsigned *sq_tail = (void *)(rings + params.sq_off.tail), *array = (void *)(rings + params.sq_off.array);
    unsigned *cq_head = (void *)(rings + params.cq_off.head), *cq_tail = (void *)(rings + params.cq_off.tail);
    unsigned sq_mask = params.sq_entries - 1, cq_mask = params.cq_entries - 1;
    struct io_uring_cqe *results = (void *)(rings + params.cq_off.cqes);

    /* Slots are taken at the front and given back at the end, as the other loads have it. */
    uint32_t *queue = malloc((slots + 1) * sizeof *queue);
    size_t front = 0, back = 0;
    for (size_t i = 0; i < slots; i++)
        queue[back++] = i;
    for (size_t i = slots - 1; i > 0; i--) {
        size_t other = draw() % (i + 1);
        uint32_t held = queue[i];
        queue[i] = queue[other];
        queue[other] = held;
    }
    unsigned flying = 0;
    uint64_t done = 0;
    double begun = now(), at = begun;
    while (at < begun + seconds || flying) {
        unsigned tail = *sq_tail, fresh = 0;
        for (; at < begun + seconds && flying < depth; fresh++, flying++, tail++) {
            uint32_t slot = queue[front];
            front = front == slots ? 0 : front + 1;
            struct io_uring_sqe *entry = &entries[tail & sq_mask];
            memset(entry, 0, sizeof *entry);
            entry->opcode = IORING_OP_READ_FIXED;
            entry->flags = IOSQE_FIXED_FILE;
            entry->off = draw() % blocks * bytes;
            entry->addr = (uintptr_t)(data + slot * each);
            entry->len = bytes;
            entry->user_data = slot;
            array[tail & sq_mask] = tail & sq_mask;
        }
        __atomic_store_n(sq_tail, tail, __ATOMIC_RELEASE);
        if (syscall(__NR_io_uring_enter, ring, fresh, 1, IORING_ENTER_GETEVENTS, NULL, 0) < 0)
            err(1, "io_uring_enter");
        unsigned head = *cq_head, end = __atomic_load_n(cq_tail, __ATOMIC_ACQUIRE);
        for (; head != end; head++, flying--, done++) {
            struct io_uring_cqe *result = &results[head & cq_mask];
            if (result->res != (int)bytes)
                errx(1, "a read came to %d", result->res);
            queue[back] = result->user_data;
            back = back == slots ? 0 : back + 1;
        }
        __atomic_store_n(cq_head, head, __ATOMIC_RELEASE);
        at = now();
    }
    printf("%llu %.9f\n", (unsigned long long)done, at - begun);
    return 0;
}
