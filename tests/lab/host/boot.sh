# Sourced by `run`: one boot of Xen under QEMU, and what it says of its cases.

# MiB. What dom0 does not take is for guests and service VMs.
MACHINE_MEMORY=4096
DOM0_MEMORY=1280

# Two NVMe SSDs behind the machine's IOMMU, 0000:00:10.0 and 0000:00:11.0, MiB each and blank at each boot. dom0 has no driver for them loaded.
SSD_SIZE=128

# Seconds of silence on the serial line after which a machine is stuck: dom0 says every ten seconds that it is alive.
SILENCE=120

# Seconds between two pokes at an emulated processor that may have slept through its timer.
NUDGE=0.2

# How often one group is booted, at most.
TRIES=3

# boot GROUP CPUS CASE...: boots, runs the cases, prints a line for each. Logs go to $LAB/logs/GROUP. A machine that stops in the middle, which
# emulated ones rarely do, is said to have, keeps its logs in $LAB/logs/GROUP-stuck-N, and the cases that are left have another boot.
boot() {
    local group=$1 cpus=$2 log=$LAB/logs/$1 case left again table
    shift 2
    rm -rf "$log"-stuck-*
    run_machine "$group" "$cpus" "$log" "$@"
    for ((again = 1; again < TRIES; again++)); do
        mapfile -t left < <(without_result "$log" "$@")
        [ ${#left[@]} -gt 0 ] || break
        set -- "${left[@]}"
        say "boot $group is stuck in $1: $(last_words "$log"); once more, logs in $log-stuck-$again"
        mv "$log" "$log-stuck-$again"
        run_machine "$group" "$cpus" "$log" "$@"
    done
    mapfile -t left < <(without_result "$log" "$@")
    for case in "${left[@]}"; do
        result "$case" FAIL 0 "no result from boot $group: $(last_words "$log")"
    done
    for table in networks boots blocks; do
        [ ! -e "$log/$table.txt" ] || sed 's/^/     /' "$log/$table.txt"
    done
}

# without_result LOG CASE...
without_result() {
    local log=$1 case
    shift
    for case; do
        results "$log" | grep -q "^$case " || echo "$case"
    done
}

# run_machine GROUP CPUS LOG CASE...: one machine, until it has ended, its time is over, or it is stuck.
run_machine() {
    local group=$1 cpus=$2 log=$3 limit=90 case started qemu reader nudge nudger size=0 grown devices=()
    shift 3
    rm -rf "$log" "$LAB/build/boot"
    mkdir -p "$log" "$LAB/build/boot/lab/cases"
    cp "$HERE"/dom0/*.sh "$LAB/build/boot/lab/"
    for case; do
        cp "$HERE/cases/$case" "$LAB/build/boot/lab/cases/"
        echo "$case $(seconds "$case")" >>"$LAB/build/boot/lab/cases/order"
        limit=$((limit + $(seconds "$case")))
    done
    [ -z "${WINDSOR_LONG:-}" ] || touch "$LAB/build/boot/lab/long"
    pack "$LAB/build/boot" "$LAB/build/boot.cpio"
    cp "$(vmlinuz_of dom0)" "$LAB/build/vmlinuz"
    # shellcheck disable=SC2046
    cat "$LAB"/build/{dom0,guest-6.1,guest-6.12,driver}.cpio "$LAB/build/boot.cpio" $(parts_of "$@" | sed "s#.*#$LAB/build/&.cpio#") >"$LAB/build/dom0.img"

    say "boot $group: $cpus CPU(s), at most $limit s, log $log/serial.log"
    mkfifo "$log"/{monitor,serial}.{in,out}
    cat "$log/serial.out" >"$log/serial.log" &
    reader=$!
    exec {nudge}<>"$log/serial.in"
    started=$SECONDS grown=$SECONDS
    SHOWN=0
    devices_of "$group"
    # no-intremap: QEMU's AMD IOMMU remaps an interrupt of a level-triggered pin to an edge-triggered one, and Xen, which finds that out at its end,
    # switches the pin to edge and back each time (54,443 writes to the I/O APIC in `windsor-ssd`, 939 without remapping). What the SSD says
    # between the two is nobody's, and its disk hangs.
    # Relative paths: QEMU and multiboot give a meaning to blanks and commas in them.
    (cd "$LAB/build" && exec qemu-system-x86_64 -machine q35 -accel tcg,thread=multi -cpu qemu64,+svm,+npt -smp "$cpus" -m $MACHINE_MEMORY \
        -display none -monitor "pipe:../logs/$group/monitor" -net none -no-reboot -serial "pipe:../logs/$group/serial" "${devices[@]}" -kernel xen \
        -append "console=com1 com1=115200,8n1,0x3f8,4 conswitch=ax iommu=1,no-intremap dom0_mem=${DOM0_MEMORY}M,max:${DOM0_MEMORY}M dom0_max_vcpus=1 conring_size=1m loglvl=warning guest_loglvl=warning" \
        -initrd "vmlinuz console=hvc0 quiet rdinit=/init,dom0.img" </dev/null >"$log/qemu.log" 2>&1) &
    qemu=$!
    QEMU_PID=$qemu
    # QEMU's emulated VMRUN and VMEXIT change a CPU's word of pending interrupts without a lock, so that its timer's now and then gets lost, and
    # with PVH guests Xen then sleeps for ever. Any other interrupt makes QEMU look again: a character on the serial line, which goes to Xen
    # (conswitch) and means nothing to it.
    while kill -0 $qemu 2>/dev/null && echo >&"$nudge"; do sleep "$NUDGE"; done &
    nudger=$!
    while kill -0 $qemu 2>/dev/null && [ $((SECONDS - started)) -lt "$limit" ]; do
        sleep 1
        report "$log"
        grep -aq '^@@ lab end' "$log/serial.log" 2>/dev/null && sleep 3 && break
        [ "$(stat -c %s "$log/serial.log" 2>/dev/null || echo 0)" = "$size" ] || {
            size=$(stat -c %s "$log/serial.log")
            grown=$SECONDS
        }
        [ $((SECONDS - grown)) -le $SILENCE ] || { registers "$log" && break; }
    done
    kill -KILL $qemu $nudger 2>/dev/null
    wait $qemu $reader $nudger 2>/dev/null
    exec {nudge}>&-
    QEMU_PID=
    report "$log"
    take_files "$log"
    rm "$log"/{monitor,serial}.{in,out}
    say "boot $group: $((SECONDS - started)) s"
}

# devices_of GROUP: what its machine has beside what every one has, for QEMU, in $devices. For those only who need it: an IOMMU makes everything
# slower, and so does counting.
devices_of() {
    local ssd
    case $1 in
    ssd)
        devices=(-device amd-iommu)
        for ssd in 0 1 2; do
            rm -f "$LAB/build/ssd$ssd"
            truncate -s ${SSD_SIZE}M "$LAB/build/ssd$ssd"
            devices+=(-drive "file=ssd$ssd,if=none,id=ssd$ssd,format=raw,cache=unsafe" -device "nvme,serial=ssd$ssd,drive=ssd$ssd,addr=1$ssd")
        done
        ;;
    bench)
        cc -std=gnu11 -Wall -Wextra -Werror -O2 -shared -fPIC -o "$LAB/build/instructions.so" "$HERE/host/instructions.c" ||
            die "cannot build the counter of instructions"
        truncate -s 0 "$LAB/build/counter"
        truncate -s 1M "$LAB/build/counter"
        devices=(-plugin ./instructions.so,counter=counter -object memory-backend-file,id=counter,size=1M,mem-path=counter,share=on
            -device ivshmem-plain,memdev=counter,addr=12)
        ;;
    esac
}

# registers LOG: what the CPUs of a silent machine are doing, twice, and which interrupts wait for them.
registers() {
    local log=$1
    timeout 15 cat "$log/monitor.out" >"$log/registers.txt" &
    for _ in 1 2; do
        printf '%s\n' "info registers -a" "info lapic" "info pic" >"$log/monitor.in"
        sleep 5
    done
    wait $!
    say "silent for $SILENCE s; $log/registers.txt: $(tr -d '\r' <"$log/registers.txt" | grep -o '^RIP=[0-9a-f]*' | tr '\n' ' ')"
}

# What dom0 has said of finished cases so far: lines "CASE VERDICT SECONDS DETAIL".
results() {
    tr -d '\r' <"$1/serial.log" 2>/dev/null | sed -n 's/^.*@@ case \([^ ]* \(PASS\|FAIL\|SKIP\) .*\)$/\1/p'
}

# report LOG: prints the results that have come since the last call.
report() {
    local case verdict seconds detail
    while read -r case verdict seconds detail; do
        result "$case" "$verdict" "$seconds" "$detail"
        SHOWN=$((SHOWN + 1))
    done < <(results "$1" | tail -n +$((SHOWN + 1)))
}

# take_files LOG: what dom0 has exported, out of the serial line, where Xen may have put a line of its own between.
take_files() {
    local name
    for name in $(tr -d '\r' <"$1/serial.log" 2>/dev/null | sed -n 's/^@@ file \([a-z.]*\) end$/\1/p'); do
        tr -d '\r' <"$1/serial.log" | sed -n "/^@@ file $name begin\$/,/^@@ file $name end\$/p" | grep -x '[A-Za-z0-9+/=]*' |
            base64 -d | gzip -dc >"$1/$name" || say "$name did not come whole out of the boot"
    done
}

last_words() {
    local end
    end=$(tr -d '\r' <"$1/serial.log" 2>/dev/null | sed -n 's/^@@ lab end //p')
    [ -n "$end" ] || end=$(tail -n 1 "$1/serial.log" 2>/dev/null | tr -d '\r' | cut -c1-150)
    echo "${end:-$(tail -n 1 "$1/qemu.log")} ($1/serial.log)"
}
