//! Who is where: a learning Ethernet switch between cards and one uplink.
//!
//! A card's own address is known and fixed. Others are learnt from what is sent: by cards that may send from any
//! address, and by the uplink. What is learnt never takes the place of what is fixed, is bounded, and grows old.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use crate::packet::Mac;

/// A place where frames go in and out: a card's number, or the uplink.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PortId(pub u16);

impl PortId {
    /// The uplink.
    pub const UPLINK: PortId = PortId(u16::MAX);

    /// The card's place.
    pub fn index(self) -> usize {
        usize::from(self.0)
    }
}

/// What is to be done about a frame's tag on its way to somebody.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tag {
    /// Nothing.
    AsIs,
    /// It is taken away.
    Strip,
    /// One with this number is put in.
    Insert(u16),
}

/// A card as the switch sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member {
    /// Its address.
    pub mac: Mac,
    /// The VLAN it is in: its frames carry no tag. Without one, its frames are as they are everywhere.
    pub vlan: Option<u16>,
    /// Others live behind it.
    pub any_source: bool,
}

/// Another card of the network has this address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("another card of the network has the address {0}")]
pub struct Taken(pub Mac);

/// Most addresses learnt behind one card.
const LEARNT_BEHIND_CARD: usize = 64;
/// Most addresses learnt behind the uplink.
const LEARNT_BEHIND_UPLINK: usize = 4096;
/// How long an address is believed after it was last seen.
const AGE: Duration = Duration::from_secs(300);
/// How often a full table is searched for what is old: whoever invents addresses has us look through all of it.
const SWEEP: Duration = Duration::from_secs(1);

/// An address in a VLAN; 0 is the LAN without tags.
type Key = (u16, Mac);

struct Learnt {
    port: PortId,
    seen: Instant,
}

/// The switch of one network.
#[derive(Default)]
pub struct Switch {
    members: Vec<Option<Member>>,
    uplink: bool,
    fixed: HashMap<Key, PortId>,
    learnt: HashMap<Key, Learnt>,
    behind: HashMap<PortId, usize>,
    swept: Option<Instant>,
    /// Times that the table was searched.
    #[cfg(test)]
    sweeps: usize,
}

impl Switch {
    /// Adds a card at a place.
    ///
    /// # Errors
    /// [`Taken`] when its VLAN has a card with that address.
    pub fn add(&mut self, port: PortId, member: Member) -> Result<(), Taken> {
        let key = (member.vlan.unwrap_or(0), member.mac);
        if self.fixed.contains_key(&key) {
            return Err(Taken(member.mac));
        }
        if self.members.len() <= port.index() {
            self.members.resize(port.index() + 1, None);
        }
        self.members[port.index()] = Some(member);
        self.fixed.insert(key, port);
        if let Some(gone) = self.learnt.remove(&key) {
            self.forget_one(gone.port);
        }
        Ok(())
    }

    /// Takes a card away, and everything learnt behind it.
    pub fn remove(&mut self, port: PortId) {
        if let Some(member) = self.members.get_mut(port.index()).and_then(Option::take) {
            self.fixed.remove(&(member.vlan.unwrap_or(0), member.mac));
        }
        self.learnt.retain(|_, learnt| learnt.port != port);
        self.behind.remove(&port);
    }

    /// There is an uplink, or none any more.
    pub fn uplink(&mut self, there: bool) {
        self.uplink = there;
        if !there {
            self.remove(PortId::UPLINK);
        }
    }

    /// Addresses that are believed, besides those of the cards.
    pub fn learnt(&self) -> usize {
        self.learnt.len()
    }

    /// Says who gets a frame, the uplink last; learns where it came from.
    pub fn forward(
        &mut self,
        from: PortId,
        destination: Mac,
        source: Mac,
        tag: Option<u16>,
        now: Instant,
        targets: &mut Vec<(PortId, Tag)>,
    ) {
        let own = self.member(from).copied();
        // A frame that says a priority only is in the LAN without tags.
        let vlan = own.and_then(|member| member.vlan).or(tag.filter(|&number| number != 0)).unwrap_or(0);
        if own.is_none_or(|member| member.any_source) {
            self.learn(from, (vlan, source), now);
        }
        // Between bridges only (IEEE 802.1D, 7.12.6).
        if destination.0[..5] == [0x01, 0x80, 0xC2, 0, 0] && destination.0[5] < 16 {
            return;
        }
        if !destination.is_group()
            && let Some(port) = self.find((vlan, destination), now)
        {
            if port != from {
                self.push(port, own, vlan, tag, targets);
            }
            return;
        }
        for at in 0..self.members.len() {
            let port = PortId(at as u16);
            let Some(member) = self.members[at].filter(|_| port != from) else { continue };
            // An address that nobody is known to have is no card's own.
            if destination.is_group() || member.any_source {
                self.push(port, own, vlan, tag, targets);
            }
        }
        if self.uplink && from != PortId::UPLINK {
            self.push(PortId::UPLINK, own, vlan, tag, targets);
        }
    }

