# Sourced in dom0: cards and networks, of Windsor and of the kernel's netback in a driver domain.

. /net

# vif SERVICE NETWORK NUMBER: a card in xl's syntax, with an address of its own.
vif() {
    printf 'backend=%s,bridge=%s,mac=00:16:3e:09:00:%02x,script=vif' "$1" "$2" "$3"
}

# give_card GUEST SERVICE NETWORK NUMBER: the same for a guest that runs; there xl wants each setting as a word of its own.
give_card() {
    # shellcheck disable=SC2046
    clean_xl network-attach "$1" $(vif "$2" "$3" "$4" | tr , ' ')
}

# two_cards SERVICE NETWORK: guests g1 (6.1) and g2 (6.12) with a card each, 10.9.0.1 and 10.9.0.2.
two_cards() {
    local number kernel
    for number in 1 2; do
        kernel=6.1
        [ $number = 1 ] || kernel=6.12
        GUEST_MEMORY=192 GUEST_VIF=$(vif "$1" "$2" $number) guest g$number $kernel
        tell g$number 60 driver xen-netfront
        tell g$number 60 card eth0 $number
        tell g$number 60 listen
    done
}

# both_ways GUEST NUMBER [OPTIONS...]: 8 MiB of TCP (or as iperf3's options say) from a guest to 10.9.0.NUMBER, and back, Mbit/s: "THERE/BACK".
both_ways() {
    local guest=$1 number=$2 there
    shift 2
    [ $# -gt 0 ] || set -- -n 8M
    tell "$guest" 120 speed "$number" "$@" >&2
    there=$(answer "$guest")
    tell "$guest" 120 speed "$number" "$@" -R >&2
    echo "$there/$(answer "$guest")"
}

# between_guests [OPTIONS...]: TCP both ways and UDP from g1 to g2.
between_guests() {
    local tcp
    tcp=$(both_ways g1 2 "$@")
    tell g1 60 datagrams 2 -t 1 -b 4M -l 1400 >&2
    echo "TCP $tcp Mbit/s, UDP $(answer g1 | sed 's/ / of /')"
}

# between_dom0 GUEST NUMBER: TCP both ways between a guest and dom0, which has 10.9.0.NUMBER.
between_dom0() {
    local server speeds
    iperf3 -s >/run/lab/iperf3.server 2>&1 &
    server=$!
    usleep 500000
    speeds=$(both_ways "$1" "$2")
    kill $server
    echo "$speeds Mbit/s"
}

# costs SERVICE NAME WORD: how fast TCP is between g1 and its service VM, and what it costs, in turns: a second each way, three times (with the
# long counts seven), for one round alone says little here. Lines of /run/lab/network.NAME. The interrupts of the backend are those with the word.
costs() {
    local ways='sends receives sends receives sends receives' way options speed before after called more
    [ ! -e /lab/long ] || ways="$ways $ways sends receives"
    tell "$1" 60 listen
    : >"/run/lab/network.$2"
    tell g1 60 seen eth0
    before=$(answer g1) called=$(calls "$1" g1)
    for way in $ways; do
        options=
        [ $way = sends ] || options=-R
        tell "$1" 60 probe "$3"
        # shellcheck disable=SC2086
        tell g1 120 speed 254 -t 1 $options
        speed=$(answer g1)
        tell "$1" 60 probed "$3"
        tell g1 60 seen eth0
        after=$(answer g1) more=$(calls "$1" g1)
        echo "$way $speed $before $after $(answer "$1") $((more - called))" >>"/run/lab/network.$2"
        before=$after called=$more
    done
}

# calls SERVICE GUEST: system calls of a service VM's network so far on account of the guest's card, as the VM publishes them; 0 where it does not.
calls() {
    local root token number
    root=/local/domain/$(domid "$1")/data/windsor token=$(cut -d' ' -f1 /proc/uptime)
    xenstore-exists "$root" || { echo 0; return; }
    xenstore-write "$root/sample" "$token"
    wait_for 30 is_sampled "$root" "$token" || fail "$1 publishes no fresh numbers"
    number=$(domid "$2")
    xenstore-read "$root/vif/$((number % 16))/vif-$number-0" | sed -n 's/.*"system_calls":\([0-9]*\).*/\1/p'
}

is_sampled() {
    [ "$(xenstore-read "$1/sampled")" = "$2" ]
}

# middle: the median of an odd number of lines.
middle() {
    sort -n | awk '{ line[NR] = $1 } END { print line[(NR + 1) / 2] }'
}

# ratio NAME: of what `costs` found: the medians of each way, and that of the rounds' ratios.
ratio() {
    local file=/run/lab/network.$1 ratios
    ratios=$(awk '$1 == "sends" { there = $2 } $1 == "receives" { printf "%.2f\n", there / ($2 + 0.001) }' "$file")
    echo "guest to backend $(awk '$1 == "sends" { print $2 }' "$file" | middle) Mbit/s," \
        "back $(awk '$1 == "receives" { print $2 }' "$file" | middle)," \
        "ratio $(echo "$ratios" | middle) ($(echo "$ratios" | sort -n | tr '\n' ' ' | sed 's/ $//'))"
}

# costs_table: everything that `costs` found in this boot, all rounds of a way together. A packet is what the guest's card counts, in either
# direction; a grant operation is a page copied, mapped or unmapped; a call to the hypervisor may carry many. System calls are those of
# Windsor's network.
costs_table() {
    local name
    printf '%-10s %-9s %8s %12s %12s %12s %12s %12s %12s\n' backend "guest" Mbit/s KiB/packet grants/packet calls/packet events-in/p events-out/p syscalls/p
    for name in kernel windsor; do
        [ ! -e "/run/lab/network.$name" ] || awk -v name="$name" '{
            rounds[$1]++
            speed[$1] += $2
            packets[$1] += $8 + $9 - $3 - $4
            bytes[$1] += $10 + $11 - $5 - $6
            grants[$1] += $13 + $15 + $17
            calls[$1] += $14 + $16 + $18
            in_[$1] += $19
            out[$1] += $12 - $7
            called[$1] += $20
        } END {
            for (n = split("sends receives", ways, " "); i++ < n;) {
                way = ways[i]
                per = packets[way] + 0.001
                printf "%-10s %-9s %8.0f %12.1f %12.2f %12.2f %12.3f %12.3f %12s\n", name, way, speed[way] / rounds[way], bytes[way] / per / 1024,
                    grants[way] / per, calls[way] / per, in_[way] / per, out[way] / per,
                    name == "windsor" ? sprintf("%.2f", called[way] / per) : "-"
            }
        }' "/run/lab/network.$name"
    done
}

