//! Asking service VMs to bring what they publish up to date.

use xenstore::{Client, Error, Store};

use crate::publish;
use crate::store::Nodes;

/// What was asked of one service VM (`data/windsor/sample`).
pub struct Sample {
    root: String,
    token: String,
}

impl Sample {
    /// Asks the service VM of this number.
    ///
    /// # Errors
    /// As [`Store::write`].
    pub fn ask(store: &mut Client, service: u16) -> Result<Sample, Error> {
        let sample = Sample {
            root: format!("/local/domain/{service}/{}", publish::ROOT),
            token: format!("{:016x}", fastrand::u64(..)),
        };
        store.write(&format!("{}/sample", sample.root), sample.token.as_bytes())?;
        Ok(sample)
    }

    /// True once all that is published is from after the question.
    ///
    /// # Errors
    /// As [`Store::read_optional`].
    pub fn is_answered(&self, store: &mut Client) -> Result<bool, Error> {
        let Some(answered) = store.text(&format!("{}/sampled", self.root))? else { return Ok(false) };
        // There is one node for everybody's question. Whoever has asked since has asked later, so his answer is good for
        // us as well, and ours may never be given. That he has asked later the node of the questions says, read second: it
        // held ours once, and no token comes twice.
        Ok(answered == self.token || store.text(&format!("{}/sample", self.root))?.as_ref() == Some(&answered))
    }
}
