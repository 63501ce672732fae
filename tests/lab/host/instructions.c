/* A plugin for QEMU's emulator: counts the instructions that the machine's one CPU has carried out, as the first 64-bit number of a file, which
 * the machine sees as a PCI device's memory (ivshmem-plain). Blocks of instructions are counted when they begin.
 *
 *   -plugin instructions.so,counter=FILE
 */
#include <fcntl.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>

/* Of the interface for plugins, version 1, what is used here. */
struct qemu_plugin_tb;
size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *tb);
void qemu_plugin_register_vcpu_tb_trans_cb(uint64_t id, void (*translated)(uint64_t id, struct qemu_plugin_tb *tb));
void qemu_plugin_register_vcpu_tb_exec_inline(struct qemu_plugin_tb *tb, int operation, void *place, uint64_t number);
enum { ADD_U64 = 0 };

__attribute__((visibility("default"))) int qemu_plugin_version = 1;

static void *counter;

static void translated(uint64_t id, struct qemu_plugin_tb *tb)
{
    (void)id;
    qemu_plugin_register_vcpu_tb_exec_inline(tb, ADD_U64, counter, qemu_plugin_tb_n_insns(tb));
}

__attribute__((visibility("default"))) int qemu_plugin_install(uint64_t id, const void *info, int argc, char **argv)
{
    (void)info;
    if (argc != 1 || strncmp(argv[0], "counter=", 8) != 0)
        return 1;
    int file = open(argv[0] + 8, O_RDWR | O_CLOEXEC);
    counter = mmap(NULL, sizeof(uint64_t), PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    if (counter == MAP_FAILED)
        return 1;
    qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
    return 0;
}
