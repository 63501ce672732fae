//! The wire format of Xen's public `io/netif.h`, the same for 32-bit and 64-bit guests (checked against the header by
//! the ABI test). Rings are asymmetric: TX carries packets from the guest, RX to it.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Slots every backend takes for one packet (`XEN_NETIF_NR_SLOTS_MIN`).
pub const NR_SLOTS_MIN: usize = 18;
/// Most bytes of a packet (`XEN_NETIF_MAX_TX_SIZE`).
pub const MAX_TX_SIZE: usize = 0xFFFF;

/// `NETTXF_csum_blank`: the checksum is left to us.
pub const NETTXF_CSUM_BLANK: u16 = 1 << 0;
/// `NETTXF_data_validated`: the checksum was validated.
pub const NETTXF_DATA_VALIDATED: u16 = 1 << 1;
/// `NETTXF_more_data`: the packet goes on in the next slot.
pub const NETTXF_MORE_DATA: u16 = 1 << 2;
/// `NETTXF_extra_info`: an extra-info slot follows.
pub const NETTXF_EXTRA_INFO: u16 = 1 << 3;

/// `NETRXF_data_validated`.
pub const NETRXF_DATA_VALIDATED: u16 = 1 << 0;
/// `NETRXF_csum_blank`.
pub const NETRXF_CSUM_BLANK: u16 = 1 << 1;
/// `NETRXF_more_data`.
pub const NETRXF_MORE_DATA: u16 = 1 << 2;
/// `NETRXF_extra_info`.
pub const NETRXF_EXTRA_INFO: u16 = 1 << 3;

/// `XEN_NETIF_EXTRA_TYPE_GSO`.
pub const EXTRA_TYPE_GSO: u8 = 1;
/// `XEN_NETIF_EXTRA_TYPE_MCAST_ADD`.
pub const EXTRA_TYPE_MCAST_ADD: u8 = 2;
/// `XEN_NETIF_EXTRA_TYPE_MCAST_DEL`.
pub const EXTRA_TYPE_MCAST_DEL: u8 = 3;
/// `XEN_NETIF_EXTRA_TYPE_HASH`.
pub const EXTRA_TYPE_HASH: u8 = 4;
/// `XEN_NETIF_EXTRA_TYPE_XDP` of Linux's header; Xen's own does not have it.
pub const EXTRA_TYPE_XDP: u8 = 5;
/// `XEN_NETIF_EXTRA_FLAG_MORE`: another extra-info slot follows.
pub const EXTRA_FLAG_MORE: u8 = 1;

/// `XEN_NETIF_GSO_TYPE_TCPV4`.
pub const GSO_TYPE_TCPV4: u8 = 1;
/// `XEN_NETIF_GSO_TYPE_TCPV6`.
pub const GSO_TYPE_TCPV6: u8 = 2;

/// `XEN_NETIF_CTRL_TYPE_GET_HASH_FLAGS`.
pub const CTRL_TYPE_GET_HASH_FLAGS: u16 = 1;
/// `XEN_NETIF_CTRL_TYPE_SET_HASH_FLAGS`.
pub const CTRL_TYPE_SET_HASH_FLAGS: u16 = 2;
/// `XEN_NETIF_CTRL_TYPE_SET_HASH_KEY`.
pub const CTRL_TYPE_SET_HASH_KEY: u16 = 3;
/// `XEN_NETIF_CTRL_TYPE_GET_HASH_MAPPING_SIZE`.
pub const CTRL_TYPE_GET_HASH_MAPPING_SIZE: u16 = 4;
/// `XEN_NETIF_CTRL_TYPE_SET_HASH_MAPPING_SIZE`.
pub const CTRL_TYPE_SET_HASH_MAPPING_SIZE: u16 = 5;
/// `XEN_NETIF_CTRL_TYPE_SET_HASH_MAPPING`.
pub const CTRL_TYPE_SET_HASH_MAPPING: u16 = 6;
/// `XEN_NETIF_CTRL_TYPE_SET_HASH_ALGORITHM`.
pub const CTRL_TYPE_SET_HASH_ALGORITHM: u16 = 7;

/// `XEN_NETIF_CTRL_STATUS_SUCCESS`.
pub const CTRL_STATUS_SUCCESS: u32 = 0;
/// `XEN_NETIF_CTRL_STATUS_NOT_SUPPORTED`.
pub const CTRL_STATUS_NOT_SUPPORTED: u32 = 1;
/// `XEN_NETIF_CTRL_STATUS_INVALID_PARAMETER`.
pub const CTRL_STATUS_INVALID_PARAMETER: u32 = 2;
/// `XEN_NETIF_CTRL_STATUS_BUFFER_OVERFLOW`.
pub const CTRL_STATUS_BUFFER_OVERFLOW: u32 = 3;

