use proptest::prelude::*;

use super::*;

/// A frame with a TCP or UDP packet in it, and any checksum.
fn frame(v6: bool, udp: bool, options: usize, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
    let header = if udp { 8 } else { 20 + options * 4 };
    let len = header + payload.len();
    let protocol = if udp { UDP } else { TCP };
    if v6 {
        frame.extend([0x86, 0xDD, 0x60, 0, 0, 0]);
        frame.extend((len as u16).to_be_bytes());
        frame.extend([protocol, 64]);
        frame.extend((0..32).map(|at| at * 7 + 1));
    } else {
        frame.extend([8, 0, 0x45, 0]);
        frame.extend(((20 + len) as u16).to_be_bytes());
        frame.extend([0xFF, 0xFE, 0x40, 0, 64, protocol, 0, 0, 10, 1, 2, 3, 10, 4, 5, 6]);
    }
    let transport = frame.len();
    frame.resize(transport + header, 0xA5);
    if udp {
        frame[transport + 4..transport + 6].copy_from_slice(&(len as u16).to_be_bytes());
    } else {
        frame[transport + 12] = ((header / 4) << 4) as u8;
        frame[transport + 13] = FIN | PSH | CWR | 0x10;
    }
    frame.extend(payload);
    frame
}

/// Are the checksums of a frame right, as a receiver works them out?
fn is_right(frame: &[u8]) -> bool {
    let headers = Headers::parse(frame).unwrap();
    let place = place(&headers, frame, frame.len(), false).unwrap();
    let transport = fold(sum(&frame[place.start..place.end]) + pseudo(&headers, place.end - place.start, place.udp));
    let ip = match headers.network {
        Network::Ip(_) => fold(sum(&frame[14..34])),
        _ => 0xFFFF,
    };
    transport == 0xFFFF && ip == 0xFFFF
}

#[test]
fn a_known_packet_has_the_known_checksum() {
    // An example worked out by hand: RFC 1071's way over 10.1.2.3 -> 10.4.5.6, UDP 1 -> 2, "ab".
    let mut packet = frame(false, true, 0, b"ab");
    packet[34..42].copy_from_slice(&[0, 1, 0, 2, 0, 10, 0xFF, 0xFF]);
    complete_checksum(&mut packet).unwrap();
    let by_hand = [0x0A01u32, 0x0203, 0x0A04, 0x0506, 17, 10, 1, 2, 10, 0x6162].iter().sum::<u32>();
    let by_hand = !((by_hand & 0xFFFF) + (by_hand >> 16)) as u16;
    assert_eq!(packet[40..42], by_hand.to_be_bytes());
}

#[test]
fn a_sum_of_zero_is_written_as_ones_for_udp() {
    let mut packet = frame(false, true, 0, &[0, 0]);
    complete_checksum(&mut packet).unwrap();
    // The payload that makes the sum zero is the sum itself.
    let sum = [packet[40], packet[41]];
    packet[42..44].copy_from_slice(&sum);
    complete_checksum(&mut packet).unwrap();
    assert_eq!(packet[40..42], [0xFF, 0xFF]);
}

#[test]
fn what_is_no_tcp_and_no_udp_is_unfit() {
    let mut packet = frame(false, true, 0, b"ab");
    packet[23] = 1;
    assert_eq!(complete_checksum(&mut packet), Err(Unfit));
    let mut fragment = frame(false, true, 0, b"ab");
    fragment[20] = 0x20;
    assert_eq!(complete_checksum(&mut fragment), Err(Unfit));
    let mut longer = frame(false, true, 0, b"ab");
    longer[17] = 200;
    assert_eq!(complete_checksum(&mut longer), Err(Unfit), "it says that it is longer than it is");
    let gso = Gso { kind: GsoKind::TcpV6, size: 100 };
    assert!(Segments::new(&frame(false, false, 0, b"ab"), gso).is_err(), "not IPv6");
    let offload = Offload { checksum: Checksum::Blank, gso: Some(gso) };
    let mut packet = frame(false, false, 0, b"ab");
    assert_eq!(to_vnet(&offload, &mut packet, 56), Err(Unfit));
}

/// One slot of twelve bytes must not make us write headers for 64 KiB of payload, one for each byte.
#[test]
fn t23_segments_are_not_so_small_that_they_are_nothing_but_headers() {
    let most = |payload: usize, size| {
        let packet = frame(false, false, 0, &vec![1; payload]);
        let segments = Segments::new(&packet, Gso { kind: GsoKind::TcpV4, size });
        segments.is_ok().then_some(())
    };
    assert_eq!(most(65_481, 1), None);
    assert_eq!(most(65_481, 63), None);
    assert_eq!(most(65_481, 64), Some(()));
    assert_eq!((most(1024, 1), most(1025, 1)), (Some(()), None));
    assert_eq!(most(100, 0), None, "which would never end");
}

#[test]
fn t23_work_that_a_frame_does_not_fit_is_seen_from_its_first_bytes() {
    let kinds = [None, Some(GsoKind::TcpV4), Some(GsoKind::TcpV6)];
    let fits = |frame: &[u8]| {
        kinds.map(|kind| {
            let offload = Offload { checksum: Checksum::Blank, gso: kind.map(|kind| Gso { kind, size: 100 }) };
            let first = &frame[..frame.len().min(128)];
            is_fit(&offload, &Headers::parse(first).unwrap(), first, frame.len())
        })
    };
    assert_eq!(fits(&frame(false, false, 0, &[1; 300])), [true, true, false]);
    assert_eq!(fits(&frame(true, false, 0, &[1; 300])), [true, false, true]);
    assert_eq!(fits(&frame(false, true, 0, &[1; 300])), [true, false, false], "UDP is not cut");
    assert_eq!(fits(&frame(false, false, 0, &[])), [true, false, false], "nothing to cut");
    let mut fragment = frame(false, false, 0, &[1; 300]);
    fragment[20] = 0x20;
    assert_eq!(fits(&fragment), [false; 3]);
    let mut arp = frame(false, false, 0, &[1; 300]);
    arp[13] = 6;
    assert_eq!(fits(&arp), [false; 3]);
    let mut long = frame(false, false, 0, &[1; 300]);
    long[46] = 0xF0;
    assert_eq!(fits(&long), [true, true, false], "options are payload to some, and data to others");
    long.truncate(54);
    assert_eq!(fits(&long), [false; 3], "its header is longer than it is");
    let plain = Offload::default();
    assert!(is_fit(&plain, &Headers::parse(&arp).unwrap(), &arp, arp.len()));
}

