# Sourced by `run`: what the lab's machines are made of, taken from Debian and unpacked, never installed.

# Package of the newest kernel that a Debian meta package stands for.
kernel_package() {
    apt-cache depends --important "$1" | awk '/Depends: linux-image-/ { print $2; exit }'
}

# The packages whose files end up in dom0 or in a guest. Libraries that every Debian has (libc, zlib, ...) come from this machine, by ldd.
tool_packages() {
    echo xen-hypervisor-4.17-amd64 xen-utils-4.17 xen-utils-common xenstore-utils busybox-static
    echo libxencall1 libxendevicemodel1 libxenevtchn1 libxenforeignmemory1 libxengnttab1 libxenhypfs1 libxenmisc4.17 \
        libxenstore4 libxentoolcore1 libxentoollog1 libyajl2 libncurses6 libtinfo6
    echo grub-xen-host
    echo qemu-system-xen libspice-server1 libglib2.0-0 libpixman-1-0 libfdt1 libjpeg62-turbo libusb-1.0-0 libudev1
    echo e2fsprogs libext2fs2 libcom-err2 libss2 libblkid1 libuuid1 fio libaio1 libnuma1 iperf3 libiperf0
}

# Sets dom0, old and new to the kernels' packages, and downloads everything into $LAB/debs.
fetch_packages() {
    dom0=$(kernel_package linux-image-amd64)
    old=$(kernel_package linux-image-cloud-amd64)
    new=$(kernel_package linux-image-6.12-cloud-amd64)
    [ -n "$dom0" ] && [ -n "$old" ] && [ -n "$new" ] || return
    rm -rf "$LAB/debs" "$LAB/root" "$LAB/kernels"
    mkdir -p "$LAB"/debs "$LAB"/root "$LAB"/kernels/{dom0,6.1,6.12}
    # shellcheck disable=SC2046
    (cd "$LAB/debs" && apt-get download -qq -o APT::Sandbox::User="$(id -un)" "$dom0" "$old" "$new" $(tool_packages))
}

# Fetch into $LAB/debs and unpack into $LAB/root (tools) and $LAB/kernels/{dom0,6.1,6.12}. A finished download of the same packages is kept as
# it is.
download() {
    [ "$(cat "$LAB/downloaded" 2>/dev/null)" = "$(tool_packages)" ] && return
    say "downloading Xen, kernels and tools into $LAB/debs"
    local dom0 old new part
    # Lists that are missing, or older than what the mirror still has, are renewed once.
    fetch_packages 2>/dev/null || { apt-get update -qq && fetch_packages; } ||
        die "apt-get download failed: is this Debian 12, and are its package lists new ('apt-get update' as root)?"
    for part in "$LAB"/debs/*.deb; do
        case $part in
        */"${dom0}"_*) dpkg -x "$part" "$LAB/kernels/dom0" ;;
        */"${old}"_*) dpkg -x "$part" "$LAB/kernels/6.1" ;;
        */"${new}"_*) dpkg -x "$part" "$LAB/kernels/6.12" ;;
        *) dpkg -x "$part" "$LAB/root" ;;
        esac
    done
    tool_packages >"$LAB/downloaded"
}

# The directory that holds the modules of a downloaded kernel: dom0, 6.1 or 6.12.
modules_of() {
    echo "$LAB/kernels/$1"/lib/modules/*
}

# The kernel image of a downloaded kernel.
vmlinuz_of() {
    echo "$LAB/kernels/$1"/boot/vmlinuz-*
}
