//! `[[bridge]]`: a bridge that the service VM makes out of its own network cards, for networks that name it as their
//! uplink. An image has no other program that could.

use std::collections::HashSet;
use std::ops::Range;

use serde::Deserialize;
use toml::Spanned;

use super::network::Uplink;
use super::{Wrong, wrong};

/// A bridge.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bridge {
    /// The interface's name.
    pub name: String,
    /// The interfaces that it joins, beside the networks'.
    pub ports: Vec<String>,
}

/// As it stands in the file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct BridgeTable {
    name: Spanned<String>,
    #[serde(default)]
    ports: Vec<Spanned<String>>,
}

/// An interface belongs to one bridge at most, and no bridge is there twice.
pub(super) fn bridges(tables: Vec<BridgeTable>) -> Result<Vec<Bridge>, Wrong> {
    let mut taken = HashSet::new();
    let mut take = |name: Spanned<String>| -> Result<String, Wrong> {
        let at: Range<usize> = name.span();
        let name = name.into_inner();
        match Uplink::interface(&name) {
            Ok(()) if taken.insert(name.clone()) => Ok(name),
            Ok(()) => Err(wrong(at, format!("a second use of the interface \"{name}\""))),
            Err(why) => Err(wrong(at, format!("[[bridge]] {name:?} {why}"))),
        }
    };
    tables
        .into_iter()
        .map(|table| {
            let ports = table.ports.into_iter().map(&mut take).collect::<Result<_, _>>()?;
            Ok(Bridge { name: take(table.name)?, ports })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::super::Config;
    use super::super::tests::fails;

    #[test]
    fn bridges_have_names_and_ports_of_their_own() {
        let head = "[vm]\nname = 'acme'\n[[bridge]]\nname = 'br0'\n";
        let config = Config::parse(&format!("{head}ports = ['eth0', 'eth1']\n[[bridge]]\nname = 'br1'\n")).unwrap();
        let [first, second] = &config.bridges[..] else { panic!("{:?}", config.bridges) };
        assert_eq!((first.name.as_str(), first.ports.join(" ").as_str()), ("br0", "eth0 eth1"));
        assert_eq!((second.name.as_str(), second.ports.len()), ("br1", 0));
        for (text, says) in [
            (format!("{head}ports = ['br0']\n"), "4: a second use of the interface \"br0\""),
            (format!("{head}ports = ['eth0', 'eth0']\n"), "5: a second use of the interface \"eth0\""),
            (format!("{head}[[bridge]]\nname = 'br0'\n"), "6: a second use of the interface \"br0\""),
            (format!("{head}ports = ['a/b']\n"), "5: [[bridge]] \"a/b\" names no network interface"),
            (format!("{head}mtu = 9000\n"), "5: unknown field `mtu`"),
        ] {
            let said = fails(&text);
            assert!(said.starts_with(says), "{text}\n{said}");
        }
    }
}
