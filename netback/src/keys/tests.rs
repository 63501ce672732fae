use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

fn looked_up<T>(keys: &[(&str, &str)], read: impl FnOnce(&mut Lookup<'_>) -> T) -> T {
    let keys: BTreeMap<_, _> = keys.iter().map(|&(key, value)| (key, value.as_bytes())).collect();
    read(&mut |key| Ok(keys.get(key).map(|value| value.to_vec())))
}

fn read(offer: &Offer, keys: &[(&str, &str)]) -> Result<Negotiated, KeyError> {
    looked_up(keys, |lookup| Negotiated::read(offer, lookup))
}

/// What Linux writes with one queue.
const LINUX: [(&str, &str); 11] = [
    ("tx-ring-ref", "8"),
    ("rx-ring-ref", "9"),
    ("event-channel-tx", "14"),
    ("event-channel-rx", "15"),
    ("request-rx-copy", "1"),
    ("feature-rx-notify", "1"),
    ("feature-sg", "1"),
    ("feature-gso-tcpv4", "1"),
    ("feature-gso-tcpv6", "1"),
    ("feature-ipv6-csum-offload", "1"),
    ("xdp-headroom", "0"),
];

fn all() -> Offer {
    Offer { control_ring: true, ..Offer::default() }
}

fn with<'a>(keys: &[(&'a str, &'a str)], more: &[(&'a str, &'a str)]) -> Vec<(&'a str, &'a str)> {
    keys.iter().chain(more).copied().collect()
}

#[test]
fn what_linux_writes_is_understood() {
    let negotiated = read(&all(), &LINUX).unwrap();
    let queue = QueueKeys { tx_ring_ref: 8, rx_ring_ref: 9, event_channel_tx: 14, event_channel_rx: Some(15) };
    assert_eq!((negotiated.queues, negotiated.control), (vec![queue], None));
    let features = negotiated.features;
    assert!(features.scatter_gather && features.gso_tcpv4 && features.gso_tcpv6 && features.rx_notify);
    assert!(features.checksum_ipv4 && features.checksum_ipv6 && !features.multicast_control);
}

#[test]
fn what_the_smallest_frontend_writes_is_enough() {
    let keys = [("tx-ring-ref", "8"), ("rx-ring-ref", "9"), ("event-channel", "3"), ("request-rx-copy", "1")];
    let negotiated = read(&all(), &keys).unwrap();
    assert_eq!(negotiated.queues[0].event_channel_rx, None);
    let expected = Features { checksum_ipv4: true, ..Features::default() };
    assert_eq!(negotiated.features, expected);
    let no_sums = with(&keys, &[("feature-no-csum-offload", "1"), ("feature-gso-tcpv4", "1")]);
    assert_eq!(read(&all(), &no_sums).unwrap().features, Features::default(), "no segments without fragments");
}

#[test]
fn several_queues_have_a_directory_each() {
    let mut keys: Vec<(String, String)> = vec![(NUM_QUEUES.into(), "3".into()), ("request-rx-copy".into(), "1".into())];
    for queue in 0..3 {
        for (at, key) in ["tx-ring-ref", "rx-ring-ref", "event-channel-tx", "event-channel-rx"].iter().enumerate() {
            keys.push((format!("queue-{queue}/{key}"), (queue * 10 + at + 1).to_string()));
        }
    }
    let keys: Vec<(&str, &str)> = keys.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
    assert_eq!(read(&all(), &keys).unwrap().queues[2].event_channel_rx, Some(24));
}

#[test]
fn t13_cve_2026_45890_numbers_that_cannot_be_are_named() {
    for (key, value, says) in [
        (NUM_QUEUES, "0", "multi-queue-num-queues = \"0\": not a number from 1 to 4"),
        (NUM_QUEUES, "5", "not a number from 1 to 4"),
        (NUM_QUEUES, "4294967297", "not a number from 1 to 4"),
        (NUM_QUEUES, "2", "there is no queue-0/tx-ring-ref"),
        ("tx-ring-ref", "-1", "not a number from 0"),
        ("rx-ring-ref", "8", "grant reference 8 for two rings"),
        ("event-channel-rx", "14", "event channel 14 for two queues"),
        ("event-channel-rx", "0", "not a number from 1"),
        ("event-channel-rx", "", "there is no event-channel-rx"),
        ("request-rx-copy", "0", "there is no request-rx-copy"),
        ("xdp-headroom", "32768", "not a number from 0 to 32767"),
        ("ctrl-ring-ref", "20", "there is no event-channel-ctrl"),
    ] {
        let keys = with(&LINUX, &[(key, value)]);
        let error = read(&all(), &keys).unwrap_err().to_string();
        assert!(error.contains(says), "{key} = {value}: {error}");
    }
    let error = read(&all(), &with(&LINUX, &[("tx-ring-ref", &"\u{1b}[2J".repeat(1000))])).unwrap_err().to_string();
    assert!(error.len() < 200 && error.is_ascii() && !error.contains('\u{1b}'), "{error}");
}

