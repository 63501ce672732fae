# Sourced in dom0: what must not be left behind.

# grants GRANTER MAPPER: how many grants of domain GRANTER does domain MAPPER have mapped now, by Xen's own table?
grants() {
    xl dmesg -c >/dev/null
    xl debug-keys g
    xl dmesg -c >/run/lab/grants
    awk -v granter="$1" -v mapper="$2" '
        /grant-table for remote d/ { sub(/.*remote d/, ""); here = ($1 + 0 == granter) }
        here && /^ *(\(XEN\) *)?\[/ { sub(/^.*\][ \t]*/, ""); if ($1 + 0 == mapper) n++ }
        END { print n + 0 }' /run/lab/grants
}

# ports DOMID: how many event channels has a domain, by Xen's own table?
ports() {
    xl dmesg -c >/dev/null
    xl debug-keys e
    xl dmesg -c | awk -v domain="$1" '
        /Event channel information for domain/ { sub(/.*domain /, ""); here = ($1 + 0 == domain); next }
        here && /\[[0-9.]*\/[0-9.]*/ { n++ }
        END { print n + 0 }'
}

# After every case: only dom0 in xl's list (no zombie), nothing of other domains in the store, no grant mapped.
nothing_left() {
    local rest
    sleep 1
    rest=$(xl list | awk 'NR > 1 && $2 != 0 { print $1 "(" $2 ")" }' | tr '\n' ' ')
    [ -z "$rest" ] || fail "domains left behind: $rest"
    rest=$(xenstore-ls -f /local/domain | grep -Ev '^/local/domain/0($|/| )' | head -3 | tr '\n' ' ')
    rest="$rest$(xenstore-ls -f /local/domain/0/backend 2>/dev/null | grep -E '/backend/[a-z]+/[0-9]+/' | head -3 | tr '\n' ' ')"
    rest="$rest$(xenstore-ls -f /libxl | grep -E '^/libxl/[1-9]' | head -3 | tr '\n' ' ')"
    [ -z "$rest" ] || fail "xenstore nodes left behind: $rest"
    rest=$(grants 0 0; grep -o 'grant-table for remote d[1-9][0-9]*' /run/lab/grants | tr '\n' ' ')
    [ "$rest" = 0 ] || fail "grants left behind: $rest"
}

# Takes away what `nothing_left` has found of domains that are no more, so that the next case is not blamed for it.
forget_the_dead() {
    local dir id
    for dir in /local/domain /libxl $(xenstore-list -p /local/domain/0/backend); do
        for id in $(xenstore-list "$dir"); do
            [ "$id" = 0 ] || xl domname "$id" || xenstore-rm "$dir/$id"
        done
    done
}
