//! What dom0 asks beside nodes: about domains, about the daemon, and for what newer daemons have (Xen 4.22).

use super::Client;
use super::exchange::unfit;
use crate::error::Error;
use crate::wire::{ErrorName, MessageType};

impl Client {
    /// A domain's directory.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn domain_path(&mut self, domid: u16) -> Result<String, Error> {
        self.answer(MessageType::GetDomainPath, &[&domid])
    }

    /// Whether the daemon serves a domain.
    ///
    /// # Errors
    /// `EACCES` for all but dom0.
    pub fn is_introduced(&mut self, domid: u16) -> Result<bool, Error> {
        Ok(self.answer(MessageType::IsDomainIntroduced, &[&domid])? == "T")
    }

    /// Makes a domain known, with its ring's page frame and its event channel.
    ///
    /// # Errors
    /// `EACCES` for all but dom0; see [`Error`].
    pub fn introduce(&mut self, domid: u16, frame: u64, port: u32) -> Result<(), Error> {
        self.answer(MessageType::Introduce, &[&domid, &frame, &port]).map(drop)
    }

    /// Lets go of a domain.
    ///
    /// # Errors
    /// `ENOENT` for one that is not there, `EACCES` for all but dom0.
    pub fn release(&mut self, domid: u16) -> Result<(), Error> {
        self.answer(MessageType::Release, &[&domid]).map(drop)
    }

    /// A domain that was shut down goes on: its next shutdown is told again.
    ///
    /// # Errors
    /// As [`Client::release`].
    pub fn resume(&mut self, domid: u16) -> Result<(), Error> {
        self.answer(MessageType::Resume, &[&domid]).map(drop)
    }

    /// Lets a domain act for another one.
    ///
    /// # Errors
    /// As [`Client::release`].
    pub fn set_target(&mut self, domid: u16, target: u16) -> Result<(), Error> {
        self.answer(MessageType::SetTarget, &[&domid, &target]).map(drop)
    }

    /// A command for the daemon itself, as `xenstore-control` has them.
    ///
    /// # Errors
    /// `EINVAL` for one that it does not know.
    pub fn control(&mut self, words: &[&str]) -> Result<String, Error> {
        let words: Vec<&dyn ToString> = words.iter().map(|word| word as &dyn ToString).collect();
        self.answer(MessageType::Control, &words)
    }

    /// The features (`XENSTORE_SERVER_FEATURE_*`) that we, or a domain, may count on; none if the daemon does not tell,
    /// or not us: some tell only dom0.
    ///
    /// # Errors
    /// `ENOENT` for a domain that is not there, `EACCES` for all but dom0 who ask about a domain.
    pub fn features(&mut self, domid: Option<u16>) -> Result<Option<u32>, Error> {
        let answer = match &domid {
            Some(domid) => self.answer(MessageType::GetFeature, &[domid]),
            None => match self.answer(MessageType::GetFeature, &[]) {
                Err(error) if error.is_permission() => return Ok(None),
                other => other,
            },
        };
        known(answer)?.map(|text| number(&text)).transpose()
    }

    /// Says what a domain that is not introduced yet may count on; false if the daemon has no such request.
    ///
    /// # Errors
    /// `EBUSY` after its introduction, `EINVAL` for features that the daemon does not have.
    pub fn set_features(&mut self, domid: u16, features: u32) -> Result<bool, Error> {
        Ok(known(self.answer(MessageType::SetFeature, &[&domid, &features]))?.is_some())
    }

    /// The names of all quotas; none if the daemon does not tell.
    ///
    /// # Errors
    /// `EACCES` for all but dom0.
    pub fn quotas(&mut self) -> Result<Option<Vec<String>>, Error> {
        let names = known(self.answer(MessageType::GetQuota, &[]))?;
        Ok(names.map(|names| names.split_ascii_whitespace().map(str::to_owned).collect()))
    }

    /// A quota of a domain, or the one of domains to come; 0 is no limit. None if the daemon does not tell.
    ///
    /// # Errors
    /// `EINVAL` for a name that is none, `ENOENT` for a domain that is not there, `EACCES` for all but dom0.
    pub fn quota(&mut self, domid: Option<u16>, name: &str) -> Result<Option<u32>, Error> {
        let answer = match &domid {
            Some(domid) => self.answer(MessageType::GetQuota, &[domid, &name]),
            None => self.answer(MessageType::GetQuota, &[&name]),
        };
        known(answer)?.map(|text| number(&text)).transpose()
    }

    /// Sets a quota; false if the daemon has no such request.
    ///
    /// # Errors
    /// As [`Client::quota`].
    pub fn set_quota(&mut self, domid: Option<u16>, name: &str, value: u32) -> Result<bool, Error> {
        let answer = match &domid {
            Some(domid) => self.answer(MessageType::SetQuota, &[domid, &name, &value]),
            None => self.answer(MessageType::SetQuota, &[&name, &value]),
        };
        Ok(known(answer)?.is_some())
    }

    /// Asks with words and gets text.
    fn answer(&mut self, kind: MessageType, words: &[&dyn ToString]) -> Result<String, Error> {
        let words: Vec<String> = words.iter().map(|word| word.to_string()).collect();
        if words.iter().any(|word| word.contains('\0')) {
            return Err(unfit(kind, "", "a word has no NUL".into()));
        }
        // Without a word there is nothing at all: one that is empty would be the name of a quota.
        let payload: String = words.iter().flat_map(|word| [word, "\0"]).collect();
        let answer = self.ask(kind, 0, "", &[payload.as_bytes()])?;
        let text = String::from_utf8(answer).map_err(|_| Error::NotUtf8 { path: format!("{kind:?}") })?;
        Ok(text.trim_end_matches('\0').to_owned())
    }
}

/// None from a daemon of before the request.
fn known(answer: Result<String, Error>) -> Result<Option<String>, Error> {
    match answer {
        Err(error) if error.name() == Some(&ErrorName::Enosys) => Ok(None),
        other => other.map(Some),
    }
}

fn number(text: &str) -> Result<u32, Error> {
    text.parse().map_err(|_| Error::Protocol(format!("{:?} is no number", text.chars().take(32).collect::<String>())))
}