    /// Adds a target, if it is in the VLAN.
    fn push(&self, port: PortId, from: Option<Member>, vlan: u16, tag: Option<u16>, targets: &mut Vec<(PortId, Tag)>) {
        let to = self.member(port).and_then(|member| member.vlan);
        let change = match (from.and_then(|member| member.vlan), to) {
            (_, Some(number)) if number != vlan => return,
            // From one card of the VLAN to another.
            (Some(_), Some(_)) => Tag::AsIs,
            (Some(number), None) => Tag::Insert(number),
            (None, Some(_)) if tag.is_some() => Tag::Strip,
            (None, _) => Tag::AsIs,
        };
        targets.push((port, change));
    }

    fn member(&self, port: PortId) -> Option<&Member> {
        self.members.get(port.index())?.as_ref()
    }

    fn find(&self, key: Key, now: Instant) -> Option<PortId> {
        if let Some(port) = self.fixed.get(&key) {
            return Some(*port);
        }
        // A card in no VLAN has its address with every tag that it sends.
        let bare = self.fixed.get(&(0, key.1)).filter(|_| key.0 != 0);
        let learnt = self.learnt.get(&key).filter(|learnt| now.duration_since(learnt.seen) < AGE);
        learnt.map(|learnt| learnt.port).or(bare.copied())
    }

    fn learn(&mut self, port: PortId, key: Key, now: Instant) {
        if key.1.is_group() || self.fixed.contains_key(&key) {
            return;
        }
        if let Some(learnt) = self.learnt.get_mut(&key) {
            if learnt.port == port {
                learnt.seen = now;
                return;
            }
            let old = learnt.port;
            self.learnt.remove(&key);
            self.forget_one(old);
        }
        let most = if port == PortId::UPLINK { LEARNT_BEHIND_UPLINK } else { LEARNT_BEHIND_CARD };
        if self.behind.get(&port).is_some_and(|&count| count >= most) {
            self.forget_old(now);
        }
        let count = self.behind.entry(port).or_default();
        if *count < most {
            *count += 1;
            self.learnt.insert(key, Learnt { port, seen: now });
        }
    }

    fn forget_one(&mut self, port: PortId) {
        if let Some(count) = self.behind.get_mut(&port) {
            *count = count.saturating_sub(1);
        }
    }

