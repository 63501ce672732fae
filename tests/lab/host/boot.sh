# Sourced by `run`: one boot of Xen under QEMU, and what it says of its cases.

# MiB. What dom0 does not take is for guests and service VMs.
MACHINE_MEMORY=4096
DOM0_MEMORY=1280

# boot GROUP CPUS SECONDS CASE...: boots, runs the cases, prints a line for each. Logs go to $LAB/logs/GROUP.
boot() {
    local group=$1 cpus=$2 limit=$3 log=$LAB/logs/$1 case started qemu
    shift 3
    rm -rf "$log" "$LAB/build/boot"
    mkdir -p "$log" "$LAB/build/boot/lab/cases"
    cp "$HERE"/dom0/*.sh "$LAB/build/boot/lab/"
    for case; do
        cp "$HERE/cases/$case" "$LAB/build/boot/lab/cases/"
        echo "$case $(seconds "$case")" >>"$LAB/build/boot/lab/cases/order"
    done
    [ -z "${WINDSOR_LONG:-}" ] || touch "$LAB/build/boot/lab/long"
    pack "$LAB/build/boot" "$LAB/build/boot.cpio"
    cp "$(vmlinuz_of dom0)" "$LAB/build/vmlinuz"
    # shellcheck disable=SC2046
    cat "$LAB"/build/{dom0,guest-6.1,guest-6.12,driver}.cpio "$LAB/build/boot.cpio" $(parts_of "$@" | sed "s#.*#$LAB/build/&.cpio#") >"$LAB/build/dom0.img"

    say "boot $group: $cpus CPU(s), at most $limit s, log $log/serial.log"
    started=$SECONDS
    SHOWN=0
    # Relative paths: QEMU and multiboot give a meaning to blanks and commas in them.
    (cd "$LAB/build" && exec qemu-system-x86_64 -machine q35 -accel tcg,thread=multi -cpu qemu64,+svm,+npt -smp "$cpus" -m $MACHINE_MEMORY \
        -display none -monitor none -net none -no-reboot -serial "file:../logs/$group/serial.log" -kernel xen \
        -append "console=com1 com1=115200,8n1,0x3f8,4 dom0_mem=${DOM0_MEMORY}M,max:${DOM0_MEMORY}M dom0_max_vcpus=1 conring_size=1m loglvl=warning guest_loglvl=warning" \
        -initrd "vmlinuz console=hvc0 quiet rdinit=/init,dom0.img" </dev/null >"$log/qemu.log" 2>&1) &
    qemu=$!
    QEMU_PID=$qemu
    while kill -0 $qemu 2>/dev/null && [ $((SECONDS - started)) -lt "$limit" ]; do
        sleep 1
        report "$log"
        grep -aq '^@@ lab end' "$log/serial.log" 2>/dev/null && sleep 3 && break
    done
    kill -KILL $qemu 2>/dev/null
    wait $qemu 2>/dev/null
    QEMU_PID=
    report "$log"
    take_files "$log"
    [ ! -e "$log/networks.txt" ] || sed 's/^/     /' "$log/networks.txt"
    for case; do
        results "$log" | grep -q "^$case " && continue
        result "$case" FAIL "$((SECONDS - started))" "no result from boot $group: $(last_words "$log")"
    done
    say "boot $group: $((SECONDS - started)) s"
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
