# Sourced by `run`: the initramfs of dom0 and of the stock guests, as plain cpio archives that the kernel reads one after the other.

BB_LIBS=usr/lib/x86_64-linux-gnu:lib/x86_64-linux-gnu

# pack TREE FILE: one uncompressed archive (unpacking a compressed one costs emulated seconds).
pack() {
    (cd "$1" && find . -print0 | LC_ALL=C sort -z | cpio --quiet -0 -o -H newc -R 0:0) >"$2.new" && mv "$2.new" "$2" ||
        die "cannot write $2: is the disk full?"
}

# skeleton TREE: directories, busybox and its applets, /dev/console.
skeleton() {
    rm -rf "$1"
    mkdir -p "$1"/{bin,dev,etc,lib,lib64,mnt,modules,proc,root,run,sbin,sys,tmp,usr/lib,usr/bin,usr/sbin,var/lib,var/log}
    ln -s ../run "$1/var/run"
    cp "$LAB/root/bin/busybox" "$1/bin/busybox"
    local name
    for name in $("$1/bin/busybox" --list); do
        [ "$name" = busybox ] || ln -s busybox "$1/bin/$name"
    done
}

# with_libraries TREE PATH...: copies programs out of the unpacked packages, and every library they are linked to.
with_libraries() {
    local tree=$1 path lib dirs
    shift
    dirs="$LAB/stubs:$LAB/root/${BB_LIBS//:/:$LAB/root/}"
    for path in "$@"; do
        mkdir -p "$tree/$(dirname "$path")"
        rm -f "$tree/$path"
        cp -L "$LAB/root/$path" "$tree/$path"
        LD_LIBRARY_PATH=$dirs ldd "$LAB/root/$path" >"$LAB/ldd" 2>/dev/null || die "ldd $path failed"
        grep -q 'not found' "$LAB/ldd" && die "$path: $(grep 'not found' "$LAB/ldd" | tr '\n' ' ')"
        for lib in $(awk '$2 == "=>" { print $3 }' "$LAB/ldd"); do
            cp -Ln "$lib" "$tree/lib/"
        done
    done
    cp -Ln /lib64/ld-linux-x86-64.so.2 "$tree/lib64/"
}

# with_modules TREE KERNEL MODULE...: unpacked modules, flat, and their order of loading in /modules/order.
with_modules() {
    local tree=$1 kernel=$2 name file
    shift 2
    for name in "$@"; do
        file=$(find "$(modules_of "$kernel")" -name "$name.ko*" | head -1)
        [ -n "$file" ] || die "kernel $kernel has no module $name"
        case $file in
        *.xz) xz -dc "$file" >"$tree/modules/$name.ko" ;;
        *) cp "$file" "$tree/modules/$name.ko" ;;
        esac
        echo "$name" >>"$tree/modules/order"
    done
}

# with_modprobe TREE KERNEL MODULE...: modules for `modprobe`, which need no others.
with_modprobe() {
    local tree=$1 kernel=$2 dir name
    dir=$tree/lib/modules/$(basename "$(modules_of "$kernel")")
    shift 2
    mkdir -p "$dir"
    for name in "$@"; do
        find "$(modules_of "$kernel")" -name "$name.ko" -exec cp {} "$dir/" \;
        [ -e "$dir/$name.ko" ] || die "kernel $kernel has no module $name"
        echo "$name.ko:" >>"$dir/modules.dep"
    done
}

# Debian's fio is linked to the clients of Ceph, Gluster, RDMA and NBD, iperf3 to OpenSSL and SCTP, QEMU to SPICE. The lab's machines use none of
# them: in place of their 100 MB they get empty libraries with the same names, versions and symbols. (One whose symbols have no versions must not be
# emptied beside another like it, such as GLib.)
STUBBED="usr/bin/fio usr/lib/x86_64-linux-gnu/libiperf.so.0 usr/libexec/xen-qemu-system-i386"

stub_libraries() {
    local file
    rm -rf "$LAB/stubs"
    mkdir -p "$LAB/stubs"
    as -o "$LAB/stubs/empty.o" </dev/null
    for file in $STUBBED; do stub_libraries_of "$LAB/root/$file"; done
    echo "$STUBBED" >"$LAB/stubs/done"
}

