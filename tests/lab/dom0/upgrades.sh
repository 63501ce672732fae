# Sourced in dom0: a service VM NAME gets the image /images/service-NAME-next, which offers no persistent grants, and its own one back, under
# guests that go on. The disk that is looked at is xvda.

# image NAME: which one the VM has.
image() {
    basename "$(readlink "/run/lab/state/$1/images/current")"
}

# persistent GUEST: 1 if persistent grants are offered to the guest, which always wants them, and 0 if not.
persistent() {
    local front
    front=/local/domain/$(domid "$1")/device/vbd/51712
    [ "$(key "$front/feature-persistent" 0)" = 1 ] || fail "$1 does not want persistent grants"
    key "$(xenstore-read "$front/backend")/feature-persistent" 0
}

# watch_twice: for as long as the case lasts, who runs twice. What is paused, dying or suspended does not run.
watch_twice() {
    set +x
    while sleep 1 && [ -e /proc/$$ ]; do
        xl list | awk 'NR > 1 && $5 !~ /[psd]/ && n[$1]++ { print $1 }' >>/run/lab/twice
    done
}

# busily GUEST SECONDS: the guest writes and verifies for so long, and it is looked whether anybody runs twice.
busily() {
    rm -f /run/lab/twice
    watch_twice 2>/dev/null &
    begin "$1" verified xvda "$2"
    busy "$1"
}

# exchanged NAME GUEST OFFERED COMMAND...: `windsor vm COMMAND` gives the VM another image, on which persistent grants are offered (1) or not (0).
# Leaves in $took how many seconds it takes.
exchanged() {
    local name=$1 guest=$2 offered=$3 image before start
    shift 3
    image=$(image "$name") before=$(domid "$name")
    start=$(now)
    vm "$@"
    took=$(awk -v a="$start" -v b="$(now)" 'BEGIN { printf "%.0f", b - a }')
    [ "$(image "$name")" != "$image" ] && [ "$(domid "$name")" != "$before" ] || fail "$* leaves the VM as it was"
    [ "$(persistent "$guest")" = "$offered" ] || fail "persistent grants after $*: $(persistent "$guest")"
    [ ! -e "/run/lab/state/$name/saved" ] || fail "$* leaves saved guests"
    vm status "$name"
}

# there NAME GUEST
there() {
    [ "$(persistent "$2")" = 1 ] || fail "persistent grants before the upgrade: $(persistent "$2")"
    first=$(image "$1")
    vm upgrade "$1" --image "/images/service-$1-next" --dry-run
    exchanged "$1" "$2" 0 upgrade "$1" --image "/images/service-$1-next"
}

# and_back NAME GUEST: then the guest's load ends well, and it said so once.
and_back() {
    exchanged "$1" "$2" 1 rollback "$1"
    [ "$(image "$1")" = "$first" ] || fail "image $(image "$1") after the rollback, and $first before"
    ended "$2" 600
    [ "$(grep -c "^@@ $(cat "/run/lab/$2.asked") " "$CONSOLES/guest-$2.log")" = 1 ] || fail "$2 has come to its end more than once"
    [ ! -s /run/lab/twice ] || fail "ran twice at once: $(sort -u /run/lab/twice | tr '\n' ' ')"
}
