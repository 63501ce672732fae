//! Large frames, fragments, several queues, much of everything; and cards that go in the middle of it.

use std::io::{Read, Write};

use crate::rig::eventually;
use crate::space::{Pair, arrived, available};

/// A stream of bytes that says where it is wrong.
struct Pattern(fastrand::Rng);

impl Pattern {
    fn new() -> Pattern {
        Pattern(fastrand::Rng::with_seed(9))
    }

    fn fill(&mut self, buffer: &mut [u8]) {
        self.0.fill(buffer);
    }
}

/// Sends so many MiB from one guest to the other; all of it arrives as it was.
fn file(pair: &Pair, mib: usize) {
    let listener = pair.b.listener("10.9.0.2:7000");
    let mut from = pair.a.connect("10.9.0.2:7000");
    let sender = std::thread::spawn(move || {
        let (mut pattern, mut buffer) = (Pattern::new(), vec![0; 1 << 20]);
        for _ in 0..mib {
            pattern.fill(&mut buffer);
            from.write_all(&buffer).unwrap();
        }
    });
    let (mut to, _) = listener.accept().unwrap();
    let (mut pattern, mut should, mut is) = (Pattern::new(), vec![0; 1 << 20], vec![0; 1 << 20]);
    for at in 0..mib {
        pattern.fill(&mut should);
        to.read_exact(&mut is).unwrap();
        assert!(should == is, "MiB {at} is another one");
    }
    assert_eq!(to.read(&mut is).unwrap(), 0);
    sender.join().unwrap();
}

#[test]
fn a_file_arrives_as_it_was() {
    if !available("netns-file") {
        return;
    }
    let mib = if std::env::var_os("WINDSOR_LONG").is_some() { 1024 } else { 100 };
    let mut pair = Pair::new("", &[], &[]);
    file(&pair, mib);
    pair.other_guests(&["--without", "sg,csum4"], &["--without", "gso4"]);
    file(&pair, mib / 10);
}

#[test]
fn large_frames_and_fragments_pass() {
    if !available("netns-frames") {
        return;
    }
    let pair = Pair::new("mtu = 9000", &[], &[]);
    for space in [&pair.a, &pair.b] {
        eventually("the card has the network's MTU", || {
            (space.must("cat /sys/class/net/eth0/mtu").trim() == "9000").then_some(())
        });
    }
    // As large as it goes in one frame, as fragments, and as fragments of fragments' size.
    pair.a.pings("10.9.0.2", "-M do -s 8972");
    pair.b.pings("fd09::1", "-M do -s 8952");
    pair.a.pings("10.9.0.2", "-s 60000");
    pair.b.pings("fd09::1", "-s 60000");
    let _server = pair.b.iperf3();
    for to in ["10.9.0.2", "fd09::2"] {
        let end = pair.a.sends(to, "-n 8M");
        assert!(arrived(&end) >= 4 << 20, "{to}: {end}");
    }
}

#[test]
fn several_queues_carry_several_streams() {
    if !available("netns-queues") {
        return;
    }
    let pair = Pair::new("", &["--card-queues", "4"], &["--card-queues", "2"]);
    let queues = || -> Vec<u64> {
        let status = pair.rig.status();
        let cards = status["vms"][0]["cards"].as_array().unwrap().iter();
        cards.map(|card| card["queues"].as_u64().unwrap()).collect()
    };
    eventually("all queues are there", || (queues() == [4, 2]).then_some(()));
    let _server = pair.b.iperf3();
    for options in ["-P 8 -n 16M", "-P 8 -n 16M -R"] {
        let end = pair.a.sends("10.9.0.2", options);
        assert!(arrived(&end) >= 4 << 20, "{options}: {end}");
    }
}

#[test]
fn a_card_goes_in_the_middle_of_traffic_and_comes_back() {
    if !available("netns-detach") {
        return;
    }
    let mut pair = Pair::new("", &[], &[]);
    let server = pair.b.iperf3();
    let load = pair.a.start("iperf3 -c 10.9.0.2 -t 60");
    eventually("the load is under way", || {
        let sent = pair.a.must("cat /sys/class/net/eth0/statistics/tx_bytes");
        (sent.trim().parse::<u64>().unwrap() > 4 << 20).then_some(())
    });
    let mac = pair.b.must("cat /sys/class/net/eth0/address").trim().to_owned();
    pair.rig.run("detach", &["b", "vif0"]).fine();
    assert_eq!(pair.rig.status()["vms"][0]["cards"].as_array().unwrap().len(), 1);
    drop((load, server));
    // Under another address it would be found only when the other guest has forgotten the old one.
    assert_eq!(pair.rig.run("attach", &["b", "acme:lan", "--mac", &mac]).fine(), "vif0");
    pair.a.pings("10.9.0.2", "");
    // Whoever goes without a word is missed by nobody else.
    pair.rig.take("b").signal(rustix::process::Signal::KILL);
    eventually("one card is left", || {
        (pair.rig.status()["vms"][0]["cards"].as_array().unwrap().len() == 1).then_some(())
    });
}