# stub_libraries_of FILE: those that a program or library wants, but for what every Debian has.
stub_libraries_of() {
    local file=$1 so version
    # Lines "SYMBOL VERSION" of everything it wants, and "LIBRARY VERSION" of who should have it.
    nm -D --undefined-only "$file" | awk '{ sub(/@@?/, " ", $NF); print $NF }' >"$LAB/stubs/symbols"
    readelf -W --version-info "$file" |
        awk '/File: / { for (i = 1; i <= NF; i++) if ($i == "File:") so = $(i + 1) } / Name: / { for (i = 1; i <= NF; i++) if ($i == "Name:") print so, $(i + 1) }' \
            >"$LAB/stubs/versions"
    for so in $(readelf -dW "$file" | sed -n 's/.*(NEEDED).*\[\(.*\)\]/\1/p'); do
        case $so in libc.* | libm.* | libz.* | libaio.* | libnuma.* | libxen* | libglib-* | libusb-* | libpixman-* | libfdt.* | libgcc_s.* | ld-*) continue ;; esac
        : >"$LAB/stubs/map"
        : >"$LAB/stubs/args"
        for version in $(awk -v so="$so" '$1 == so { print $2 }' "$LAB/stubs/versions"); do
            awk -v v="$version" '$2 == v { printf "--defsym=%s=0\n", $1 }' "$LAB/stubs/symbols" >>"$LAB/stubs/args"
            awk -v v="$version" 'BEGIN { printf "%s {", v } $2 == v { printf " %s;", $1 } END { print " };" }' "$LAB/stubs/symbols" >>"$LAB/stubs/map"
        done
        # Libraries without versions: every symbol without one will do, in each of them.
        [ -s "$LAB/stubs/map" ] || awk 'NF == 1 { printf "--defsym=%s=0\n", $1 }' "$LAB/stubs/symbols" >"$LAB/stubs/args"
        # shellcheck disable=SC2046
        ld -shared -soname "$so" $([ -s "$LAB/stubs/map" ] && echo "--version-script=$LAB/stubs/map") \
            -o "$LAB/stubs/$so" "@$LAB/stubs/args" "$LAB/stubs/empty.o" || die "cannot make an empty $so"
    done
}

# Guests: a stock Debian kernel, its own xen-blkfront and xen-netfront, busybox, e2fsprogs, fio and iperf3. $1: 6.1 or 6.12.
build_guest() {
    local kernel=$1 tree=$LAB/build/guest-$1 out=$LAB/build/images-$1/images/guest-$1
    skeleton "$tree"
    with_libraries "$tree" sbin/mkfs.ext4 sbin/fsck.ext4 usr/bin/fio usr/bin/iperf3
    with_modules "$tree" "$kernel" xen-blkfront xen-netfront
    cp "$HERE/guest/init" "$HERE/guest/checks" "$HERE/guest/net" "$tree/"
    mkdir -p "$out"
    pack "$tree" "$out/initramfs.img"
    cp "$(vmlinuz_of "$kernel")" "$out/vmlinuz"
    pack "$LAB/build/images-$kernel" "$LAB/build/guest-$kernel.cpio"
}

# dom0 without the cases: toolstack, console and store daemons, modules.
build_dom0() {
    local tree=$LAB/build/dom0 name
    skeleton "$tree"
    with_libraries "$tree" usr/lib/xen-4.17/bin/{xl,xenstored,xen-init-dom0,xenconsoled,xenconsole,libxl-save-helper} \
        usr/bin/xenstore-{read,write,ls,rm,list,exists,watch,chmod} usr/bin/iperf3
    # libxl cancels threads, which loads this one only when it happens.
    cp -L /usr/lib/x86_64-linux-gnu/libgcc_s.so.1 "$tree/lib/"
    with_modules "$tree" dom0 xen-privcmd xenfs xen-evtchn xen-gntdev xen-gntalloc xen-blkback xen-netback xen-netfront brd loop \
        crc16 crc32c_generic mbcache jbd2 ext4
    with_modprobe "$tree" dom0 xen-pciback
    mkdir -p "$tree/etc/xen/scripts" "$tree/var/lib/xen"
    cp "$HERE/dom0/block" "$HERE/dom0/vif" "$tree/etc/xen/scripts/"
    cp "$HERE/dom0/init" "$tree/init"
    cp "$HERE/guest/net" "$HERE/driver/counts" "$tree/"
    cc -std=gnu11 -Wall -Wextra -Werror -O2 -shared -fPIC -o "$tree/lib/recorder.so" "$HERE/dom0/recorder.c" ||
        die "cannot build the recorder"
    for name in passwd group; do echo "root:x:0:0:root:/root:/bin/sh" >"$tree/etc/$name"; done
    : >"$tree/etc/xen/xl.conf"
    pack "$tree" "$LAB/build/dom0.cpio"
    zcat "$LAB"/root/boot/xen-4.17-amd64.gz >"$LAB/build/xen"
}

