use proptest::prelude::*;
use zerocopy::IntoBytes;

use super::*;
use crate::proto::*;

fn data(id: u16, size: u16, flags: u16) -> [u8; 12] {
    let request = NetifTxRequest { gref: 100 + u32::from(id), offset: 0, flags, id, size };
    zerocopy::transmute!(request)
}

fn at(id: u16, offset: u16, size: u16, flags: u16) -> [u8; 12] {
    zerocopy::transmute!(NetifTxRequest { gref: 100 + u32::from(id), offset, flags, id, size })
}

fn extra(kind: u8, flags: u8, body: [u8; 6]) -> [u8; 12] {
    let mut slot = [0xAA; 12];
    slot[..8].copy_from_slice(NetifExtraInfo { kind, flags, body }.as_bytes());
    slot
}

fn gso(size: u16, kind: u8, flags: u8) -> [u8; 12] {
    let [low, high] = size.to_le_bytes();
    extra(EXTRA_TYPE_GSO, flags, [low, high, kind, 0, 0, 0])
}

/// All packets of a ring that holds these slots.
fn all(slots: &[[u8; 12]]) -> Result<Batch, Broken> {
    let mut batch = Batch::new(256);
    let mut slots = slots.iter().copied();
    while batch.take(|| slots.next())? {}
    Ok(batch)
}

fn only(slots: &[[u8; 12]]) -> (Packet, Batch) {
    let batch = all(slots).expect("whole");
    assert_eq!(batch.packets.len(), 1);
    (batch.packets[0].clone(), batch)
}

#[test]
fn a_packet_in_one_slot() {
    let (packet, batch) = only(&[data(7, 60, NETTXF_CSUM_BLANK | NETTXF_DATA_VALIDATED)]);
    assert_eq!((packet.kind, packet.len, packet.offload.checksum), (Kind::Frame, 60, Checksum::Blank));
    assert_eq!(batch.fragments_of(&packet), [Fragment { gref: GrantRef(107), offset: 0, len: 60 }]);
    assert_eq!(batch.slots, [Slot::Data(7)]);
}

#[test]
fn the_first_slot_has_what_the_others_leave_and_empty_ones_are_nobodys() {
    let more = NETTXF_MORE_DATA;
    let (packet, batch) = only(&[data(1, 5000, more), data(2, 4000, more), data(3, 0, more), data(4, 900, 0)]);
    assert_eq!((packet.kind, packet.len), (Kind::Frame, 5000));
    let lens: Vec<u16> = batch.fragments_of(&packet).iter().map(|it| it.len).collect();
    assert_eq!(lens, [100, 4000, 900]);
    assert_eq!(batch.slots.len(), 4, "an empty slot is answered too");
    // All of it in the second slot.
    let (packet, batch) = only(&[data(1, 800, more), data(2, 800, 0)]);
    assert_eq!(batch.fragments_of(&packet), [Fragment { gref: GrantRef(102), offset: 0, len: 800 }]);
}

#[test]
fn extras_stand_after_the_first_slot_and_segments_mean_a_blank_checksum() {
    let flags = NETTXF_MORE_DATA | NETTXF_EXTRA_INFO;
    let hash = extra(EXTRA_TYPE_HASH, 0, [0; 6]);
    let (packet, batch) =
        only(&[data(1, 6000, flags), gso(1448, GSO_TYPE_TCPV6, EXTRA_FLAG_MORE), hash, data(2, 4000, 0)]);
    let offload = Offload { checksum: Checksum::Blank, gso: Some(Gso { kind: GsoKind::TcpV6, size: 1448 }) };
    assert_eq!((packet.kind, packet.offload), (Kind::Frame, offload));
    assert_eq!(batch.slots, [Slot::Data(1), Slot::Extra, Slot::Extra, Slot::Data(2)]);
    assert_eq!(batch.fragments_of(&packet).len(), 2);
}

#[test]
fn joining_a_group_carries_no_data_and_the_next_slot_is_another_packet() {
    let add = extra(EXTRA_TYPE_MCAST_ADD, 0, [0x33, 0x33, 0, 0, 0, 1]);
    let batch = all(&[data(1, 0, NETTXF_EXTRA_INFO), add, data(2, 60, 0)]).expect("whole");
    let group = Mac([0x33, 0x33, 0, 0, 0, 1]);
    assert_eq!(batch.packets[0].kind, Kind::Multicast { add: true, group });
    assert_eq!(batch.packets[1].kind, Kind::Frame);
    assert!(batch.packets[0].fragments.is_empty());
}

