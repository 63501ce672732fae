//! A frontend's place in the store: its own directory, where it writes, and the backend's, which it watches.
//!
//! Nothing is written unless our directory is still there and still says what we wrote last: a toolstack that has
//! removed it, or put a new one in its place, does not want our word in it.

use super::XenbusState;
use crate::{Client, Error, Store};

/// The two directories of a device, as its frontend sees them.
#[derive(Debug)]
pub struct Frontend {
    dir: String,
    backend: String,
    token: String,
    /// What our state was when we looked last, or wrote it.
    ours: XenbusState,
    theirs: XenbusState,
    gone: bool,
}

impl Frontend {
    /// Takes up a directory in state Initialising, relative to the domain. The backend's state is watched from now on
    /// with the token.
    ///
    /// # Errors
    /// The store did not answer, or did not take the watch.
    pub fn open(store: &mut Client, dir: String, backend: String, token: String) -> Result<Frontend, Error> {
        store.watch(&format!("{backend}/state"), &token)?;
        Ok(Frontend { dir, backend, token, ours: XenbusState::Initialising, theirs: XenbusState::Unknown, gone: false })
    }

    /// The backend's directory.
    pub fn backend(&self) -> &str {
        &self.backend
    }

    /// Our state and the backend's, as seen last.
    pub fn states(&self) -> (XenbusState, XenbusState) {
        (self.ours, self.theirs)
    }

    /// Whether our directory has gone, or is another device's by now.
    pub fn is_gone(&self) -> bool {
        self.gone
    }

    /// Looks at both states. From then on [`Frontend::is_gone`] says whether there is anything left to do.
    ///
    /// # Errors
    /// The store did not answer.
    pub fn look(&mut self, store: &mut Client) -> Result<(), Error> {
        let (ours, theirs) = store.transaction(|tx| {
            let ours = tx.read_optional(&format!("{}/state", self.dir))?;
            let backend = tx.read_optional(&format!("{}/backend", self.dir))?;
            // A directory with another backend is another device.
            let ours = ours.filter(|_| backend.is_some_and(|path| path == self.backend.as_bytes()));
            let theirs = match tx.read_optional(&format!("{}/state", self.backend)) {
                // Where the backend's directory is gone C xenstored says EACCES, for we may not read its parent.
                Err(error) if error.is_permission() => None,
                other => other?,
            };
            Ok((ours, theirs))
        })?;
        let state = |value: Option<Vec<u8>>| value.map_or(XenbusState::Unknown, |value| XenbusState::parse(&value));
        self.theirs = state(theirs);
        self.gone |= state(ours) != self.ours;
        Ok(())
    }

    /// Writes keys below our directory and then our state, where there is one to write, all at once; nothing at all
    /// where the directory is no longer ours, which the next look finds out.
    ///
    /// # Errors
    /// The store did not answer.
    pub fn write(
        &mut self,
        store: &mut Client,
        keys: &[(String, String)],
        state: Option<XenbusState>,
    ) -> Result<(), Error> {
        let (dir, expected, gone) = (&self.dir, self.ours, self.gone);
        let written = store.transaction(|tx| {
            let found = tx.read_optional(&format!("{dir}/state"))?;
            if gone || found.is_none_or(|found| XenbusState::parse(&found) != expected) {
                return Ok(false);
            }
            for (key, value) in keys {
                tx.write(&format!("{dir}/{key}"), value.as_bytes())?;
            }
            if let Some(state) = state {
                tx.write(&format!("{dir}/state"), state.number().to_string().as_bytes())?;
            }
            Ok(true)
        })?;
        if let (true, Some(state)) = (written, state) {
            self.ours = state;
        }
        Ok(())
    }

    /// Ends the watch.
    pub fn release(self, store: &mut Client) {
        if let Err(error) = store.unwatch(&format!("{}/state", self.backend), &self.token) {
            tracing::debug!(%error, "ending a watch failed");
        }
    }
}