# The peer's driver domain: kernel 6.1 with its own xen-blkback and xen-netback, the store's tools, iperf3 and a shell.
build_driver() {
    local tree=$LAB/build/driver out=$LAB/build/images-driver/images/driver
    skeleton "$tree"
    with_libraries "$tree" usr/bin/xenstore-{read,write,list,exists,rm,watch} usr/bin/iperf3
    with_modules "$tree" 6.1 xen-privcmd xenfs xen-blkback brd llc stp bridge xen-netback
    cp "$HERE/driver/init" "$HERE/driver/counts" "$HERE/guest/net" "$tree/"
    mkdir -p "$out"
    pack "$tree" "$out/initramfs.img"
    cp "$(vmlinuz_of 6.1)" "$out/vmlinuz"
    pack "$LAB/build/images-driver" "$LAB/build/driver.cpio"
}

# The command under test.
windsor() {
    if [ -n "${WINDSOR:-}" ]; then
        "$WINDSOR" "$@"
    else
        (cd "$WORKSPACE" && cargo run --release --quiet -- "$@")
    fi
}

# A test executable of a crate, for dom0: NAME is CRATE:TEST, as in `cargo test -p CRATE --test TEST`. An emulated machine is slow enough
# without code that is not optimized.
build_test() {
    local name=$1 root=$LAB/build/images-test-$1 file
    rm -rf "$root"
    mkdir -p "$root/tests"
    (cd "$WORKSPACE" && cargo test --release --quiet --package "${name%%:*}" --test "${name#*:}" --no-run --message-format=json) \
        >"$LAB/build/test-$name.json" 2>"$LAB/build/test-$name.log" || return 1
    file=$(sed -n 's/.*"executable":"\([^"]*\)".*/\1/p' "$LAB/build/test-$name.json" | tail -n 1)
    strip -o "$root/tests/$name" "$file" 2>>"$LAB/build/test-$name.log" && pack "$root" "$LAB/build/test-$name.cpio"
}

# elf_kernel BZIMAGE: the kernel inside, which GRUB's loader for Xen does not find when it is packed with zstd. The offsets are those of the
# header of Linux's boot protocol; the last four bytes are the size of what is packed.
elf_kernel() {
    local sectors offset length
    sectors=$(od -An -tu1 -j497 -N1 "$1")
    offset=$(od -An -tu4 -j584 -N4 "$1")
    length=$(od -An -tu4 -j588 -N4 "$1")
    head -c $(((sectors + 1) * 512 + offset + length - 4)) "$1" | tail -c $((length - 4)) | zstd -dc
}

# The Debian package, and unpacked, with a kernel for service VMs beside it, and the tutorial's commands.
deb_tree() {
    local root=$1 modules version name file
    modules=$(modules_of 6.12) version=$(basename $(modules_of 6.12))
    mkdir -p "$root/tests" "$root/boot" "$root/lib/modules/$version"
    WINDSOR=$2 "$WORKSPACE/packaging/deb" "$LAB/build/deb" || return
    cp "$LAB"/build/deb/windsor_*_amd64.deb "$root/images/windsor.deb"
    dpkg -x "$root/images/windsor.deb" "$root" || return
    cp "$(vmlinuz_of 6.12)" "$root/boot/vmlinuz-$version"
    cp $modules/modules.builtin "$root/lib/modules/$version/"
    for name in xen-evtchn xen-gntdev xen-gntalloc xen-blkfront xen-pcifront nvme nvme-core tun; do
        for file in $(find $modules -name "$name.ko*"); do cp "$file" "$root/lib/modules/$version/"; done
    done
    awk '/^```sh$/ { on = 1; next } /^```$/ { on = 0 } on' "$WORKSPACE/docs/tutorial.md" >"$root/tests/tutorial.sh"
    [ -s "$root/tests/tutorial.sh" ]
}