/// `XEN_NETIF_CTRL_HASH_ALGORITHM_NONE`.
pub const CTRL_HASH_ALGORITHM_NONE: u32 = 0;
/// `XEN_NETIF_CTRL_HASH_ALGORITHM_TOEPLITZ`.
pub const CTRL_HASH_ALGORITHM_TOEPLITZ: u32 = 1;
/// `_XEN_NETIF_CTRL_HASH_TYPE_IPV4`: a bit number, as the others.
pub const CTRL_HASH_TYPE_IPV4: u8 = 0;
/// `_XEN_NETIF_CTRL_HASH_TYPE_IPV4_TCP`.
pub const CTRL_HASH_TYPE_IPV4_TCP: u8 = 1;
/// `_XEN_NETIF_CTRL_HASH_TYPE_IPV6`.
pub const CTRL_HASH_TYPE_IPV6: u8 = 2;
/// `_XEN_NETIF_CTRL_HASH_TYPE_IPV6_TCP`.
pub const CTRL_HASH_TYPE_IPV6_TCP: u8 = 3;

/// `NETIF_RSP_DROPPED`.
pub const NETIF_RSP_DROPPED: i16 = -2;
/// `NETIF_RSP_ERROR`.
pub const NETIF_RSP_ERROR: i16 = -1;
/// `NETIF_RSP_OKAY`.
pub const NETIF_RSP_OKAY: i16 = 0;
/// `NETIF_RSP_NULL`: what an extra-info slot is answered with.
pub const NETIF_RSP_NULL: i16 = 1;

/// `struct netif_tx_request`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct NetifTxRequest {
    /// The page.
    pub gref: u32,
    /// First byte in it.
    pub offset: u16,
    /// `NETTXF_*`.
    pub flags: u16,
    /// Echoed in the response.
    pub id: u16,
    /// Bytes; in the first slot of a packet those of the whole packet.
    pub size: u16,
}

/// `struct netif_extra_info`: in the place of a request or response.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct NetifExtraInfo {
    /// `XEN_NETIF_EXTRA_TYPE_*`.
    pub kind: u8,
    /// `XEN_NETIF_EXTRA_FLAG_*`.
    pub flags: u8,
    /// The union: segment size (2 bytes), type, padding and features (2 bytes) of GSO; the address of a multicast group; type, algorithm
    /// and value (4 bytes) of a hash.
    pub body: [u8; 6],
}

/// `struct netif_tx_response`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct NetifTxResponse {
    /// From the request.
    pub id: u16,
    /// `NETIF_RSP_*`.
    pub status: i16,
}

/// `struct netif_rx_request`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct NetifRxRequest {
    /// Echoed in the response.
    pub id: u16,
    /// Unused.
    pub pad: u16,
    /// The page to fill.
    pub gref: u32,
}

/// `struct netif_rx_response`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct NetifRxResponse {
    /// From the request.
    pub id: u16,
    /// First byte of the data in the page.
    pub offset: u16,
    /// `NETRXF_*`.
    pub flags: u16,
    /// Bytes, or `NETIF_RSP_*` when negative.
    pub status: i16,
}

/// `struct xen_netif_ctrl_request`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct NetifCtrlRequest {
    /// Echoed in the response.
    pub id: u16,
    /// `XEN_NETIF_CTRL_TYPE_*`.
    pub kind: u16,
    /// What the type says.
    pub data: [u32; 3],
}

/// `struct xen_netif_ctrl_response`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct NetifCtrlResponse {
    /// From the request.
    pub id: u16,
    /// From the request.
    pub kind: u16,
    /// `XEN_NETIF_CTRL_STATUS_*`.
    pub status: u32,
    /// What the type says.
    pub data: u32,
}

const _: () = assert!(size_of::<NetifTxRequest>() == 12 && size_of::<NetifTxResponse>() == 4);
const _: () = assert!(size_of::<NetifRxRequest>() == 8 && size_of::<NetifRxResponse>() == 8);
const _: () = assert!(size_of::<NetifExtraInfo>() == 8);
const _: () = assert!(size_of::<NetifCtrlRequest>() == 16 && size_of::<NetifCtrlResponse>() == 12);