#[test]
fn what_was_not_offered_does_not_count() {
    let none = Offer {
        queues: 1,
        scatter_gather: false,
        split_event_channels: false,
        control_ring: false,
        multicast_control: false,
        xdp_headroom: false,
    };
    let more = [
        ("event-channel", "16"),
        (MULTICAST_CONTROL, "1"),
        ("xdp-headroom", "256"),
        ("ctrl-ring-ref", "20"),
        ("event-channel-ctrl", "21"),
    ];
    let negotiated = read(&none, &with(&LINUX, &more)).unwrap();
    assert_eq!((negotiated.queues[0].event_channel_tx, negotiated.control), (16, None));
    let features = negotiated.features;
    assert!(!features.scatter_gather && !features.gso_tcpv4 && !features.multicast_control);
    assert_eq!(features.xdp_headroom, 0);
    let keys: Vec<&str> = published(&none).iter().map(|(key, _)| *key).collect();
    assert_eq!(keys, ["feature-rx-copy", "feature-rx-flip", "feature-ipv6-csum-offload"]);
    let offered = read(&all(), &with(&LINUX, &more)).unwrap();
    assert_eq!(offered.control, Some(ControlKeys { ring_ref: 20, event_channel: 21 }));
    assert_eq!(offered.features.xdp_headroom, 256);
    assert!(offered.features.multicast_control);
}

#[test]
fn a_headroom_leaves_room_for_a_header() {
    assert_eq!(looked_up(&[("xdp-headroom", "32767")], headroom).unwrap(), 4096 - 14);
    assert_eq!(looked_up(&[], headroom).unwrap(), 0);
}

#[test]
fn the_toolstacks_words() {
    let libxl = [
        ("mac", "00:16:3e:01:02:03"),
        ("ip", "10.0.0.1 2001:db8::1,10.0.0.2"),
        ("bridge", "lan"),
        ("rate", "500000,50000"),
        ("mtu", "9000"),
        ("vlan", "7"),
    ];
    let said = looked_up(&libxl, Toolstack::read).unwrap();
    assert_eq!((said.addresses.len(), said.mtu, said.vlan), (3, Some(9000), Some(7)));
    assert_eq!((said.bridge.as_deref(), said.rate.as_deref()), (Some("lan"), Some("500000,50000")));
    let least = looked_up(&libxl[..1], Toolstack::read).unwrap();
    assert_eq!((least.addresses.len(), least.mtu, least.bridge), (0, None, None));
    for (key, value, says) in [
        ("mac", "", "there is no mac"),
        ("mac", "01:00:5e:00:00:01", "not the Ethernet address of one station"),
        ("mac", "x", "not the Ethernet address"),
        ("ip", "10.0.0.256", "ip = \"10.0.0.256\": not an IPv4 or IPv6 address"),
        ("mtu", "67", "not a number from 68 to 65521"),
        ("vlan", "4095", "not a number from 1 to 4094"),
    ] {
        let error = looked_up(&with(&libxl, &[(key, value)]), Toolstack::read).unwrap_err().to_string();
        assert!(error.contains(says), "{key} = {value}: {error}");
    }
    let many = "10.0.0.1 ".repeat(33);
    assert!(looked_up(&with(&libxl, &[("ip", &many)]), Toolstack::read).is_err());
}

proptest! {
    #[test]
    fn whatever_stands_there_is_refused_or_within_the_offer(values in prop::collection::vec((0usize..24, 0u8..9, any::<u32>()), 0..40)) {
        const KEYS: [&str; 24] = [
            NUM_QUEUES, "tx-ring-ref", "rx-ring-ref", "event-channel", "event-channel-tx", "event-channel-rx",
            "queue-0/tx-ring-ref", "queue-0/rx-ring-ref", "queue-0/event-channel", "queue-0/event-channel-tx",
            "queue-0/event-channel-rx", "queue-1/tx-ring-ref", "queue-1/rx-ring-ref", "queue-1/event-channel",
            "request-rx-copy", "feature-sg", "feature-gso-tcpv4", "feature-no-csum-offload", "xdp-headroom",
            "ctrl-ring-ref", "event-channel-ctrl", MULTICAST_CONTROL, "feature-rx-notify", "feature-gso-tcpv6",
        ];
        let keys: BTreeMap<&str, Vec<u8>> = values.into_iter().map(|(key, shape, number)| {
            let value = match shape {
                0 => b"1\0".to_vec(),
                1 => b"-1".to_vec(),
                2 => number.to_le_bytes().to_vec(),
                3 => b"2".to_vec(),
                _ => number.to_string().into_bytes(),
            };
            (KEYS[key], value)
        }).chain([("request-rx-copy", b"1".to_vec())]).collect();
        let offer = all();
        if let Ok(negotiated) = Negotiated::read(&offer, &mut |key| Ok(keys.get(key).cloned())) {
            prop_assert!((1..=usize::from(offer.queues)).contains(&negotiated.queues.len()));
            prop_assert!(negotiated.features.xdp_headroom <= MAX_HEADROOM);
            let refs: HashSet<u32> = negotiated.queues.iter().flat_map(|it| [it.tx_ring_ref, it.rx_ring_ref]).collect();
            prop_assert_eq!(refs.len(), 2 * negotiated.queues.len());
        }
    }
}
