//! A network that leads somewhere: a TAP in a bridge, and what happens when the bridge goes.

use crate::rig::{Rig, eventually};
use crate::space::{Space, arrived, available, must};

/// A service VM in a namespace of its own, with `up0` that leads to `down0` (10.9.0.9) in another.
fn served_in(rig: &mut Rig, config: &str) -> (Space, Space) {
    let (service, outside) = (Space::new(), Space::new());
    must(&format!("ip -n {} link add up0 type veth peer name down0 netns {}", service.name, outside.name));
    // What dom0's end of a service VM's own card is called.
    outside.ip("link set down0 address fe:ff:ff:ff:ff:ff");
    outside.address("down0", 9);
    let config = rig.config("acme", &format!("[vm]\nname = \"acme\"\n{config}"));
    rig.start_in(&service.name, "acme", "serve", &["--config", config.to_str().unwrap()]);
    (service, outside)
}

#[test]
fn a_bridge_is_made_and_joins_guests_and_the_world() {
    if !available("netns-bridge") {
        return;
    }
    let mut rig = Rig::new();
    let config = "[[bridge]]\nname = \"br0\"\nports = [\"up0\"]\n\
                  [[network]]\nname = \"lan\"\nuplink = \"bridge:br0\"\n";
    let (service, outside) = served_in(&mut rig, config);
    let guest = Space::new();
    rig.start_in(&guest.name, "a", "guest", &["--name", "a", "--tap", "eth0"]);
    assert_eq!(rig.run("attach", &["a", "acme:lan", "--ip", "10.9.0.1", "--ip", "fd09::1"]).fine(), "vif0");
    guest.address("eth0", 1);
    guest.pings("10.9.0.9", "-s 4000");
    outside.pings("fd09::1", "");
    let _server = outside.iperf3();
    for (to, options) in
        [("10.9.0.9", "-n 16M"), ("10.9.0.9", "-n 16M -R"), ("fd09::9", "-n 8M"), ("fd09::9", "-n 8M -R")]
    {
        let end = guest.sends(to, options);
        assert!(arrived(&end) >= 4 << 20, "{to} {options}: {end}");
    }
    // An address that is not the guest's own does not leave it.
    guest.ip("addr add 10.9.0.77/24 dev eth0");
    assert_ne!(guest.call("ping -q -c 2 -W 1 -I 10.9.0.77 10.9.0.9").code, Some(0));

    // The bridge goes, with the TAP's place in it; the log, status and the network say so, and it is made anew.
    service.ip("link del br0");
    eventually("the bridge is there again", || (service.call("ip link show br0").code == Some(0)).then_some(()));
    eventually("the guest reaches the world again", || {
        (guest.call("ping -q -c 1 -W 1 10.9.0.9").code == Some(0)).then_some(())
    });
}

#[test]
fn guests_reach_each_other_while_the_uplink_is_gone() {
    if !available("netns-uplink") {
        return;
    }
    let mut rig = Rig::new();
    let (service, outside) = served_in(&mut rig, "[[network]]\nname = \"lan\"\nuplink = \"tap:wire\"\n");
    let (a, b) = (Space::new(), Space::new());
    let networks = |rig: &Rig| rig.status()["vms"][0]["networks"][0].clone();
    eventually("the missing TAP is told of", || {
        networks(&rig)["error"].as_str().unwrap_or_default().contains("there is no TAP wire").then_some(())
    });
    let make = |service: &Space, queues: &str| {
        service.ip(&format!("tuntap add dev wire mode tap vnet_hdr {queues}"));
        service.ip("link add br7 type bridge");
        for port in ["wire", "up0"] {
            service.ip(&format!("link set {port} master br7"));
            service.ip(&format!("link set {port} up"));
        }
        service.ip("link set br7 up");
    };
    make(&service, "");
    for (name, space, number) in [("a", &a, 1), ("b", &b, 2)] {
        rig.start_in(&space.name, name, "guest", &["--name", name, "--tap", "eth0"]);
        eventually("attached", || (rig.run("attach", &[name, "acme:lan"]).code == Some(0)).then_some(()));
        space.address("eth0", number);
    }
    a.pings("10.9.0.2", "");
    b.pings("10.9.0.9", "");
    service.ip("link del br7");
    service.ip("link del wire");
    eventually("the lost TAP is told of", || {
        (!networks(&rig)["error"].as_str().unwrap_or_default().is_empty()).then_some(())
    });
    a.pings("10.9.0.2", "-s 9000");
    make(&service, "multi_queue");
    eventually("the world is back", || (b.call("ping -q -c 1 -W 1 10.9.0.9").code == Some(0)).then_some(()));
    assert!(rig.daemon("acme").log().contains("the uplink is there again"));
    outside.pings("fd09::1", "");
}
