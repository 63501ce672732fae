# Sourced in dom0: Windsor's service VMs and what they say of their devices.

# service NAME [SETTING...]: creates a service VM from its image and waits until it calls itself ready. A SETTING is a line of xl's configuration.
service() {
    local name=$1 config=/images/service-$1/$1.cfg
    shift
    touch "/run/lab/service.$name"
    ! grep -q '^type *= *"pv"' "$config" || set -- "$NATIVE_TSC" "$@"
    clean_xl create "$config" "$@"
    wait_for 120 up_or_gone "$name" is_ready "$name" && is_ready "$name" ||
        fail "service VM $name does not become ready: $(tail -n 3 "$CONSOLES/guest-$name.log" | tr '\r\n' '  ')"
}

# vm COMMAND ARGUMENT...: the operator's command, with directories of the lab's.
vm() {
    windsor vm --state-dir /run/lab/state --config-dir /run/lab/etc "$@"
}

# driver_domain: the peer's, with the kernel's own backends.
driver_domain() {
    cat >/run/lab/driver.cfg <<EOF
name="driver"
type="pv"
memory=256
kernel="/images/driver/vmlinuz"
ramdisk="/images/driver/initramfs.img"
extra="console=hvc0 quiet"
$NATIVE_TSC
driver_domain=1
on_poweroff="destroy"
on_reboot="destroy"
on_crash="destroy"
EOF
    touch /run/lab/service.driver
    xl create /run/lab/driver.cfg
    wait_for 120 xenstore-read "/local/domain/$(domid driver)/data/ready" || fail "the driver domain does not come up"
}

is_ready() {
    [ "$(xenstore-read "/local/domain/$(domid "$1")/data/windsor/ready")" = 1 ]
}

# volume SERVICE VOLUME [VDEV]: the disk in xl's syntax.
volume() {
    echo "format=raw,vdev=${3:-xvda},access=${4:-rw},backend=$1,target=$2"
}

devid() {
    case $1 in xvda) echo 51712 ;; xvdb) echo 51728 ;; *) return 1 ;; esac
}

# device SERVICE GUEST VDEV KEY: what the service VM says of a device: phase, reason or path.
device() {
    local guest dev
    guest=$(domid "$2") dev=$(devid "$3")
    xenstore-read "/local/domain/$(domid "$1")/data/windsor/dev/$(((dev / 16 + dev / 256 + guest) % 16))/vbd-$guest-$dev" |
        sed -n 's/.*"'"$4"'":"\([^"]*\)".*/\1/p'
}

# key PATH DEFAULT: a node's value, or what its reader takes for granted when it is not there.
key() {
    xenstore-read "$1" 2>/dev/null || echo "$2"
}

# negotiated SERVICE GUEST VDEV: what both sides have written of a connected disk, "chosen/offered", and what came of it. The segments of a
# request are nowhere in the store: the guest's kernel says what it goes by.
negotiated() {
    local front back path dev
    dev=$(devid "$3")
    front=/local/domain/$(domid "$2")/device/vbd/$dev
    back=$(xenstore-read "$front/backend")
    tell "$2" 60 widths "$3" >&2
    path=$(device "$1" "$2" "$3" path)
    echo "order $(key "$front/ring-page-order" 0)/$(key "$back/max-ring-page-order" 0)," \
        "queues $(key "$front/multi-queue-num-queues" 1)/$(key "$back/multi-queue-max-queues" 1)," \
        "persistent $(key "$front/feature-persistent" 0)/$(key "$back/feature-persistent" 0)," \
        "segments $(answer "$2" | cut -d' ' -f1)/$(key "$back/feature-max-indirect-segments" 0)," \
        "flush $(key "$back/feature-flush-cache" 0), discard $(key "$back/feature-discard" 0)," \
        "$(key "$front/protocol" none), kernel $(answer "$2" | cut -d' ' -f2), $path"
}

# has_phase SERVICE GUEST VDEV PHASE
has_phase() {
    [ "$(device "$1" "$2" "$3" phase)" = "$4" ]
}

# no_grants GUEST SERVICE: the service VM has no grant of the guest mapped. Both by domid, so that dead guests can be asked for.
no_grants() {
    [ "$(grants "$1" "$2")" = 0 ]
}

# The whole round of a service VM with two guests at once, one of each kernel, on a volume each: all checks; detach and attach again, with the
# data still there; forced destroy under I/O. Leaves the data paths in the note.
two_guests() {
    local vm=$1 id one two first second
    service "$vm"
    id=$(domid "$vm")
    guest g1 6.1 "$(volume "$vm" db)"
    guest g2 6.12 "$(volume "$vm" log)"
    one=$(domid g1) two=$(domid g2)
    begin g1 everything xvda
    tell g2 300 everything xvda
    ended g1 300
    first=$(negotiated "$vm" g1 xvda)
    second=$(negotiated "$vm" g2 xvda)
    note "$first; $second"
    [ "$(grants "$one" "$id")" -gt 0 ] || echo "no grant is mapped while both ends are connected"
    tell g1 180 pattern_write xvda
    detach g1 xvda
    tell g1 60 gone xvda
    wait_for 30 no_grants "$one" "$id" || fail "$(grants "$one" "$id") grants of the guest are still mapped after the detach"
    attach g1 "$(volume "$vm" db)"
    tell g1 180 pattern_read xvda
    begin g2 load xvda
    busy g2
    destroy g2
    wait_for 30 no_grants "$two" "$id" || fail "$(grants "$two" "$id") grants of a dead guest are still mapped"
    tell g1 180 random xvda
    destroy g1
}

# kill -9 of a worker under fio: its disk is called failed, no grant of its guest stays mapped, the other guest does not notice, the
# disk can be detached although its guest waits for it, and the volume is served again. The service VM has to be one with the agent.
worker_killed() {
    local vm=$1 id one path reason
    service "$vm"
    guest g1 6.1 "$(volume "$vm" db)"
    guest g2 6.12 "$(volume "$vm" log)"
    id=$(domid "$vm") one=$(domid g1)
    path=$(device "$vm" g1 xvda path)
    tell g2 180 pattern_write xvda
    begin g1 load xvda
    busy g1
    tell "$vm" 60 kill_worker 1
    wait_for 45 has_phase "$vm" g1 xvda failed || fail "the disk of a killed worker is in phase $(device "$vm" g1 xvda phase)"
    reason=$(device "$vm" g1 xvda reason)
    [ -n "$reason" ] || fail "a failed disk without a reason"
    wait_for 30 no_grants "$one" "$id" || fail "$(grants "$one" "$id") grants of the guest are still mapped after the fence"
    tell g2 180 pattern_read xvda
    tell g2 180 random xvda
    detach g1 xvda
    destroy g1
    guest g3 6.1 "$(volume "$vm" db)"
    tell g3 180 random xvda
    note "$path: $reason"
}
