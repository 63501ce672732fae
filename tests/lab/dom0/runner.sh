# Sourced by dom0's init: runs the cases in /lab/cases/order one after the other and reports each in one line on the console.
#
# A case is a file of shell commands that runs with `set -e` in its own process, with the functions of machines.sh and verify.sh. It ends with 0
# (passed), 77 (skipped) or anything else (failed); the last line that it wrote with `note` is shown beside its name.

PARTS='for part in machines services upgrades networks blocks verify runner; do . /lab/$part.sh; done;'

now() {
    cut -d' ' -f1 /proc/uptime
}

# note WORDS...: the detail shown beside the case's name. Of a case that fails otherwise than by `fail` the last line of its log is shown.
note() {
    echo "$*" >/run/lab/note
    echo "note: $*"
}

fail() {
    note "$*"
    touch /run/lab/failed
    exit 1
}

skip() {
    note "$*"
    exit 77
}

# The state of things when a case has failed, before its domains are ended.
snapshot() {
    local log
    echo "--- xl list"
    xl list
    echo "--- xenstore"
    xenstore-ls -f /local/domain | grep -E "/(name|vbd|data|error)"
    echo "--- xl dmesg"
    xl dmesg -c | tail -n 60
    for log in /var/log/xen/qemu-dm-*.log; do [ ! -e "$log" ] || { echo "--- $log" && cat "$log"; }; done
    echo "--- dom0 dmesg"
    dmesg -c | tail -n 30
}

# What helps to understand a case, on the serial line, which becomes its log: the consoles, and of a failed one the trace.
dump() {
    local file
    echo "@@ log $1 begin"
    [ "$2" = PASS ] || cat /run/lab/case.log
    for file in /var/log/xen/console/*.log; do
        [ -e "$file" ] || continue
        echo "--- console of $(basename "$file" .log)"
        tr -d '\r' <"$file"
    done
    echo "@@ log $1 end"
}

# What a case has left in /run/lab/export goes to the directory of the boot's logs, by way of the serial line.
export_files() {
    local file name
    for file in /run/lab/export/*; do
        [ -e "$file" ] || continue
        name=$(basename "$file")
        echo "@@ file $name begin"
        gzip -c "$file" | base64
        echo "@@ file $name end"
        rm "$file"
    done
}

# watch NAME SECONDS: says that dom0 is alive, and ends the boot of a case that cannot even be killed. What holds it goes to the log.
watch() {
    local end=$(($(cut -d. -f1 /proc/uptime) + $2))
    while sleep 10; do
        echo "@@ alive $(now)"
        [ "$(cut -d. -f1 /proc/uptime)" -gt $end ] || continue
        echo w >/proc/sysrq-trigger
        dmesg | tail -n 100
        echo "@@ lab end $1 cannot be killed"
        poweroff -f
    done
}

# run_case NAME SECONDS: in a process of its own, with an end.
run_case() {
    local name=$1 limit=$2 start rc verdict watch
    rm -f /run/lab/note /run/lab/failed /var/log/xen/console/*.log
    start=$(now)
    echo "@@ case $name START"
    # Snapshot, clean-up and a minute more.
    watch "$name" $((limit + 210)) &
    watch=$!
    timeout -s KILL "$limit" sh -c "$PARTS set -ex; . /lab/cases/$name" </dev/null >/run/lab/case.log 2>&1
    rc=$?
    case $rc in
    0 | 77) ;;
    137) echo "no end after $limit s (last: $(cat /run/lab/note 2>/dev/null))" >/run/lab/note ;;
    *) [ -e /run/lab/failed ] || rm -f /run/lab/note ;;
    esac
    [ -e /run/lab/note ] || tail -n 1 /run/lab/case.log >/run/lab/note
    case $rc in 0 | 77) ;; *) timeout -s KILL 60 sh -c "$PARTS snapshot" </dev/null >>/run/lab/case.log 2>&1 ;; esac
    # What a case leaves behind is a failure of its own, but the first cause is the one to show.
    mv /run/lab/note /run/lab/cause
    timeout -s KILL 90 sh -c "$PARTS end_all_domains; nothing_left" </dev/null >>/run/lab/case.log 2>&1 || {
        [ $rc != 0 ] || cp /run/lab/note /run/lab/cause 2>/dev/null || echo "the clean-up after the case does not end" >/run/lab/cause
        [ $rc != 0 ] || rc=1
        timeout -s KILL 60 sh -c "$PARTS forget_the_dead" </dev/null >>/run/lab/case.log 2>&1
    }
    case $rc in
    0) verdict=PASS ;;
    77) verdict=SKIP ;;
    *) verdict=FAIL ;;
    esac
    # What follows is long, and must not be cut in two by a line of another process.
    kill $watch
    wait $watch
    dump "$name" $verdict
    export_files
    echo "@@ case $name $verdict $(awk -v a="$start" -v b="$(now)" 'BEGIN { printf "%.1f", b - a }') $(cat /run/lab/cause)"
}

run_cases() {
    local name limit
    dmesg -c >/dev/null
    xl dmesg -c >/dev/null
    while read -r name limit; do
        run_case "$name" "$limit"
    done </lab/cases/order
}