#[test]
fn what_linux_drops_is_dropped_and_the_next_packet_is_fine() {
    let more = NETTXF_MORE_DATA;
    let short = vec![data(1, 13, 0)];
    let sizes = vec![data(1, 100, more), data(2, 101, 0)];
    let mut many = vec![data(0, 4000, more)];
    many.extend((1..20).map(|id| data(id, 100, if id < 19 { more } else { 0 })));
    for (slots, why) in [(short, Malformed::Short), (sizes, Malformed::Sizes), (many, Malformed::TooManyFragments)] {
        let count = slots.len();
        let mut slots = slots;
        slots.push(data(99, 60, 0));
        let batch = all(&slots).expect("goes on");
        assert_eq!(batch.packets[0].kind, Kind::Malformed(why));
        assert!(batch.packets[0].fragments.is_empty(), "nothing of it is ever copied");
        assert_eq!(batch.packets[0].slots, 0..count as u32);
        assert_eq!(batch.packets[1].kind, Kind::Frame);
    }
    let most: Vec<[u8; 12]> = (0..MAX_FRAGMENTS as u16)
        .map(|id| data(id, if id == 0 { 1900 } else { 100 }, if id < 18 { more } else { 0 }))
        .collect();
    assert_eq!(only(&most).0.kind, Kind::Frame);
}

#[test]
fn what_cannot_be_followed_breaks_the_card_and_leaves_the_batch_as_it_was() {
    let (more, info) = (NETTXF_MORE_DATA, NETTXF_EXTRA_INFO);
    let mut endless = vec![data(0, 4000, more)];
    endless.extend((1..30).map(|id| data(id, 1, more)));
    for (slots, broken) in [
        (vec![data(1, 100, more)], Broken::CutOff),
        (vec![data(1, 100, info)], Broken::CutOff),
        (vec![data(1, 100, info), gso(1, 1, EXTRA_FLAG_MORE)], Broken::CutOff),
        (vec![data(1, 100, info), extra(0, 0, [0; 6])], Broken::ExtraType(0)),
        (vec![data(1, 100, info), extra(6, 0, [0; 6])], Broken::ExtraType(6)),
        (vec![data(1, 100, info), gso(0, GSO_TYPE_TCPV4, 0)], Broken::GsoSize),
        (vec![data(1, 100, info), gso(1448, 0, 0)], Broken::GsoType(0)),
        (vec![data(1, 100, info), gso(1448, 3, 0)], Broken::GsoType(3)),
        (vec![at(1, 4000, 97, 0)], Broken::CrossesPage { offset: 4000, len: 97 }),
        (vec![data(1, 8000, more), at(2, 1, 4096, 0)], Broken::CrossesPage { offset: 1, len: 4096 }),
        (vec![data(1, 5000, 0)], Broken::CrossesPage { offset: 0, len: 5000 }),
        (endless, Broken::TooManyFragments),
    ] {
        let mut batch = Batch::new(256);
        let mut all = std::iter::once(data(90, 60, 0)).chain(slots);
        assert_eq!(batch.take(|| all.next()), Ok(true));
        assert_eq!(batch.take(|| all.next()), Err(broken));
        assert_eq!((batch.packets.len(), batch.fragments.len(), batch.slots.len()), (1, 1, 1));
    }
}

proptest! {
    #[test]
    fn whatever_stands_in_a_ring_is_answered_slot_by_slot_or_breaks_the_card(
        bytes in prop::collection::vec(any::<[u8; 12]>(), 0..256),
        tame in any::<u16>(),
    ) {
        let slots: Vec<[u8; 12]> = bytes.into_iter().map(|slot| {
            // Random flags and sizes nearly always break it at once: most are made small.
            let mut it = request(&slot);
            it.flags &= if tame & 1 == 0 { 0xF } else { NETTXF_MORE_DATA };
            it.size %= 1 + tame % 3000;
            it.offset %= 2000;
            zerocopy::transmute!(it)
        }).collect();
        let mut batch = Batch::new(256);
        let mut given = 0;
        while let Ok(true) = batch.take(|| { given += 1; slots.get(given - 1).copied() }) {}
        prop_assert!(batch.slots.len() <= slots.len());
        let mut at = 0;
        for packet in &batch.packets {
            prop_assert_eq!(packet.slots.start, at);
            at = packet.slots.end;
            let fragments = batch.fragments_of(packet);
            prop_assert!(fragments.iter().all(|it| it.len > 0 && it.offset + it.len <= 4096));
            if packet.kind == Kind::Frame {
                prop_assert!(packet.len >= 14 && fragments.len() <= MAX_FRAGMENTS);
                prop_assert_eq!(fragments.iter().map(|it| u32::from(it.len)).sum::<u32>(), packet.len);
            }
        }
        prop_assert_eq!(at as usize, batch.slots.len());
    }
}

/// XSA-432: every number of slots with every length up to a page, at the border of what is copied first.
#[test]
fn t21_grid_of_slots_and_lengths() {
    for slots in 1..=20u16 {
        for len in (14..4096u16).step_by(7).chain([127, 128, 129]) {
            let each = len / slots;
            let sizes = |id: u16| if id == 0 { len } else { each };
            let ring: Vec<[u8; 12]> =
                (0..slots).map(|id| data(id, sizes(id), if id + 1 < slots { NETTXF_MORE_DATA } else { 0 })).collect();
            let (packet, batch) = only(&ring);
            let taken = usize::from(slots) <= MAX_FRAGMENTS;
            assert_eq!(packet.kind == Kind::Frame, taken, "{slots} slots, {len} bytes");
            let sum: u32 = batch.fragments_of(&packet).iter().map(|it| u32::from(it.len)).sum();
            assert_eq!(sum, if taken { u32::from(len) } else { 0 });
        }
    }
}
