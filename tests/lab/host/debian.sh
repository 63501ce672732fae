# Sourced by `run`: a driver domain as one is made of Debian: its packages with systemd, the kernel's backends, and Xen's own `xl devd`. This is no
# part of the other images because it takes minutes; once made it is kept.

# debian_tree ROOT: kernel, initramfs and the file system of the rest, for dom0.
debian_tree() {
    local out=$LAB/debian made
    made=$(cat "$HERE"/debian/* "$HERE"/driver/counts "$HERE"/guest/net "$HERE/host/debian.sh" | sha256sum)
    if [ "$(cat "$out/made" 2>/dev/null)" != "$made" ]; then
        command -v mmdebstrap >/dev/null || { echo "mmdebstrap is missing: apt-get install mmdebstrap" && return 1; }
        say "making a driver domain of Debian in $out"
        rm -rf "$out"
        mkdir -p "$out"
        OUT=$out mmdebstrap --variant=minbase --format=null --aptopt='Acquire::Languages "none"' \
            --include=systemd-sysv,linux-image-6.12-cloud-amd64,initramfs-tools,xen-utils-4.17,xenstore-utils,kmod \
            --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/locale/*' \
            --essential-hook='mkdir -p "$1/etc/initramfs-tools/scripts/init-top"' \
            --essential-hook="cp '$HERE/debian/begun' \"\$1/etc/initramfs-tools/scripts/init-top/\"" \
            --customize-hook="'$HERE/debian/customize' \"\$1\"" bookworm || return
        echo "$made" >"$out/made"
    fi
    mkdir -p "$1/images/debian"
    cp "$out"/{vmlinuz,initrd.img,root.img.gz,size} "$1/images/debian/"
}
