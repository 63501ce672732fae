//! `windsor vm list` and `windsor vm status`: every service VM that was created here or serves now.

use serde::Serialize;
use xenstore::Client;

use super::consumers::{self, Consumer};
use super::places::{self, Places};
use super::record::Record;
use super::xl::{Running, Xl};
use crate::image::DomainType;
use crate::image::manifest::Manifest;
use crate::toolstack::look::{self, Vm};
use crate::toolstack::{Refusal, domain};

/// A line of the list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Row {
    /// Its name.
    pub name: String,
    /// Its number while it is there.
    pub domid: Option<u16>,
    /// `stopped`, `starting`, `ready`, or what Xen says: `paused`, `crashed`, `shut down`, `dying`.
    pub state: String,
    /// Memory in MiB: what it has, or would get.
    pub memory_mib: u64,
    /// Virtual CPUs.
    pub vcpus: u32,
    /// Disks that it serves.
    pub vbds: usize,
    /// Network cards that it serves.
    pub vifs: usize,
    /// PV or PVH, where it was created here.
    #[serde(rename = "type")]
    pub kind: Option<DomainType>,
    /// Which image, where it was created here.
    pub image: Option<String>,
}

/// Everything about one VM.
#[derive(Clone, Debug, Serialize)]
pub struct Status {
    /// Of the format: 1.
    pub schema_version: u32,
    /// Its line of the list.
    #[serde(flatten)]
    pub row: Row,
    /// What it was created with, where that was here.
    pub created: Option<Record>,
    /// What it boots.
    pub manifest: Option<Manifest>,
    /// The image that `windsor vm rollback` goes back to.
    pub previous_image: Option<String>,
    /// What it says, and both states of each device.
    pub now: Option<Vm>,
    /// Guests whose requests wait for nobody, since the VM that served them is gone.
    pub orphans: Vec<Consumer>,
}

/// All lines.
///
/// # Errors
/// [`Refusal`].
pub fn rows(places: &Places, xl: &Xl, store: &mut Client) -> Result<Vec<Row>, Refusal> {
    let running = xl.list()?;
    let domains = domain::all(store)?;
    let mut rows = Vec::new();
    for name in places.names()? {
        let record = Record::load(places, &name)?;
        let domain = running.iter().find(|domain| domain.name == name);
        rows.push(row(places, store, &name, domain, Some(&record))?);
    }
    // Made without us, and yet one of ours.
    for domain in &domains {
        if rows.iter().all(|row| row.domid != Some(domain.domid)) && consumers::is_ready(store, domain.domid)? {
            let running = running.iter().find(|running| running.domid == domain.domid);
            rows.push(row(places, store, &domain.name, running, None)?);
        }
    }
    rows.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(rows)
}

fn row(
    places: &Places,
    store: &mut Client,
    name: &str,
    running: Option<&Running>,
    record: Option<&Record>,
) -> Result<Row, Refusal> {
    let (mut vbds, mut vifs) = (0, 0);
    let mut state = "stopped";
    if let Some(running) = running {
        for user in consumers::of(store, running.domid)? {
            if user.device.starts_with("vif") { vifs += 1 } else { vbds += 1 }
        }
        state = match running.state() {
            "running" if consumers::is_ready(store, running.domid)? => "ready",
            "running" => "starting",
            other => other,
        };
    }
    Ok(Row {
        name: name.to_owned(),
        domid: running.map(|running| running.domid),
        state: state.to_owned(),
        memory_mib: running.map_or(record.map_or(0, |record| record.memory_mib.into()), |running| running.memory_mib),
        vcpus: running.map_or(record.map_or(0, |record| record.vcpus), |running| running.vcpus),
        vbds,
        vifs,
        kind: record.map(|record| record.kind),
        image: record.and_then(|_| places::target(&places.current(name))),
    })
}

/// Everything about the VM of this name.
///
/// # Errors
/// [`Refusal::NotFound`] when there is neither a record nor a domain of it.
pub fn status(places: &Places, xl: &Xl, store: &mut Client, name: &str) -> Result<Status, Refusal> {
    let running = xl.find(name)?;
    let created = match Record::load(places, name) {
        Ok(record) => Some(record),
        Err(Refusal::NotFound(_)) if running.is_some() => None,
        Err(refusal) => return Err(refusal),
    };
    let row = row(places, store, name, running.as_ref(), created.as_ref())?;
    let now = look::status(store)?.vms.into_iter().find(|vm| Some(vm.domid) == row.domid);
    let manifest = created.as_ref().and_then(|_| Manifest::read(&places.current(name)).ok());
    Ok(Status {
        schema_version: 1,
        manifest,
        previous_image: created.as_ref().and_then(|_| places::target(&places.previous(name))),
        created,
        now,
        orphans: consumers::orphans(store)?,
        row,
    })
}
