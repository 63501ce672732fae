//! The keys of a disk's frontend, by hand.

use xenstore::{Error, Store};

use super::queue::Queue;
use crate::blkfront::Options;
use crate::blkfront::negotiate::{RingKeys, ring_keys};

/// Names and values, in the order in which they are written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Keys(pub Vec<(String, Vec<u8>)>);

impl Keys {
    /// What a driver would write for these queues.
    pub fn of(options: &Options, queues: &[&Queue]) -> Keys {
        let ring = |queue: &&Queue| RingKeys {
            refs: queue.ring_grant.refs.iter().map(|gref| gref.0).collect(),
            port: queue.port.0,
        };
        let rings: Vec<RingKeys> = queues.iter().map(ring).collect();
        let keys = ring_keys(options, options.ring_order, &rings);
        Keys(keys.into_iter().map(|(key, value)| (key, value.into_bytes())).collect())
    }

    /// With another value for `key`, which may be a new one.
    #[must_use]
    pub fn with(mut self, key: &str, value: impl Into<Vec<u8>>) -> Keys {
        self.0.retain(|(name, _)| name != key);
        self.0.push((key.to_owned(), value.into()));
        self
    }

    /// Without `key`.
    #[must_use]
    pub fn without(mut self, key: &str) -> Keys {
        self.0.retain(|(name, _)| name != key);
        self
    }

    /// Writes them below `directory`, one by one.
    ///
    /// # Errors
    /// What the store says.
    pub fn write(&self, store: &mut impl Store, directory: &str) -> Result<(), Error> {
        self.0.iter().try_for_each(|(key, value)| store.write(&format!("{directory}/{key}"), value))
    }
}