# card_is_gone SERVICE GUEST: of the guest (both by domid) nothing of a card is left in the store or in Xen's tables.
card_is_gone() {
    no_grants "$2" "$1" && ! xenstore-exists "/local/domain/$1/backend/vif/$2" && ! xenstore-exists "/libxl/$2/device/vif" &&
        ! xenstore-ls "/local/domain/$1/data" | grep -q "vif-$2-"
}

# under_traffic: g1 sends to g2 as fast as it can. A server that was left in the middle of something serves nobody else.
under_traffic() {
    tell g2 60 silence
    tell g2 60 listen
    tell g1 60 traffic eth0 2
}

# came_and_went SERVICE NETWORK: cards are detached and attached again while their guests send, and while they are sent to; a guest is
# destroyed while it sends. Whoever else is there goes on, and what the service VM holds is the same as before.
came_and_went() {
    local id one two before leaver number
    id=$(domid "$1") one=$(domid g1) two=$(domid g2)
    before="$(ports "$id") $(xenstore-ls -f "/local/domain/$id" | wc -l)"
    [ "$(grants "$one" "$id")" -gt 0 ] || fail "no ring of a connected card is mapped"
    for leaver in g1 g2; do
        number=${leaver#g}
        under_traffic
        clean_xl network-detach $leaver 0
        tell g1 60 silence
        tell $leaver 60 no_card eth0
        wait_for 30 card_is_gone "$id" "$(domid $leaver)" || fail "something is left of $leaver's card after a detach under traffic"
        tell g$((3 - number)) 60 reach 254
        give_card $leaver "$1" "$2" "$number"
        tell $leaver 60 card eth0 "$number"
        tell $leaver 60 reach $((3 - number))
    done
    [ "$(ports "$id") $(xenstore-ls -f "/local/domain/$id" | wc -l)" = "$before" ] ||
        fail "ports and nodes of the service VM: $before, then $(ports "$id") $(xenstore-ls -f "/local/domain/$id" | wc -l)"
    under_traffic
    destroy g1
    wait_for 30 card_is_gone "$id" "$one" || fail "something is left of the card of a guest that was destroyed under traffic"
    tell g2 60 reach 254
    clean_xl network-detach g2 0
    wait_for 30 card_is_gone "$id" "$two" || fail "something is left of g2's card"
}
