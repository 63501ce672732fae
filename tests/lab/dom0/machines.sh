# Sourced in dom0: guests, service VMs and their disks.

CONSOLES=/var/log/xen/console

# How much longer everything may take than it does on an emulated machine that has its CPUs to itself.
PATIENCE=3

# For PV domains: the emulated processor does not call its time stamp counter invariant, as every real one of today does, so that Xen would emulate
# each of their looks at the clock: a hundred of them per read of a disk, a third of all instructions.
NATIVE_TSC='tsc_mode="native"'

# wait_for SECONDS COMMAND...: until the command succeeds; fails when the time is over. A probe is slow here, so it is the clock that counts.
wait_for() {
    local end=$(($(cut -d. -f1 /proc/uptime) + $1 * PATIENCE)) trace=+x status=1
    shift
    case $- in *x*) trace=-x ;; esac
    set +x
    while [ $status != 0 ] && [ "$(cut -d. -f1 /proc/uptime)" -le $end ]; do
        if "$@" >/dev/null 2>&1; then status=0; else usleep 200000; fi
    done
    set $trace
    return $status
}

# up_or_gone NAME COMMAND...: a reason to stop waiting for a domain: the command succeeds, or there is no such domain any more.
up_or_gone() {
    local name=$1
    shift
    "$@" || ! xl domid "$name"
}

# clean_xl COMMAND ARGUMENT...: xl sometimes ends a command with 0 even if it had to tear nodes down by itself; its complaints tell.
clean_xl() {
    local status=0
    xl -vvv -T "$@" 2>/run/lab/xl.err || status=$?
    cat /run/lab/xl.err
    [ $status = 0 ] && ! grep -q 'libxl: error' /run/lab/xl.err || fail "xl $*: exit code $status, $(grep -m 1 error /run/lab/xl.err)"
}

# domid NAME
domid() {
    xl domid "$1"
}

# said NAME WORDS: has the guest printed a line that begins with these words?
said() {
    grep -q "^$2" "$CONSOLES/guest-$1.log"
}

# guest_config NAME KERNEL [DISK...]: a stock guest (kernel 6.1 or 6.12) with disks in xl's syntax, as `xl create` reads it.
# Words for its kernel's command line can be given in GUEST_ARGS, a card in xl's syntax in GUEST_VIF, its memory in GUEST_MEMORY (MiB), its virtual CPUs in GUEST_VCPUS. GUEST_KERNEL
# is booted instead of the kernel and brings what else it needs.
guest_config() {
    local name=$1 kernel=$2 disks= spec
    shift 2
    for spec; do disks="$disks${disks:+,}'$spec'"; done
    cat <<EOF
name="$name"
type="pv"
memory=${GUEST_MEMORY:-256}
vcpus=${GUEST_VCPUS:-1}
kernel="${GUEST_KERNEL:-/images/guest-$kernel/vmlinuz}"
${GUEST_KERNEL:+#}ramdisk="/images/guest-$kernel/initramfs.img"
extra="console=hvc0 quiet ${GUEST_ARGS:-}"
$NATIVE_TSC
disk=[$disks]
vif=[${GUEST_VIF:+'$GUEST_VIF'}]
on_poweroff="destroy"
on_reboot="destroy"
on_crash="destroy"
EOF
}

# guest NAME KERNEL [DISK...]: creates such a guest, and waits for its init; GUEST_PATIENCE is for slow ones (seconds).
guest() {
    guest_config "$@" >"/run/lab/$1.cfg"
    clean_xl create "/run/lab/$1.cfg"
    wait_for "${GUEST_PATIENCE:-120}" up_or_gone "$1" said "$1" "@@ ready" && said "$1" "@@ ready" || fail "guest $1 does not come up"
}

# tell NAME SECONDS COMMAND...: has the guest's init run a command, and waits for its end. Fails with what the guest said.
tell() {
    local name=$1 limit=$2
    shift 2
    begin "$name" "$@"
    ended "$name" "$limit"
}

# begin NAME COMMAND...: starts a command in a guest without waiting for it.
begin() {
    local name=$1 number
    shift
    number=$(($(cat "/run/lab/$name.asked" 2>/dev/null || echo 0) + 1))
    echo $number >"/run/lab/$name.asked"
    echo "$number $*" >"$(xenstore-read "/local/domain/$(domid "$name")/console/tty")"
}

# busy NAME: waits until the load that `begin` started is under way.
busy() {
    wait_for 60 said "$1" "@@ busy $(cat "/run/lab/$1.asked")" || fail "guest $1 is not busy: $(answer "$1")"
}

# ended NAME SECONDS: waits for the end of the command that `begin` started last.
ended() {
    local name=$1 limit=$2 number
    number=$(cat "/run/lab/$name.asked")
    wait_for "$limit" said "$name" "@@ $number " || fail "guest $name gives no answer to command $number within $((limit * PATIENCE)) s"
    said "$name" "@@ $number 0" || fail "guest $name: $(grep "^@@ $number " "$CONSOLES/guest-$name.log" | tr -d '\r' | cut -d' ' -f4-)"
}

# answer NAME: what the last command said.
answer() {
    grep "^@@ $(cat "/run/lab/$1.asked") " "$CONSOLES/guest-$1.log" | tr -d '\r' | cut -d' ' -f4-
}

# attach GUEST SPEC: a disk for a running guest; xl waits for the backend, we wait for the guest to see it.
attach() {
    clean_xl block-attach "$1" "$2"
}

# detach GUEST VDEV
detach() {
    clean_xl block-detach "$1" "$2"
}

# destroy GUEST
destroy() {
    clean_xl destroy "$1"
}

# Ends every domain except dom0: those that are not a service VM first.
end_all_domains() {
    local kind id
    for kind in guest service; do
        for id in $(xl list | awk 'NR > 1 && $2 != 0 { print $2 }'); do
            if [ -e "/run/lab/service.$(xl domname "$id")" ]; then [ $kind = service ] || continue; else [ $kind = guest ] || continue; fi
            xl destroy "$id"
        done
    done
    rm -f /run/lab/service.* /run/lab/*.asked
}
