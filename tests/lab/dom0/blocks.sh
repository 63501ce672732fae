# Sourced in dom0: what reads of a disk cost, with Windsor and with others, in a machine that counts the instructions of its one CPU: those of
# guest, backend, dom0 and Xen together.

. /counts

COUNTER=/sys/bus/pci/devices/0000:00:12.0

# instructions: so far.
instructions() {
    printf '%d' "$(devmem "$(sed -n '3s/ .*//p' $COUNTER/resource)" 64)"
}

# spent DISK BLOCK DEPTH REQUESTS: the instructions that so many random reads of g1 take, and how many it does a second. The answer is looked
# for seldom, for looking costs instructions, and an idle machine has none.
spent() {
    local before
    before=$(instructions)
    begin g1 reads "$@"
    until said g1 "@@ $(cat /run/lab/g1.asked) "; do sleep 3; done
    ended g1 1
    echo "$(($(instructions) - before)) $(answer g1)"
}

# read_costs BACKEND DISK BLOCK DEPTH FEW MANY: a line of /run/lab/blocks: what one read costs is the difference between many and few, for fio
# itself has to start and to end.
read_costs() {
    local few many
    few=$(spent "$2" "$3" "$4" "$5")
    many=$(spent "$2" "$3" "$4" "$6")
    echo "$1 $3 $4 $(((${many% *} - ${few% *}) / ($6 - $5))) ${many#* }" >>/run/lab/blocks
}

# backend DOMAIN COMMAND...: of driver/counts, where a backend lives, dom0 among others; prints what it says.
backend() {
    local domain=$1
    shift
    if [ "$domain" = dom0 ]; then
        detail=/run/lab/counted
        : >$detail
        "$@"
        cat $detail
    else
        tell "$domain" 60 "$@" >&2
        answer "$domain"
    fi
}

# operations BACKEND DISK DOMAIN WORD THREAD REQUESTS: a line of /run/lab/operations for so many reads of 4 KiB at depth 32, which are not among
# those that costs are counted of: what the domain's kernel asks of grants, interrupts of the backend (with this word in their names) and of the guest, system calls of threads
# of this name.
operations() {
    local before after counted
    backend "$3" probe "$4"
    backend "$3" probe_calls "$5"
    tell g1 60 events blkif
    before=$(answer g1)
    tell g1 120 reads "$2" 4k 32 "$6"
    counted="$(backend "$3" probed "$4") $(backend "$3" probed_calls)"
    tell g1 60 events blkif
    after=$(answer g1)
    echo "$1 $6 $counted $((after - before))" >>/run/lab/operations
}

# operations_table: for each read. A grant operation is a page copied, mapped or unmapped; a call to the hypervisor may carry many.
operations_table() {
    printf '%-12s %12s %12s %12s %12s %12s\n' backend grants/read calls/read events-in/r events-out/r syscalls/r
    awk '{ printf "%-12s %12.3f %12.3f %12.3f %12.3f %12.3f\n", $1, ($3 + $5 + $7) / $2, ($4 + $6 + $8) / $2, $9 / $2, $11 / $2, $10 / $2 }' /run/lab/operations
}

# blocks_table: medians of all rounds, and beside them how many times those of the kernel's backend in a driver domain.
blocks_table() {
    printf '%-10s %6s %6s %10s %8s %14s %8s\n' backend block depth reads/s ratio instr./read ratio
    sort -k2,3 -k1,1 -k4,4n /run/lab/blocks | awk '{ print $1, $2, $3, $4 }' >/run/lab/blocks.costs
    sort -k2,3 -k1,1 -k5,5n /run/lab/blocks | awk '{ print $1, $2, $3, $5 }' >/run/lab/blocks.rates
    awk '
        { key = $1 " " $2 " " $3; n[FILENAME, key]++; value[FILENAME, key, n[FILENAME, key]] = $4; if (FILENAME ~ /rates/ && n[FILENAME, key] == 1) keys[++count] = key }
        function middle(file, key) { return value[file, key, int((n[file, key] + 1) / 2)] }
        END {
            for (i = 1; i <= count; i++) {
                split(keys[i], part, " ")
                peer = "driver " part[2] " " part[3]
                rate = middle("/run/lab/blocks.rates", keys[i]); cost = middle("/run/lab/blocks.costs", keys[i])
                printf "%-10s %6s %6s %10d %8.2f %14d %8.2f\n", part[1], part[2], part[3], rate, rate / (middle("/run/lab/blocks.rates", peer) + 0.001),
                    cost, cost / (middle("/run/lab/blocks.costs", peer) + 0.001)
            }
        }' /run/lab/blocks.costs /run/lab/blocks.rates
}

# read_rates BACKEND DISK BLOCK DEPTH REQUESTS: a line of /run/lab/rates: how many random reads of g1 there are in a second.
read_rates() {
    tell g1 120 reads "$2" "$3" "$4" "$5"
    echo "$1 $3 $4 $(answer g1)" >>/run/lab/rates
}

# rates_table: the median of all rounds with the least and the most, and how many times that of the kernel's backend in a driver domain.
rates_table() {
    printf '%-10s %6s %6s %8s %8s %8s %8s\n' backend block depth reads/s least most ratio
    sort -k2,3 -k1,1 -k4,4n /run/lab/rates | awk '
        { key = $1 " " $2 " " $3; rate[key, ++n[key]] = $4; if (n[key] == 1) keys[++count] = key }
        function middle(key) { return rate[key, int((n[key] + 1) / 2)] }
        END {
            for (i = 1; i <= count; i++) {
                split(keys[i], part, " ")
                printf "%-10s %6s %6s %8d %8d %8d %8.2f\n", part[1], part[2], part[3], middle(keys[i]), rate[keys[i], 1], rate[keys[i], n[keys[i]]],
                    middle(keys[i]) / (middle("driver " part[2] " " part[3]) + 0.001)
            }
        }'
}
