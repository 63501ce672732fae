/*
 * Records what goes in and out of xenstored, preloaded into Xen's own: every message, on sockets and on rings, in the
 * one order in which the daemon takes them. Its own trace (-T) says neither in which transaction a request is, nor
 * where a payload has a NUL, and a kernel does ask for things beside its open transaction.
 *
 * One line each, into the file that XENSTORE_RECORD names:
 *   + N socket | + N ring DOMID   connection N begins
 *   - N                           connection N ends
 *   > N TYPE TRANSACTION PAYLOAD  a request is here as a whole, and is worked on next
 *   < N TYPE PAYLOAD              an answer or an event is out as a whole
 *   !                             Xen says that some domain has shut down or is gone
 * Of the payload, what is no printable ASCII, and the backslash, is \xHH.
 *
 * The layout of the ring page is that of Xen's public io/xs_wire.h.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#define RING 1024
/* Offsets in the page. */
#define REQUESTS 0
#define ANSWERS 1024
#define REQ_CONS 2048
#define RSP_PROD 2060
#define HEADER 16
#define PAYLOAD 4096
#define CONNECTIONS 512

static const char *const TYPES[] = {
    "CONTROL", "DIRECTORY", "READ", "GET_PERMS", "WATCH", "UNWATCH", "TRANSACTION_START", "TRANSACTION_END",
    "INTRODUCE", "RELEASE", "GET_DOMAIN_PATH", "WRITE", "MKDIR", "RM", "SET_PERMS", "WATCH_EVENT", "ERROR",
    "IS_DOMAIN_INTRODUCED", "RESUME", "SET_TARGET", "RESTRICT", "RESET_WATCHES", "DIRECTORY_PART",
    "GET_FEATURE", "SET_FEATURE", "GET_QUOTA", "SET_QUOTA",
};

/* Bytes of a message that is not whole yet. */
struct stream {
    unsigned used;
    unsigned char bytes[HEADER + PAYLOAD];
};

static struct connection {
    unsigned number; /* 0: free */
    int fd;
    unsigned char *page; /* of a ring; NULL for a socket */
    uint32_t taken, put; /* the ring's indexes, as far as they were looked at */
    struct stream in, out;
} connections[CONNECTIONS];
/* Behind the last one that was ever used. */
static struct connection *top = connections;

static unsigned last_number;
static FILE *record;
static int virq = -1;

static FILE *line(void)
{
    if (!record) {
        const char *name = getenv("XENSTORE_RECORD");

        record = name ? fopen(name, "ae") : NULL;
        if (!record)
            abort();
        setvbuf(record, NULL, _IOLBF, BUFSIZ);
    }
    return record;
}

static uint32_t index_at(const unsigned char *page, unsigned offset)
{
    return *(const volatile uint32_t *)(page + offset);
}

static struct connection *begin(int fd, unsigned char *page)
{
    struct connection *free_one = connections;

    while (free_one < top && free_one->number)
        free_one++;
    if (free_one == connections + CONNECTIONS)
        abort();
    if (free_one == top)
        top++;
    free_one->number = ++last_number;
    free_one->fd = fd;
    free_one->page = page;
    free_one->taken = page ? index_at(page, REQ_CONS) : 0;
    free_one->put = page ? index_at(page, RSP_PROD) : 0;
    free_one->in.used = free_one->out.used = 0;
    return free_one;
}

static void end(struct connection *connection)
{
    fprintf(line(), "- %u\n", connection->number);
    connection->number = 0;
}

static struct connection *with_fd(int fd)
{
    for (struct connection *at = connections; at < top; at++)
        if (at->number && !at->page && at->fd == fd)
            return at;
    return NULL;
}

static void message(char direction, unsigned number, const unsigned char *bytes)
{
    uint32_t header[HEADER / 4];
    FILE *to = line();

    memmove(header, bytes, HEADER);
    fprintf(to, "%c %u ", direction, number);
    if (header[0] < sizeof(TYPES) / sizeof(*TYPES))
        fprintf(to, "%s ", TYPES[header[0]]);
    else
        fprintf(to, "%u ", header[0]);
    if (direction == '>')
        fprintf(to, "%u ", header[2]);
    for (const unsigned char *at = bytes + HEADER; at < bytes + HEADER + header[3]; at++)
        fprintf(to, *at >= ' ' && *at <= '~' && *at != '\\' ? "%c" : "\\x%02x", *at);
    fputc('\n', to);
}

