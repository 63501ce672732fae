//! What a frontend offers and asks for.

/// Choices of a frontend. The default is what Linux does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// Queues at most, 1..=16.
    pub queues: u16,
    /// One event channel for each ring, where the backend takes that.
    pub split_event_channels: bool,
    /// `feature-sg`.
    pub scatter_gather: bool,
    /// `feature-gso-tcpv4`.
    pub gso_tcpv4: bool,
    /// `feature-gso-tcpv6`.
    pub gso_tcpv6: bool,
    /// Not `feature-no-csum-offload`.
    pub checksum_ipv4: bool,
    /// `feature-ipv6-csum-offload`.
    pub checksum_ipv6: bool,
    /// `feature-rx-notify`.
    pub rx_notify: bool,
    /// `request-multicast-control`.
    pub multicast_control: bool,
    /// Receive buffers posted, 1..=256: iPXE has 4.
    pub buffers: u16,
    /// Where the indexes of the rings start.
    pub first_index: u32,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            queues: 1,
            split_event_channels: true,
            scatter_gather: true,
            gso_tcpv4: true,
            gso_tcpv6: true,
            checksum_ipv4: true,
            checksum_ipv6: true,
            rx_notify: true,
            multicast_control: false,
            buffers: 256,
            first_index: 0,
        }
    }
}
