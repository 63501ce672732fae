//! Names of virtual disks and their numbers in xenstore (`xen-vbd-interface(7)`).
//!
//! | name | number |
//! | --- | --- |
//! | xvda to xvdp, partition to 15 | 202 << 8 \| disk << 4 \| partition |
//! | xvdq and later, or a partition above 15 | 1 << 28 \| disk << 8 \| partition |
//! | sda to sdp | 8 << 8 \| disk << 4 \| partition |
//! | hda, hdb; hdc, hdd | 3 << 8 or 22 << 8 \| (disk & 1) << 6 \| partition |

use std::collections::HashSet;
use std::fmt;
use std::str::FromStr;

/// A virtual disk's number: the name of its directory in xenstore.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Vdev(pub u32);

/// Most disks: the extended numbers have 20 bits for them.
const MAX_DISK: u32 = 1 << 20;

impl Vdev {
    /// Disk `index` (0 is xvda), whole.
    pub fn xvd(index: u32) -> Vdev {
        match index {
            0..16 => Vdev(202 << 8 | index << 4),
            _ => Vdev(1 << 28 | (index % MAX_DISK) << 8),
        }
    }

    /// The first whole disk whose number is not among `used`, which is what a guest's directory of disks lists.
    pub fn first_free(used: &[String]) -> Option<Vdev> {
        let used: HashSet<&str> = used.iter().map(String::as_str).collect();
        (0..MAX_DISK).map(Vdev::xvd).find(|vdev| !used.contains(vdev.0.to_string().as_str()))
    }
}

/// The text names no disk.
#[derive(Debug, thiserror::Error)]
#[error("{0:?} names no virtual disk: give xvda, xvdb, ... (or sda, hda, or a number)")]
pub struct NoVdev(String);

impl FromStr for Vdev {
    type Err = NoVdev;

    fn from_str(text: &str) -> Result<Vdev, NoVdev> {
        let error = || NoVdev(text.chars().take(32).collect());
        if let Ok(number) = text.parse::<u32>() {
            return if number < 1 << 31 { Ok(Vdev(number)) } else { Err(error()) };
        }
        let (kind, rest) = match text.strip_prefix("xvd") {
            Some(rest) => ("xvd", rest),
            None => text.split_at_checked(2).ok_or_else(error)?,
        };
        let letters = rest.find(|c: char| !c.is_ascii_lowercase()).unwrap_or(rest.len());
        let (letters, digits) = rest.split_at(letters);
        if letters.is_empty() || letters.len() > 4 || digits.len() > 3 || digits.starts_with('0') {
            return Err(error());
        }
        // a..z, aa..zz: as spreadsheet columns count.
        let disk = letters.bytes().fold(0u32, |sum, c| sum * 26 + u32::from(c - b'a') + 1) - 1;
        let partition: u32 = if digits.is_empty() { 0 } else { digits.parse().map_err(|_| error())? };
        match kind {
            "xvd" if disk < 16 && partition < 16 => Ok(Vdev(202 << 8 | disk << 4 | partition)),
            "xvd" if disk < MAX_DISK && partition < 256 => Ok(Vdev(1 << 28 | disk << 8 | partition)),
            "sd" if disk < 16 && partition < 16 => Ok(Vdev(8 << 8 | disk << 4 | partition)),
            "hd" if disk < 4 && partition < 64 => {
                let major = if disk < 2 { 3 } else { 22 };
                Ok(Vdev(major << 8 | (disk & 1) << 6 | partition))
            }
            _ => Err(error()),
        }
    }
}

impl fmt::Display for Vdev {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let number = self.0;
        let (kind, disk, partition) = match number >> 8 {
            202 => ("xvd", number >> 4 & 15, number & 15),
            8 => ("sd", number >> 4 & 15, number & 15),
            3 => ("hd", number >> 6 & 3, number & 63),
            22 => ("hd", 2 + (number >> 6 & 3), number & 63),
            _ if number >> 28 == 1 => ("xvd", number >> 8 & (MAX_DISK - 1), number & 255),
            _ => return write!(f, "{number}"),
        };
        let mut letters = Vec::new();
        let mut rest = disk + 1;
        while rest > 0 {
            rest -= 1;
            letters.push(char::from(b'a' + (rest % 26) as u8));
            rest /= 26;
        }
        f.write_str(kind)?;
        letters.iter().rev().try_for_each(|letter| write!(f, "{letter}"))?;
        if partition > 0 { write!(f, "{partition}") } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_free_disk_is_found_beyond_any_number_of_others() {
        let numbers = |disks: std::ops::Range<u32>| disks.map(|n| Vdev::xvd(n).0.to_string()).collect::<Vec<_>>();
        for (used, free) in [(vec![], "xvda"), (numbers(1..9), "xvda"), (numbers(0..300), "xvdko")] {
            assert_eq!(Vdev::first_free(&used).unwrap().to_string(), free);
        }
        let mut used = numbers(0..2000);
        used.remove(700);
        assert_eq!(Vdev::first_free(&used), Some(Vdev::xvd(700)));
    }

    #[test]
    fn names_and_numbers_agree() {
        for (name, number) in [
            ("xvda", 51712),
            ("xvdb", 51728),
            ("xvda1", 51713),
            ("xvdp15", 51967),
            ("xvdq", 1 << 28 | 16 << 8),
            ("xvda16", 1 << 28 | 16),
            ("xvdz", 1 << 28 | 25 << 8),
            ("xvdaa", 1 << 28 | 26 << 8),
            ("sda", 2048),
            ("hda", 768),
            ("hdb", 832),
            ("hdc", 5632),
            ("hdd1", 5697),
        ] {
            assert_eq!(name.parse::<Vdev>().unwrap(), Vdev(number), "{name}");
            assert_eq!(Vdev(number).to_string(), name);
        }
        assert_eq!("51712".parse::<Vdev>().unwrap().to_string(), "xvda");
        assert_eq!(Vdev::xvd(16).to_string(), "xvdq");
        assert_eq!(Vdev(7).to_string(), "7");
    }

    #[test]
    fn what_names_no_disk_is_refused() {
        for name in
            ["", "xvd", "xvdA", "xvda01", "xvda-1", "fd0", "hde", "sdq", "xvdaaaaa", "xvda256", "4294967295", "é"]
        {
            assert!(name.parse::<Vdev>().is_err(), "{name}");
        }
    }
}
