//! PCI devices for a service VM: their names, and whether Xen may give one away.

use std::fmt;
use std::path::Path;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::xl::Xl;
use crate::toolstack::Refusal;

/// Where Linux shows them.
pub const DEVICES: &str = "/sys/bus/pci/devices";

/// Domain, bus, device and function of a PCI device: `0000:41:00.0`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Bdf {
    domain: u16,
    bus: u8,
    device: u8,
    function: u8,
}

impl FromStr for Bdf {
    type Err = String;

    fn from_str(text: &str) -> Result<Bdf, String> {
        parse(text)
            .ok_or_else(|| format!("\"{text}\" names no PCI device: give one as lspci does, such as 0000:41:00.0"))
    }
}

fn parse(text: &str) -> Option<Bdf> {
    let hex = |digits: &str, most: usize| {
        let fine = !digits.is_empty() && digits.len() <= most && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
        fine.then(|| u16::from_str_radix(digits, 16).ok()).flatten()
    };
    let (rest, function) = text.rsplit_once('.')?;
    let (rest, device) = rest.rsplit_once(':')?;
    let (domain, bus) = rest.rsplit_once(':').unwrap_or(("0", rest));
    let device = u8::try_from(hex(device, 2)?).ok().filter(|device| *device < 32)?;
    let function = u8::try_from(hex(function, 1)?).ok().filter(|function| *function < 8)?;
    Some(Bdf { domain: hex(domain, 4)?, bus: u8::try_from(hex(bus, 2)?).ok()?, device, function })
}

impl fmt::Display for Bdf {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{:04x}:{:02x}:{:02x}.{:x}", self.domain, self.bus, self.device, self.function)
    }
}

impl TryFrom<String> for Bdf {
    type Error = String;

    fn try_from(text: String) -> Result<Bdf, String> {
        text.parse()
    }
}

impl From<Bdf> for String {
    fn from(bdf: Bdf) -> String {
        bdf.to_string()
    }
}

/// Refuses devices that `xl create` could not give to the VM.
///
/// # Errors
/// [`Refusal::NotFound`] with the command that makes the device assignable, or the word that there is none.
pub fn check(xl: &Xl, wanted: &[Bdf]) -> Result<(), Refusal> {
    if wanted.is_empty() {
        return Ok(());
    }
    let assignable = assignable(&xl.output(&["pci-assignable-list"])?);
    for bdf in wanted {
        if assignable.contains(bdf) {
            continue;
        }
        let there = Path::new(DEVICES).join(bdf.to_string()).exists();
        return Err(Refusal::NotFound(match there {
            true => format!(
                "PCI device {bdf} is not assignable: dom0 keeps it; `modprobe xen-pciback && xl pci-assignable-add {bdf}` lets go of it"
            ),
            false => {
                format!("PCI device {bdf} is not assignable, and this machine shows none of that name (see lspci -D)")
            }
        }));
    }
    Ok(())
}

/// What `xl pci-assignable-list` prints: one a line, newer ones with a name behind it.
pub fn assignable(text: &str) -> Vec<Bdf> {
    text.lines().filter_map(|line| line.split_whitespace().next()?.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_devices() {
        for (text, full) in [("41:00.0", "0000:41:00.0"), ("0001:0a:1f.7", "0001:0a:1f.7"), ("0:1:2.3", "0000:01:02.3")]
        {
            assert_eq!(text.parse::<Bdf>().unwrap().to_string(), full);
        }
        for text in [
            "",
            "41:00",
            "41:20.0",
            "41:00.8",
            "g1:00.0",
            "1:2:3:4.5",
            "00000:41:00.0",
            "41:00.0,permissive=1",
            "+1:00.0",
        ] {
            assert!(text.parse::<Bdf>().is_err(), "{text}");
        }
    }

    #[test]
    fn the_list_of_xl() {
        let list = assignable("0000:00:04.0 \n0000:41:00.0 nvme\n\nnothing\n");
        assert_eq!(list, ["00:04.0".parse().unwrap(), "41:00.0".parse().unwrap()]);
    }
}