#[test]
fn the_kernel_is_told_and_tells_in_virtio_words() {
    let offload = Offload { checksum: Checksum::Blank, gso: Some(Gso { kind: GsoKind::TcpV6, size: 1428 }) };
    let mut packet = frame(true, false, 3, &[7; 5000]);
    let len = packet.len();
    let vnet = to_vnet(&offload, &mut packet[..128], len).unwrap();
    let expected =
        VnetHeader { flags: 1, gso_type: 0x84, hdr_len: 86, gso_size: 1428, csum_start: 54, csum_offset: 16 };
    assert_eq!(vnet, expected);
    assert_eq!(from_vnet(&vnet), Ok(offload));
    assert_eq!(to_vnet(&Offload::default(), &mut packet, len), Ok(VnetHeader::default()));
    let valid = VnetHeader { flags: F_DATA_VALID, ..VnetHeader::default() };
    assert_eq!(from_vnet(&valid).unwrap().checksum, Checksum::Valid);
    assert_eq!(from_vnet(&VnetHeader { gso_type: 3, gso_size: 100, ..valid }), Err(Unfit), "UDP in pieces");
    assert_eq!(from_vnet(&VnetHeader { gso_type: GSO_TCPV4, ..valid }), Err(Unfit), "segments of nothing");
}

proptest! {
    #[test]
    fn a_completed_checksum_is_right(
        v6: bool, udp: bool, options in 0usize..10, payload in prop::collection::vec(any::<u8>(), 0..3000), padded: bool,
    ) {
        let mut packet = frame(v6, udp, options, &payload);
        if !v6 {
            // Only what this function promises.
            let checksum = !fold(sum(&{ let mut ip = packet[14..34].to_vec(); ip[10..12].fill(0); ip }));
            packet[24..26].copy_from_slice(&checksum.to_be_bytes());
        }
        if padded {
            packet.extend([0xEE; 7]);
        }
        complete_checksum(&mut packet).unwrap();
        prop_assert!(is_right(&packet));
    }

    #[test]
    fn segments_together_are_the_packet(
        v6: bool, options in 0usize..10, payload in prop::collection::vec(any::<u8>(), 1..20_000), size in 88u16..9000,
    ) {
        let packet = frame(v6, false, options, &payload);
        let kind = if v6 { GsoKind::TcpV6 } else { GsoKind::TcpV4 };
        let mut segments = Segments::new(&packet, Gso { kind, size }).unwrap();
        let (mut out, mut together, mut number) = (Vec::new(), Vec::<u8>::new(), 0u32);
        let tcp = if v6 { 54 } else { 34 };
        let first = u32::from_be_bytes(packet[tcp + 4..tcp + 8].try_into().unwrap());
        while let Some(len) = segments.next_into(&mut out) {
            prop_assert_eq!(len, out.len());
            prop_assert!(is_right(&out));
            let sequence = u32::from_be_bytes(out[tcp + 4..tcp + 8].try_into().unwrap());
            prop_assert_eq!(sequence, first.wrapping_add(together.len() as u32));
            if !v6 {
                let id = u16::from_be_bytes([out[18], out[19]]);
                prop_assert_eq!(id, 0xFFFEu16.wrapping_add(number as u16));
            }
            let begins = together.is_empty();
            together.extend(&out[tcp + 20 + options * 4..]);
            let flags = out[tcp + 13];
            let ends = together.len() == payload.len();
            prop_assert_eq!(flags & (FIN | PSH) == FIN | PSH, ends);
            prop_assert_eq!(flags & CWR != 0, begins);
            prop_assert!(ends || len == tcp + 20 + options * 4 + usize::from(size));
            number += 1;
        }
        prop_assert_eq!(together, payload);
    }

    #[test]
    fn nothing_breaks_it(mut bytes in prop::collection::vec(any::<u8>(), 0..200), v6: bool, size in 1u16.., cut: usize) {
        let model = frame(v6, false, 2, &[1; 80]);
        for (at, byte) in bytes.iter_mut().enumerate() {
            // Most of it looks like a packet.
            if *byte > 16 {
                *byte = model.get(at).copied().unwrap_or(*byte);
            }
        }
        let kind = if v6 { GsoKind::TcpV6 } else { GsoKind::TcpV4 };
        let gso = Gso { kind, size };
        let _ = complete_checksum(&mut bytes.clone());
        let len = bytes.len();
        let cut = if len == 0 { 0 } else { cut % len };
        let _ = to_vnet(&Offload { checksum: Checksum::Blank, gso: Some(gso) }, &mut bytes[..cut], len);
        let _ = to_vnet(&Offload { checksum: Checksum::Blank, gso: None }, &mut bytes[..cut], len);
        if let Ok(mut segments) = Segments::new(&bytes, gso) {
            let mut out = Vec::new();
            let mut count = 0;
            while segments.next_into(&mut out).is_some() {
                count += 1;
            }
            prop_assert!(count <= len);
        }
    }
}
