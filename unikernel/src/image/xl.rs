//! The domain configuration that `xl create` reads.

use std::fmt::{self, Write};
use std::path::Path;

use super::manifest::{INITRAMFS, KERNEL};

/// How Xen runs a service VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DomainType {
    /// Paravirtualised: the only type that can own a PCI device. Data moves through the arena.
    Pv,
    /// Hardware-assisted without firmware: zero copy.
    Pvh,
}

impl fmt::Display for DomainType {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::Pv => "pv",
            Self::Pvh => "pvh",
        })
    }
}

/// What a service VM's configuration says.
#[derive(Clone, Debug)]
pub struct Domain<'a> {
    /// Xen's name for the domain: no quotes, no blanks.
    pub name: &'a str,
    /// PV or PVH.
    pub kind: DomainType,
    /// Memory in MiB.
    pub memory_mib: u32,
    /// Virtual CPUs.
    pub vcpus: u32,
    /// Words for the kernel's command line, after those every service VM gets.
    pub append: &'a str,
    /// The directory that will hold kernel and initramfs in dom0; without one the paths are plain file names.
    pub dom0_dir: Option<&'a Path>,
    /// PCI devices that are its own, in `xl`'s words.
    pub pci: &'a [String],
    /// Its own disks, in `xl`'s words.
    pub disks: &'a [String],
    /// Its own network cards, in `xl`'s words.
    pub nets: &'a [String],
}

/// The kernel command line that every service VM gets. A panic ends the domain after a second, so that dom0 sees a
/// crash instead of a silent VM. With `trusted=0` blkfront bounces its data: a guest's page, mapped here, cannot be
/// granted on to the backend of a volume that is itself a PV disk.
pub const COMMAND_LINE: &str = "console=hvc0 quiet panic=1 xen_blkfront.trusted=0";

impl Domain<'_> {
    /// The text of `NAME.cfg`. It follows xl.cfg(5).
    pub fn text(&self) -> String {
        let Self { name, kind, memory_mib, vcpus, .. } = self;
        let mut out = format!("# Service VM {name}, a Xen driver domain, made by `windsor image build`.\n");
        if self.dom0_dir.is_none() {
            let _ = write!(
                out,
                "# kernel and ramdisk are file names beside this file, and xl looks from where it is started:\n\
                 #     cd DIRECTORY && xl create {name}.cfg\n"
            );
        }
        let path = |file: &str| match self.dom0_dir {
            Some(dir) => quoted(&dir.join(file).to_string_lossy()),
            None => quoted(file),
        };
        let mut extra = COMMAND_LINE.to_owned();
        for word in self.append.split_whitespace() {
            extra.push(' ');
            extra.push_str(word);
        }
        let _ = write!(
            out,
            "name = \"{name}\"\n\
             type = \"{kind}\"\n\
             kernel = {}\n\
             ramdisk = {}\n\
             extra = {}\n\
             memory = {memory_mib}\n\
             vcpus = {vcpus}\n\
             driver_domain = 1\n\
             on_poweroff = \"destroy\"\n\
             on_reboot = \"restart\"\n\
             on_crash = \"restart\"\n",
            path(KERNEL),
            path(INITRAMFS),
            quoted(&extra),
        );
        for (key, values) in [("pci", self.pci), ("disk", self.disks), ("vif", self.nets)] {
            if !values.is_empty() {
                let values: Vec<String> = values.iter().map(|value| quoted(value)).collect();
                let _ = writeln!(out, "{key} = [{}]", values.join(", "));
            }
        }
        out
    }
}

/// A string for xl's parser: it ends at the quote it began with and knows no escape for that quote.
fn quoted(text: &str) -> String {
    let quote = if text.contains('"') { '\'' } else { '"' };
    format!("{quote}{text}{quote}")
}

/// Whether `text` can stand in the file: no line end, and not both kinds of quote.
pub fn quotable(text: &str) -> bool {
    let both = text.contains('"') && text.contains('\'');
    !both && !text.contains(['\n', '\r', '\\'])
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAMPLE: Domain<'_> = Domain {
        name: "acme",
        kind: DomainType::Pv,
        memory_mib: 128,
        vcpus: 2,
        append: "",
        dom0_dir: None,
        pci: &[],
        disks: &[],
        nets: &[],
    };

    fn settings(domain: &Domain<'_>) -> Vec<String> {
        domain.text().lines().filter(|line| !line.starts_with('#')).map(str::to_owned).collect()
    }

    #[test]
    fn the_whole_text() {
        assert_eq!(
            settings(&SAMPLE),
            [
                "name = \"acme\"",
                "type = \"pv\"",
                "kernel = \"vmlinuz\"",
                "ramdisk = \"initramfs.img\"",
                "extra = \"console=hvc0 quiet panic=1 xen_blkfront.trusted=0\"",
                "memory = 128",
                "vcpus = 2",
                "driver_domain = 1",
                "on_poweroff = \"destroy\"",
                "on_reboot = \"restart\"",
                "on_crash = \"restart\"",
            ]
        );
        assert!(SAMPLE.text().contains("xl create acme.cfg"));
    }

    #[test]
    fn widths() {
        let domain = Domain {
            kind: DomainType::Pvh,
            append: "  loglevel=7   a=\"b c\"",
            dom0_dir: Some(Path::new("/var/lib/windsor")),
            ..SAMPLE
        };
        let lines = settings(&domain);
        assert_eq!(lines[1], "type = \"pvh\"");
        assert_eq!(lines[2], "kernel = \"/var/lib/windsor/vmlinuz\"");
        assert_eq!(lines[4], format!("extra = '{COMMAND_LINE} loglevel=7 a=\"b c\"'"));
        assert!(!domain.text().contains("xl create"));
    }

    #[test]
    fn devices_stand_in_lists() {
        let disks = ["phy:/dev/vg0/a,xvda,w".to_owned(), "format=raw,vdev=xvdb,target=it's".to_owned()];
        let domain = Domain { pci: &["0000:41:00.0".to_owned()], disks: &disks, ..SAMPLE };
        let lines = settings(&domain);
        assert_eq!(lines[11], "pci = [\"0000:41:00.0\"]");
        assert_eq!(lines[12], "disk = [\"phy:/dev/vg0/a,xvda,w\", \"format=raw,vdev=xvdb,target=it's\"]");
        assert_eq!(lines.len(), 13);
    }

    #[test]
    fn quotes() {
        assert!(quotable("a \"b\"") && quotable("a 'b'"));
        assert!(!quotable("\"'") && !quotable("a\nb"));
    }
}
