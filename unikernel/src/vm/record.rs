//! What a VM was created with: `vm.json`.

use std::fs;
use std::io;

use serde::{Deserialize, Serialize};

use super::Places;
use super::pci::Bdf;
use super::places::{self, at};
use crate::image::DomainType;
use crate::image::xl::Domain;
use crate::toolstack::Refusal;
use crate::toolstack::domain::or_none;

/// Its name in the VM's directory.
pub const FILE: &str = "vm.json";
/// Of the format.
const VERSION: u32 = 1;

/// A service VM as it was created.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Of the format: 1.
    pub schema_version: u32,
    /// Its name.
    pub name: String,
    /// PV or PVH.
    #[serde(rename = "type")]
    pub kind: DomainType,
    /// Memory in MiB.
    pub memory_mib: u32,
    /// Virtual CPUs.
    pub vcpus: u32,
    /// PCI devices that are its own.
    pub pci: Vec<Bdf>,
    /// Its own disks, in `xl`'s words.
    pub disks: Vec<String>,
    /// Its own network cards, in `xl`'s words.
    pub nets: Vec<String>,
    /// Further words for its kernel's command line.
    pub append: String,
}

impl Record {
    /// A record of this format.
    pub fn new(name: &str, kind: DomainType) -> Record {
        Record {
            schema_version: VERSION,
            name: name.to_owned(),
            kind,
            memory_mib: 128,
            vcpus: 1,
            pci: Vec::new(),
            disks: Vec::new(),
            nets: Vec::new(),
            append: String::new(),
        }
    }

    /// Reads that of a VM.
    ///
    /// # Errors
    /// [`Refusal::NotFound`] with the VMs there are.
    pub fn load(places: &Places, name: &str) -> Result<Record, Refusal> {
        let path = places.of(name).join(FILE);
        let text = match fs::read_to_string(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound || !is_name(name) => {
                let names = places.names()?;
                let names: Vec<&str> = names.iter().map(String::as_str).collect();
                let text = format!(
                    "no service VM named \"{name}\" has been created (there is: {}); `windsor vm create {name}` makes one",
                    or_none(&names)
                );
                return Err(Refusal::NotFound(text));
            }
            other => other.map_err(|error| at(&path, &error))?,
        };
        let record: Record =
            serde_json::from_str(&text).map_err(|error| Refusal::Failed(format!("{}: {error}", path.display())))?;
        if record.schema_version != VERSION || record.name != name {
            let (version, its) = (record.schema_version, &record.name);
            return Err(Refusal::Failed(format!("{}: format {version} of \"{its}\"", path.display())));
        }
        Ok(record)
    }

    /// Writes it into the directory of a VM.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn store(&self, dir: &std::path::Path) -> Result<(), Refusal> {
        let text = serde_json::to_string_pretty(self).map_err(|error| Refusal::Failed(error.to_string()))?;
        places::write(&dir.join(FILE), format!("{text}\n").as_bytes())
    }

    /// What `xl create` reads.
    pub fn xl(&self, places: &Places) -> String {
        let pci: Vec<String> = self.pci.iter().map(Bdf::to_string).collect();
        Domain {
            name: &self.name,
            kind: self.kind,
            memory_mib: self.memory_mib,
            vcpus: self.vcpus,
            append: &self.append,
            dom0_dir: Some(&places.current(&self.name)),
            pci: &pci,
            disks: &self.disks,
            nets: &self.nets,
        }
        .text()
    }
}

/// Whether a word can be a VM's name; one that can never leads out of a directory.
pub fn is_name(name: &str) -> bool {
    crate::config::is_vm_name(name)
}
