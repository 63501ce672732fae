//! Whatever either guest leaves to the other side, everything arrives.

use crate::space::{Pair, Space, arrived, available};

/// Everything that a card can do without.
const ALL: [&str; 5] = ["sg", "gso4", "gso6", "csum4", "csum6"];

/// A choice of them, as arguments of a guest.
fn without(choice: usize) -> Option<String> {
    let names: Vec<&str> =
        ALL.iter().enumerate().filter(|(bit, _)| choice & 1 << bit != 0).map(|(_, name)| *name).collect();
    (!names.is_empty()).then(|| names.join(","))
}

/// TCP with both versions of IP both ways, and UDP.
fn everything_passes(pair: &Pair, about: &str) {
    let _server = pair.b.iperf3();
    for (to, options) in
        [("10.9.0.2", "-n 8M"), ("10.9.0.2", "-n 8M -R"), ("fd09::2", "-n 8M"), ("fd09::2", "-n 8M -R")]
    {
        let end = pair.a.sends(to, options);
        assert!(arrived(&end) >= 4 << 20, "{about}: {to} {options}: {end}");
    }
    for (to, options) in [("10.9.0.2", ""), ("10.9.0.2", "-R"), ("fd09::2", "")] {
        let end = pair.a.sends(to, &format!("-u -b 40M -n 2M -l 1400 {options}"));
        let (lost, all) = (end["sum"]["lost_packets"].as_u64().unwrap(), end["sum"]["packets"].as_u64().unwrap());
        assert!(all > 1000 && lost < all / 2, "{about}: {to} {options}: {lost} of {all} datagrams are lost");
    }
    pair.a.pings("10.9.0.2", "-s 20000");
    pair.b.pings("fd09::1", "-s 20000");
}

/// Sums that a guest must find right, because it has said that it does not leave them out: none is wrong on the wire.
fn no_bad_checksums(space: &Space, during: impl FnOnce()) {
    let path = format!("/run/{}.pcap", space.name);
    let capture = space.start(&format!("tcpdump -U -Z root -i eth0 -Q in -s 0 -w {path}"));
    crate::rig::eventually("tcpdump captures", || std::fs::metadata(&path).ok().filter(|file| file.len() > 0));
    during();
    capture.stop();
    let seen = space.must(&format!("tcpdump -n -vv -r {path}"));
    std::fs::remove_file(&path).unwrap();
    let right = seen.matches("(correct)").count() + seen.matches("udp sum ok").count();
    assert!(right > 100, "{right} sums were looked at");
    let wrong: Vec<&str> =
        seen.lines().filter(|line| line.contains("incorrect") || line.contains("bad udp cksum")).take(3).collect();
    assert!(wrong.is_empty(), "{wrong:?}");
}

#[test]
fn all_combinations_of_offloads_pass_everything() {
    if !available("netns-offloads") {
        return;
    }
    let mut pair = Pair::new("", &[], &[]);
    everything_passes(&pair, "with all");
    let long = std::env::var_os("WINDSOR_LONG").is_some();
    // Each alone, and none at all; or every one there is, on one side and then on the other.
    let choices: Vec<usize> = if long { (1..32).collect() } else { vec![0b00001, 0b00110, 0b11000, 0b11111] };
    for (round, choice) in choices.into_iter().enumerate() {
        let arguments = without(choice).unwrap();
        let with = ["--without", arguments.as_str()];
        let sides: &[(bool, bool)] =
            if long { &[(true, false), (false, true), (true, true)] } else { &[(true, false), (false, true)] };
        for (a, b) in sides.iter().skip(if long { 0 } else { round % 2 }).take(if long { 3 } else { 1 }) {
            pair.other_guests(if *a { &with } else { &[] }, if *b { &with } else { &[] });
            everything_passes(&pair, &format!("without {arguments}, a: {a}, b: {b}"));
        }
    }
}

#[test]
fn a_guest_that_takes_no_blank_checksums_is_given_none_and_none_that_is_wrong() {
    if !available("netns-checksums") {
        return;
    }
    let pair = Pair::new("", &[], &["--without", "csum4,csum6,gso4,gso6"]);
    let _server = pair.b.iperf3();
    no_bad_checksums(&pair.b, || {
        for to in ["10.9.0.2", "fd09::2"] {
            pair.a.sends(to, "-n 2M");
            pair.a.sends(to, "-u -b 20M -n 500K -l 1400");
        }
    });
}