/* The daemon reads and writes a header and a payload, each in as many pieces as it has to, and never more than one. */
static void take(char direction, unsigned number, struct stream *stream, const void *bytes, size_t length)
{
    uint32_t payload = 0;

    if (stream->used + length > sizeof(stream->bytes))
        abort();
    memmove(stream->bytes + stream->used, bytes, length);
    stream->used += length;
    if (stream->used < HEADER)
        return;
    memmove(&payload, stream->bytes + 12, sizeof(payload));
    if (payload > PAYLOAD || stream->used < HEADER + payload)
        return;
    message(direction, number, stream->bytes);
    stream->used = 0;
}

int accept(int fd, struct sockaddr *restrict address, socklen_t *restrict length)
{
    int accepted = syscall(SYS_accept, fd, address, length);

    if (accepted >= 0)
        fprintf(line(), "+ %u socket\n", begin(accepted, NULL)->number);
    return accepted;
}

int close(int fd)
{
    struct connection *connection = with_fd(fd);

    if (connection)
        end(connection);
    return syscall(SYS_close, fd);
}

ssize_t read(int fd, void *bytes, size_t length)
{
    ssize_t count = syscall(SYS_read, fd, bytes, length);
    struct connection *connection = with_fd(fd);

    if (connection && count > 0)
        take('>', connection->number, &connection->in, bytes, count);
    return count;
}

ssize_t write(int fd, const void *bytes, size_t length)
{
    ssize_t count = syscall(SYS_write, fd, bytes, length);
    struct connection *connection = with_fd(fd);

    if (connection && count > 0)
        take('<', connection->number, &connection->out, bytes, count);
    return count;
}

/* What the daemon has taken from a ring or put into it since the last look. It begins an index anew at 0. */
static void look(char direction, struct connection *connection, struct stream *stream, const unsigned char *ring,
                 uint32_t *seen, uint32_t now)
{
    if (now - *seen > RING)
        *seen = 0;
    for (; *seen != now; ++*seen)
        take(direction, connection->number, stream, ring + *seen % RING, 1);
}

/* The daemon calls this after each piece that it has read from a ring or written to one, and before anything else. */
int xenevtchn_notify(void *handle, unsigned port)
{
    int (*next)(void *, unsigned) = dlsym(RTLD_NEXT, "xenevtchn_notify");

    for (struct connection *at = connections; at < top; at++)
        if (at->number && at->page) {
            look('>', at, &at->in, at->page + REQUESTS, &at->taken, index_at(at->page, REQ_CONS));
            look('<', at, &at->out, at->page + ANSWERS, &at->put, index_at(at->page, RSP_PROD));
        }
    return next(handle, port);
}

/* dom0's own ring is a file of its kernel. */
void *mmap(void *hint, size_t length, int protection, int flags, int fd, off_t offset)
{
    void *page = (void *)syscall(SYS_mmap, hint, length, protection, flags, fd, offset);
    char name[64] = "", link[32];

    snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
    if (page != MAP_FAILED && fd >= 0 && readlink(link, name, sizeof(name) - 1) > 0 && strstr(name, "/xsd_kva"))
        fprintf(line(), "+ %u ring 0\n", begin(-1, page)->number);
    return page;
}

void *xengnttab_map_grant_ref(void *handle, uint32_t domid, uint32_t grant, int protection)
{
    void *(*next)(void *, uint32_t, uint32_t, int) = dlsym(RTLD_NEXT, "xengnttab_map_grant_ref");
    void *page = next(handle, domid, grant, protection);

    if (page)
        fprintf(line(), "+ %u ring %u\n", begin(-1, page)->number, domid);
    return page;
}

int xengnttab_unmap(void *handle, void *page, uint32_t count)
{
    int (*next)(void *, void *, uint32_t) = dlsym(RTLD_NEXT, "xengnttab_unmap");

    for (struct connection *at = connections; at < top; at++)
        if (at->number && at->page == page)
            end(at);
    return next(handle, page, count);
}

int xenevtchn_bind_virq(void *handle, unsigned number)
{
    int (*next)(void *, unsigned) = dlsym(RTLD_NEXT, "xenevtchn_bind_virq");

    return virq = next(handle, number);
}

int xenevtchn_pending(void *handle)
{
    int (*next)(void *) = dlsym(RTLD_NEXT, "xenevtchn_pending");
    int port = next(handle);

    if (port >= 0 && port == virq)
        fprintf(line(), "!\n");
    return port;
}