# qdisk_tree TREE: the QEMU that libxl starts for a PV guest. It has a keyboard that nobody uses; its map comes with the machine's own QEMU.
qdisk_tree() {
    mkdir -p "$1/lib" "$1/lib64" "$1/usr/share/qemu/keymaps"
    cp /usr/share/qemu/keymaps/en-us "$1/usr/share/qemu/keymaps/" && with_libraries "$1" usr/libexec/xen-qemu-system-i386
}

# What a case wants in dom0: NAME is grub (PV GRUB and a kernel that it can load), debian (a driver domain), qdisk, windsor (the command itself) or
# deb (its Debian package).
build_tool() {
    local root=$LAB/build/images-tool-$1 file=${WINDSOR:-}
    rm -rf "$root"
    mkdir -p "$root"/{bin,images}
    if [ "$1" = grub ]; then
        cp "$LAB/root/usr/lib/grub-xen/grub-x86_64-xen.bin" "$root/images/"
        elf_kernel "$(vmlinuz_of 6.12)" 2>"$LAB/build/tool-$1.log" | xz -3 --check=crc32 >"$root/images/vmlinux.xz" && pack "$root" "$LAB/build/tool-$1.cpio"
        return
    fi
    if [ "$1" = debian ] || [ "$1" = qdisk ]; then
        "$1_tree" "$root" >"$LAB/build/tool-$1.log" 2>&1 && pack "$root" "$LAB/build/tool-$1.cpio"
        return
    fi
    if [ -z "$file" ]; then
        (cd "$WORKSPACE" && cargo build --release --quiet --message-format=json) >"$LAB/build/tool-$1.json" 2>"$LAB/build/tool-$1.log" || return 1
        file=$(sed -n 's/.*"executable":"\([^"]*\/windsor\)".*/\1/p' "$LAB/build/tool-$1.json" | tail -n 1)
    fi
    if [ "$1" = deb ]; then
        deb_tree "$root" "$file" >>"$LAB/build/tool-$1.log" 2>&1 && pack "$root" "$LAB/build/tool-$1.cpio"
        return
    fi
    strip -o "$root/bin/$1" "$file" 2>>"$LAB/build/tool-$1.log" && pack "$root" "$LAB/build/tool-$1.cpio"
}

# own_kernel: the one of unikernel/kernel, built if it is not there yet, as the downloaded ones lie.
own_kernel() {
    local built
    built=$("$WORKSPACE/unikernel/kernel/build") || return
    ln -sfn "$(realpath "$(dirname "${built%%$'\n'*}")/..")" "$LAB/kernels/own"
}

# A service VM from services/NAME.toml, by `windsor image build`.
build_service() {
    local name=$1 toml=$HERE/services/$1.toml kernel kind memory dir=/images/service-$1 root=$LAB/build/images-$1 append=
    kernel=$(sed -n 's/^# kernel: //p' "$toml")
    kind=$(sed -n 's/^# type: //p' "$toml")
    memory=$(sed -n 's/^# memory: //p' "$toml")
    grep -q '^# agent: yes' "$toml" && append=rdinit=/lab/init
    rm -rf "$root"
    [ "$kernel" != own ] || own_kernel >"$LAB/build/service-$name.log" 2>&1 || return
    windsor image build --kernel "$(vmlinuz_of "$kernel")" --modules "$(modules_of "$kernel")" --config "$toml" --out "$root$dir" \
        --type "$kind" --memory "${memory:-320}" --dom0-dir "$dir" --append "$append" >"$LAB/build/service-$name.log" 2>&1 || return 1
    if [ -n "$append" ]; then
        local tree=$LAB/build/agent
        rm -rf "$tree" && mkdir -p "$tree"/{lab,lib,lib64}
        with_libraries "$tree" usr/bin/iperf3
        cp "$LAB/root/bin/busybox" "$HERE/agent/init" "$HERE/agent/agent" "$HERE/driver/counts" "$HERE/guest/net" "$tree/lab/"
        pack "$tree" "$LAB/build/agent.cpio"
        cat "$LAB/build/agent.cpio" "$root$dir/initramfs.img" >"$root$dir/both" && mv "$root$dir/both" "$root$dir/initramfs.img"
    fi
    pack "$root" "$LAB/build/service-$name.cpio"
}