    fn forget_old(&mut self, now: Instant) {
        if self.swept.is_some_and(|swept| now.saturating_duration_since(swept) < SWEEP) {
            return;
        }
        self.swept = Some(now);
        #[cfg(test)]
        {
            self.sweeps += 1;
        }
        let behind = &mut self.behind;
        self.learnt.retain(|_, learnt| {
            let young = now.duration_since(learnt.seen) < AGE;
            if !young && let Some(count) = behind.get_mut(&learnt.port) {
                *count -= 1;
            }
            young
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mac(last: u8) -> Mac {
        Mac([2, 0, 0, 0, 0, last])
    }

    fn member(last: u8, vlan: Option<u16>) -> Member {
        Member { mac: mac(last), vlan, any_source: false }
    }

    /// Cards 1 and 2 in no VLAN, 3 and 4 in VLAN 7, 5 in VLAN 8, and an uplink.
    fn switch() -> Switch {
        let mut switch = Switch::default();
        for (port, vlan) in [(1, None), (2, None), (3, Some(7)), (4, Some(7)), (5, Some(8))] {
            switch.add(PortId(port), member(port as u8, vlan)).unwrap();
        }
        switch.uplink(true);
        switch
    }

    fn to(switch: &mut Switch, from: PortId, destination: Mac, source: Mac, tag: Option<u16>) -> Vec<(u16, Tag)> {
        let mut targets = Vec::new();
        switch.forward(from, destination, source, tag, Instant::now(), &mut targets);
        targets.into_iter().map(|(port, tag)| (port.0, tag)).collect()
    }

    const UP: u16 = u16::MAX;

    #[test]
    fn known_addresses_are_reached_and_nobody_hears_his_own() {
        let mut switch = switch();
        assert_eq!(to(&mut switch, PortId(1), mac(2), mac(1), None), [(2, Tag::AsIs)]);
        assert_eq!(to(&mut switch, PortId(1), mac(1), mac(1), None), []);
        assert_eq!(to(&mut switch, PortId(3), mac(4), mac(3), None), [(4, Tag::AsIs)]);
        assert_eq!(to(&mut switch, PortId(3), mac(99), mac(3), None), [(UP, Tag::Insert(7))], "unknown: the uplink");
        assert_eq!(to(&mut switch, PortId(1), mac(99), mac(1), None), [(UP, Tag::AsIs)]);
        assert_eq!(to(&mut switch, PortId::UPLINK, mac(99), mac(98), None), [], "no card has it");
    }

    #[test]
    fn vlans_are_kept_apart() {
        let mut switch = switch();
        let all = Mac::BROADCAST;
        let lan = [(1, Tag::AsIs), (2, Tag::AsIs)];
        assert_eq!(to(&mut switch, PortId::UPLINK, all, mac(98), None), lan);
        let seven = [(1, Tag::AsIs), (2, Tag::AsIs), (3, Tag::Strip), (4, Tag::Strip)];
        assert_eq!(to(&mut switch, PortId::UPLINK, all, mac(98), Some(7)), seven);
        let from_three = [(1, Tag::Insert(7)), (2, Tag::Insert(7)), (4, Tag::AsIs), (UP, Tag::Insert(7))];
        assert_eq!(to(&mut switch, PortId(3), all, mac(3), None), from_three);
        assert_eq!(to(&mut switch, PortId(3), mac(5), mac(3), None), [(UP, Tag::Insert(7))], "5 is in another");
        assert_eq!(to(&mut switch, PortId::UPLINK, mac(3), mac(98), Some(7)), [(3, Tag::Strip)]);
        assert_eq!(to(&mut switch, PortId::UPLINK, mac(3), mac(98), Some(8)), []);
        assert_eq!(
            to(&mut switch, PortId(1), mac(2), mac(1), Some(9)),
            [(2, Tag::AsIs)],
            "tags between two of no VLAN"
        );
        assert_eq!(to(&mut switch, PortId::UPLINK, all, mac(98), Some(0)), lan, "a priority only");
    }

    #[test]
    fn an_address_is_had_once_and_what_is_fixed_is_not_learnt_away() {
        let mut switch = switch();
        assert_eq!(switch.add(PortId(9), member(1, None)), Err(Taken(mac(1))));
        switch.add(PortId(9), member(1, Some(9))).expect("another VLAN");
        to(&mut switch, PortId::UPLINK, mac(99), mac(2), None);
        assert_eq!(to(&mut switch, PortId(1), mac(2), mac(1), None), [(2, Tag::AsIs)]);
        switch.remove(PortId(2));
        assert_eq!(to(&mut switch, PortId(1), mac(2), mac(1), None), [(UP, Tag::AsIs)]);
        switch.add(PortId(2), member(2, None)).expect("free again");
    }

    #[test]
    fn what_is_learnt_is_bounded_moves_and_goes_with_its_card() {
        let mut switch = switch();
        let bridge = Member { any_source: true, ..member(6, None) };
        switch.add(PortId(6), bridge).unwrap();
        let others = |at: u32| Mac([2, 1, (at >> 16) as u8, (at >> 8) as u8, at as u8, 0]);
        for at in 0..10_000 {
            to(&mut switch, PortId(6), mac(1), others(at), None);
        }
        assert_eq!(switch.learnt(), LEARNT_BEHIND_CARD);
        for at in 10_000..20_000 {
            to(&mut switch, PortId::UPLINK, mac(1), others(at), None);
        }
        assert_eq!(switch.learnt(), LEARNT_BEHIND_CARD + LEARNT_BEHIND_UPLINK);
        assert_eq!(to(&mut switch, PortId(1), others(3), mac(1), None), [(6, Tag::AsIs)]);
        to(&mut switch, PortId::UPLINK, mac(1), others(3), None);
        assert_eq!(
            to(&mut switch, PortId(1), others(9999), mac(1), None),
            [(6, Tag::AsIs), (UP, Tag::AsIs)],
            "not learnt"
        );
        switch.remove(PortId(6));
        switch.uplink(false);
        assert_eq!(switch.learnt(), 0);
        assert!(switch.behind.is_empty());
    }

    #[test]
    fn t21_invented_addresses_have_a_full_table_searched_once_in_a_second_and_old_ones_make_room() {
        let mut switch = switch();
        let start = Instant::now();
        let mut targets = Vec::new();
        let mut come = |switch: &mut Switch, at: u32, now: Instant| {
            let source = Mac([2, 1, (at >> 16) as u8, (at >> 8) as u8, at as u8, 0]);
            switch.forward(PortId::UPLINK, mac(1), source, None, now, &mut targets);
            targets.clear();
        };
        for at in 0..50_000 {
            come(&mut switch, at, start + Duration::from_millis(u64::from(at) / 20));
        }
        assert_eq!(switch.learnt(), LEARNT_BEHIND_UPLINK);
        assert!(switch.sweeps <= 3, "{} in 2.5 s", switch.sweeps);
        come(&mut switch, 60_000, start + AGE + Duration::from_secs(3));
        assert_eq!(switch.learnt(), 1, "all others are old");
    }

    #[test]
    fn bridges_talk_to_each_other_only() {
        let mut switch = switch();
        let group = Mac([0x01, 0x80, 0xC2, 0, 0, 0x0E]);
        assert_eq!(to(&mut switch, PortId::UPLINK, group, mac(98), None), []);
        assert_eq!(to(&mut switch, PortId(1), group, mac(1), None), []);
    }
}
