/*
 * Xen for the C xenstored, where there is none: preloaded, it answers in place of the libraries that would ask the
 * hypervisor. Written from the public headers.
 *
 * The machine is a directory, named by WINDSOR_ORACLE:
 *   xsd_port, xsd_kva   what Linux has in /proc/xen: dom0's event channel and its ring page
 *   ring-N              the ring page of domain N
 *   domain-N            there while domain N exists; its first letter says how it is: r(unning), s(hutdown), d(ying)
 *   events              FIFO of native u32: the ports that are raised for the daemon
 *   notified            FIFO of native u32: the ports that the daemon has raised
 * A domain's port is its number plus PORTS, both ways. Port VIRQ says that a domain has changed.
 *
 * With WINDSOR_ORACLE_TIED in its environment the daemon dies with whoever started it.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <xenctrl.h>
#include <xenevtchn.h>
#include <xengnttab.h>

#define PORTS 1000
#define VIRQ 999
#define PAGE 4096

/* What the handles of the libraries point to: nobody looks inside. */
static char handle;
static int events = -1, notified = -1;

__attribute__((constructor)) static void tie(void)
{
    if (getenv("WINDSOR_ORACLE_TIED"))
        prctl(PR_SET_PDEATHSIG, SIGKILL);
}

static int in_machine(const char *name, int flags)
{
    const char *machine = getenv("WINDSOR_ORACLE");
    char path[PATH_MAX];
    int length = snprintf(path, sizeof(path), "%s/%s", machine ? machine : "/nonexistent", name);

    if (length < 0 || (size_t)length >= sizeof(path)) {
        errno = ENAMETOOLONG;
        return -1;
    }
    return syscall(SYS_openat, AT_FDCWD, path, flags | O_CLOEXEC, 0);
}

/* The kernel's files of Xen are the machine's; anything else is opened as ever. */
static int open_file(const char *path, int flags, mode_t mode)
{
    static const char xen[] = "/proc/xen/";

    if (strncmp(path, xen, sizeof(xen) - 1) == 0)
        return in_machine(path + sizeof(xen) - 1, flags);
    return syscall(SYS_openat, AT_FDCWD, path, flags, mode);
}

int open(const char *path, int flags, ...)
{
    va_list arguments;
    mode_t mode;

    va_start(arguments, flags);
    mode = va_arg(arguments, int);
    va_end(arguments);
    return open_file(path, flags, mode);
}

int open64(const char *path, int flags, ...)
{
    va_list arguments;
    mode_t mode;

    va_start(arguments, flags);
    mode = va_arg(arguments, int);
    va_end(arguments);
    return open_file(path, flags, mode);
}

/* What it would say to the host's log goes to its stderr. */
void openlog(const char *name, int option, int facility)
{
    (void)name, (void)option, (void)facility;
}

void __syslog_chk(int priority, int flag, const char *format, ...)
{
    va_list arguments;

    (void)priority, (void)flag;
    va_start(arguments, format);
    vfprintf(stderr, format, arguments);
    va_end(arguments);
    fputc('\n', stderr);
}

/* Event channels. */

xenevtchn_handle *xenevtchn_open(struct xentoollog_logger *logger, unsigned int flags)
{
    (void)logger, (void)flags;
    /* Open for both, a FIFO never ends. */
    events = in_machine("events", O_RDWR | O_NONBLOCK);
    notified = in_machine("notified", O_RDWR | O_NONBLOCK);
    return events < 0 || notified < 0 ? NULL : (xenevtchn_handle *)&handle;
}

int xenevtchn_close(xenevtchn_handle *xce)
{
    (void)xce;
    return close(events) | close(notified);
}

int xenevtchn_fd(xenevtchn_handle *xce)
{
    (void)xce;
    return events;
}

int xenevtchn_notify(xenevtchn_handle *xce, evtchn_port_t port)
{
    uint32_t word = port;

    (void)xce;
    /* Full: whoever listens has enough to wake up for. */
    return write(notified, &word, sizeof(word)) == sizeof(word) || errno == EAGAIN ? 0 : -1;
}

xenevtchn_port_or_error_t xenevtchn_pending(xenevtchn_handle *xce)
{
    uint32_t word;

    (void)xce;
    return read(events, &word, sizeof(word)) == sizeof(word) ? (int)word : -1;
}

int xenevtchn_unmask(xenevtchn_handle *xce, evtchn_port_t port)
{
    (void)xce, (void)port;
    return 0;
}

xenevtchn_port_or_error_t xenevtchn_bind_interdomain(xenevtchn_handle *xce, uint32_t domid, evtchn_port_t remote_port)
{
    (void)xce, (void)remote_port;
    return PORTS + (int)domid;
}

xenevtchn_port_or_error_t xenevtchn_bind_virq(xenevtchn_handle *xce, unsigned int virq)
{
    (void)xce, (void)virq;
    return VIRQ;
}

int xenevtchn_unbind(xenevtchn_handle *xce, evtchn_port_t port)
{
    (void)xce, (void)port;
    return 0;
}

/* Grants: of a domain's pages only the one of its ring is ever asked for. */

xengnttab_handle *xengnttab_open(struct xentoollog_logger *logger, unsigned open_flags)
{
    (void)logger, (void)open_flags;
    return (xengnttab_handle *)&handle;
}

int xengnttab_close(xengnttab_handle *xgt)
{
    (void)xgt;
    return 0;
}

int xengnttab_set_max_grants(xengnttab_handle *xgt, uint32_t nr_grants)
{
    (void)xgt, (void)nr_grants;
    return 0;
}

void *xengnttab_map_grant_ref(xengnttab_handle *xgt, uint32_t domid, uint32_t ref, int prot)
{
    char name[32];
    void *page;
    int fd;

    (void)xgt, (void)ref;
    snprintf(name, sizeof(name), "ring-%u", domid);
    fd = in_machine(name, O_RDWR);
    if (fd < 0) {
        errno = EINVAL;
        return NULL;
    }
    page = mmap(NULL, PAGE, prot, MAP_SHARED, fd, 0);
    close(fd);
    return page == MAP_FAILED ? NULL : page;
}

int xengnttab_unmap(xengnttab_handle *xgt, void *start_address, uint32_t count)
{
    (void)xgt;
    return munmap(start_address, (size_t)count * PAGE);
}

/* Domains. */

xc_interface *xc_interface_open(struct xentoollog_logger *logger, struct xentoollog_logger *dombuild_logger,
                                unsigned open_flags)
{
    (void)logger, (void)dombuild_logger, (void)open_flags;
    return (xc_interface *)&handle;
}

int xc_interface_close(xc_interface *xch)
{
    (void)xch;
    return 0;
}

/* Like the hypervisor's, it goes on to the next domain that exists. */
int xc_domain_getinfo(xc_interface *xch, uint32_t first_domid, unsigned int max_doms, xc_dominfo_t *info)
{
    unsigned int found = 0;
    uint32_t domid;

    (void)xch;
    for (domid = first_domid; domid < DOMID_FIRST_RESERVED && domid < first_domid + 64 && found < max_doms; domid++) {
        char name[32], state = 'r';
        int fd = -1;

        snprintf(name, sizeof(name), "domain-%u", domid);
        if (domid != 0) {
            fd = in_machine(name, O_RDONLY);
            if (fd < 0)
                continue;
            if (read(fd, &state, 1) != 1)
                state = 'r';
            close(fd);
        }
        memset(&info[found], 0, sizeof(*info));
        info[found].domid = domid;
        info[found].running = state == 'r';
        info[found].shutdown = state == 's';
        info[found].dying = state == 'd';
        found++;
    }
    return (int)found;
}
