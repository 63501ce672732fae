//! Domains by name.

use xenstore::Error;

use super::Refusal;
use crate::store::Nodes;

/// A domain as the store knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Domain {
    /// Its number.
    pub domid: u16,
    /// Its name; empty when it has none (yet).
    pub name: String,
}

/// All domains, by number. dom0 itself is among them where it has a directory.
///
/// # Errors
/// When the store does not answer.
pub fn all(store: &mut impl Nodes) -> Result<Vec<Domain>, Error> {
    let mut domains = Vec::new();
    for entry in store.list("/local/domain")? {
        let Ok(domid) = entry.parse::<u16>() else {
            continue;
        };
        let name = store.text(&format!("/local/domain/{domid}/name"))?.unwrap_or_default();
        domains.push(Domain { domid, name });
    }
    domains.sort_by_key(|domain| domain.domid);
    Ok(domains)
}

/// The domain with this name or number.
///
/// # Errors
/// [`Refusal::NotFound`] with the names that exist.
pub fn find(store: &mut impl Nodes, name: &str, what: &str) -> Result<Domain, Refusal> {
    let domains = all(store)?;
    let number = name.parse::<u16>().ok();
    // A name made of digits is a name first.
    let found = domains
        .iter()
        .find(|domain| domain.name == name)
        .or_else(|| domains.iter().find(|domain| Some(domain.domid) == number));
    found.cloned().ok_or_else(|| {
        let names: Vec<&str> =
            domains.iter().map(|domain| domain.name.as_str()).filter(|name| !name.is_empty()).collect();
        Refusal::NotFound(format!("no {what} named \"{name}\" (there is: {})", or_none(&names)))
    })
}

/// Names for a message.
pub fn or_none(names: &[&str]) -> String {
    if names.is_empty() { "none".to_owned() } else { names.join(", ") }
}
