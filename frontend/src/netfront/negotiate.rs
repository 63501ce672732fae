//! The xenstore keys of a card as its frontend sees them (netif.h). Pure: the caller brings a function that looks a key up
//! in the backend's directory, and writes what comes back to the frontend's own.

use super::options::Options;
use super::queue::RingKeys;
use crate::blkfront::Lookup;

/// Most queues, whatever anybody offers.
const MAX_QUEUES: u16 = 16;

/// What we want, within what the backend offers.
///
/// # Errors
/// The store did not answer.
pub fn choose(options: &Options, lookup: &mut Lookup<'_>) -> Result<Options, xenstore::Error> {
    let mut number = |key: &str, default: u16| -> Result<u16, xenstore::Error> {
        let value = lookup(key)?.and_then(|value| String::from_utf8(value).ok());
        Ok(value.and_then(|value| value.parse().ok()).unwrap_or(default))
    };
    let queues = number("multi-queue-max-queues", 1)?.min(options.queues).clamp(1, MAX_QUEUES);
    let split_event_channels = options.split_event_channels && number("feature-split-event-channels", 0)? == 1;
    let multicast_control = options.multicast_control && number("feature-multicast-control", 0)? == 1;
    Ok(Options { queues, split_event_channels, multicast_control, ..*options })
}

/// The keys that tell the backend of our rings and choices, in the order in which Linux writes them.
pub fn keys(options: &Options, rings: &[RingKeys]) -> Vec<(String, String)> {
    let mut keys = Vec::new();
    let mut put = |key: String, value: u32| keys.push((key, value.to_string()));
    if rings.len() > 1 {
        put("multi-queue-num-queues".into(), rings.len() as u32);
    }
    for (queue, ring) in rings.iter().enumerate() {
        let prefix = if rings.len() > 1 { format!("queue-{queue}/") } else { String::new() };
        put(format!("{prefix}tx-ring-ref"), ring.tx_ring_ref);
        put(format!("{prefix}rx-ring-ref"), ring.rx_ring_ref);
        match ring.rx_port {
            Some(rx) => {
                put(format!("{prefix}event-channel-tx"), ring.tx_port);
                put(format!("{prefix}event-channel-rx"), rx);
            }
            None => put(format!("{prefix}event-channel"), ring.tx_port),
        }
    }
    for (key, value) in [
        ("request-rx-copy", true),
        ("feature-rx-notify", options.rx_notify),
        ("feature-sg", options.scatter_gather),
        ("feature-gso-tcpv4", options.gso_tcpv4),
        ("feature-gso-tcpv6", options.gso_tcpv6),
        ("feature-ipv6-csum-offload", options.checksum_ipv6),
        ("feature-no-csum-offload", !options.checksum_ipv4),
        ("request-multicast-control", options.multicast_control),
    ] {
        put(key.into(), value.into());
    }
    keys
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_offered_is_not_asked_for() {
        let wanted = Options { queues: 4, multicast_control: true, ..Options::default() };
        let none = choose(&wanted, &mut |_| Ok(None)).unwrap();
        assert_eq!((none.queues, none.split_event_channels, none.multicast_control), (1, false, false));
        let all = choose(&wanted, &mut |key| {
            Ok(Some(if key == "multi-queue-max-queues" { b"3".to_vec() } else { b"1".to_vec() }))
        });
        let all = all.unwrap();
        assert_eq!((all.queues, all.split_event_channels, all.multicast_control), (3, true, true));
    }

    #[test]
    fn one_queue_has_its_keys_at_the_top() {
        let ring = RingKeys { tx_ring_ref: 8, rx_ring_ref: 9, tx_port: 3, rx_port: Some(4) };
        let one = keys(&Options::default(), &[ring]);
        assert_eq!(one[0], ("tx-ring-ref".to_owned(), "8".to_owned()));
        let two = keys(&Options::default(), &[ring, RingKeys { rx_port: None, ..ring }]);
        assert_eq!(two[0], ("multi-queue-num-queues".to_owned(), "2".to_owned()));
        assert!(two.contains(&("queue-1/event-channel".to_owned(), "3".to_owned())));
    }
}
