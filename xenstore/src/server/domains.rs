//! The domains that are there, each with its connections, its limits and what it may still write.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use super::perms::Who;
use super::quota::{Limits, Quota};
use super::rate::{Credit, Rates};

/// A domain but dom0.
pub struct Domain {
    /// Its connections.
    pub connections: BTreeSet<u64>,
    /// The socket it connects to.
    pub listener: u64,
    /// The domain it acts for as well.
    pub target: Option<u16>,
    /// What it may use.
    pub limits: Limits,
    /// What it may write.
    pub credit: Credit,
    /// It is above the soft limit of memory, and the log says so.
    pub is_fat: bool,
}

/// All of them.
pub struct Domains {
    known: BTreeMap<u16, Domain>,
    /// What a domain may use that nothing else was said of.
    pub limits: Limits,
    /// What they share for writing.
    pub rates: Rates,
}

impl Domains {
    /// None but dom0.
    pub fn new(limits: Limits) -> Domains {
        Domains { known: BTreeMap::new(), limits, rates: Rates::new(limits.write_rate) }
    }

    /// One comes.
    pub fn insert(&mut self, domid: u16, listener: u64, now: Instant) {
        let credit = self.rates.introduced(now);
        let limits = self.limits;
        let connections = BTreeSet::new();
        let domain = Domain { connections, listener, target: None, limits, credit, is_fat: false };
        self.known.insert(domid, domain);
    }

    /// One goes; those that act for it do so no more.
    pub fn remove(&mut self, domid: u16) -> Option<Domain> {
        let domain = self.known.remove(&domid)?;
        self.rates.released(domain.credit);
        for other in self.known.values_mut().filter(|other| other.target == Some(domid)) {
            other.target = None;
        }
        Some(domain)
    }

    /// True for dom0 and the domains that are there.
    pub fn contains(&self, domid: u16) -> bool {
        domid == 0 || self.known.contains_key(&domid)
    }

    /// One but dom0.
    pub fn get(&self, domid: u16) -> Option<&Domain> {
        self.known.get(&domid)
    }

    /// The same, to change it.
    pub fn get_mut(&mut self, domid: u16) -> Option<&mut Domain> {
        self.known.get_mut(&domid)
    }

    /// All but dom0.
    pub fn iter(&self) -> impl Iterator<Item = (u16, &Domain)> {
        self.known.iter().map(|(domid, domain)| (*domid, domain))
    }

    /// As what a domain's requests are judged.
    pub fn who(&self, domid: u16) -> Who {
        Who { domid, target: self.get(domid).and_then(|domain| domain.target) }
    }

    /// What a domain may use.
    pub fn limits(&self, domid: u16) -> Limits {
        self.get(domid).map_or(self.limits, |domain| domain.limits)
    }

    /// Changes one limit, of the domains that are there and of those to come.
    pub fn set_limit(&mut self, quota: &Quota, value: usize) {
        quota.set(&mut self.limits, value);
        self.known.values_mut().for_each(|domain| quota.set(&mut domain.limits, value));
    }

    /// A domain has written.
    pub fn written(&mut self, domid: u16, now: impl FnOnce() -> Instant) {
        if self.rates.transactions == 0 {
            return;
        }
        if let Some(domain) = self.known.get_mut(&domid) {
            self.rates.written(&mut domain.credit, now());
        }
    }

    /// How long a domain's next request has to wait.
    pub fn wait(&mut self, domid: u16) -> Option<std::time::Duration> {
        let domain = self.known.get_mut(&domid).filter(|domain| domain.credit.is_overdrawn())?;
        self.rates.wait(&mut domain.credit, Instant::now())
    }
}
