//! Whose an event is.

use super::{Channel, SourceId};

/// Which queue an event is for. Ports are numbered by the kernel, from the bottom, so that a table by port stays small;
/// sources are few.
#[derive(Default)]
pub(super) struct Channels {
    /// Of all sources.
    pub(super) count: usize,
    sources: Vec<(SourceId, Vec<Option<u32>>)>,
}

impl Channels {
    pub(super) fn insert(&mut self, Channel { source, port }: Channel, queue: usize) {
        let known = self.sources.iter().position(|(id, _)| *id == source);
        let at = known.unwrap_or_else(|| {
            self.sources.push((source, Vec::new()));
            self.sources.len() - 1
        });
        let (queues, port) = (&mut self.sources[at].1, port.0 as usize);
        if queues.len() <= port {
            queues.resize(port + 1, None);
        }
        self.count += usize::from(queues[port].is_none());
        queues[port] = Some(queue as u32);
    }

    pub(super) fn remove(&mut self, Channel { source, port }: Channel) {
        let Some(at) = self.sources.iter().position(|(id, _)| *id == source) else { return };
        let queues = &mut self.sources[at].1;
        let removed = queues.get_mut(port.0 as usize).and_then(Option::take);
        self.count -= usize::from(removed.is_some());
        if queues.iter().all(Option::is_none) {
            self.sources.swap_remove(at);
        }
    }

    #[inline]
    pub(super) fn get(&self, Channel { source, port }: Channel) -> Option<usize> {
        let (_, queues) = self.sources.iter().find(|(id, _)| *id == source)?;
        queues.get(port.0 as usize).copied().flatten().map(|queue| queue as usize)
    }
}
