//! What the checks look at, read once.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit};
use xenstore::{Client, Error};

use crate::config::Config;
use crate::device::Device;
use crate::image::DomainType;
use crate::image::manifest::Manifest;
use crate::publish::{self, DeviceNode, VifNode};
use crate::store::{self, Nodes};
use crate::toolstack::Paths;
use crate::toolstack::domain::{self, Domain};
use crate::toolstack::look::{self, Seen};
use crate::vm::Places;
use crate::vm::consumers::{self, Consumer};
use crate::vm::pci::{self, Bdf};
use crate::vm::record::Record;
use crate::vm::xl::{Running, Xl};
use crate::world::World;

/// Where this runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Where {
    /// No Xen, and no embedded host was named.
    #[default]
    Nowhere,
    /// An embedded host.
    Embedded,
    /// dom0 of real Xen.
    Dom0,
    /// Another domain of real Xen.
    DomU,
}

/// Everything that is known.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// Where this runs.
    pub place: Where,
    /// `uname -r`.
    pub kernel: String,
    /// Why there is no io_uring here.
    pub no_io_uring: Option<String>,
    /// Bytes of memory that may be locked; none for any number.
    pub memlock: Option<u64>,
    /// Files that may be open.
    pub open_files: u64,
    /// Why the store does not answer.
    pub no_store: Option<String>,
    /// Why `xl` does not answer.
    pub no_xl: Option<String>,
    /// What `xl info` prints.
    pub info: BTreeMap<String, String>,
    /// What `xl list` prints.
    pub domains: Vec<Running>,
    /// PCI devices that may be given away.
    pub assignable: Vec<Bdf>,
    /// xen-pciback is there.
    pub pciback: bool,
    /// Domains that are gone, and of whose PCI devices dom0's nodes are left.
    pub pci_left: Vec<u16>,
    /// Quotas of xenstored by name, where it tells.
    pub quotas: BTreeMap<String, u64>,
    /// Service VMs, created here or serving now.
    pub vms: Vec<VmFacts>,
    /// Devices whose service VM is gone.
    pub orphans: Vec<Consumer>,
}

/// A service VM.
#[derive(Clone, Debug, Default)]
pub struct VmFacts {
    /// Its name.
    pub name: String,
    /// Its number while it is there.
    pub domid: Option<u16>,
    /// It serves.
    pub ready: bool,
    /// PV or PVH, where that is known.
    pub kind: Option<DomainType>,
    /// PCI devices of its own.
    pub pci: Vec<Bdf>,
    /// It was created here.
    pub created: bool,
    /// What is wrong with its image.
    pub damage: Option<String>,
    /// The kernel in its image.
    pub kernel: Option<String>,
    /// See [`nodes`].
    pub nodes: usize,
    /// Frames for mappings of other domains' pages; none where Xen does not tell.
    pub maptrack_frames: Option<u64>,
    /// Grants that its configuration lets it have mapped; none where that is not known.
    pub grants: Option<u32>,
    /// Devices that it serves.
    pub devices: Vec<DeviceFacts>,
}

/// A device of a guest.
#[derive(Clone, Debug, Default)]
pub struct DeviceFacts {
    /// The guest.
    pub guest: String,
    /// Such as xvda.
    pub device: String,
    /// Both sides are Connected.
    pub connected: bool,
    /// Both states and the reason.
    pub why: String,
    /// The service VM's daemon knows it.
    pub ours: bool,
    /// Something has taken it up: the backend's state is past Initialising.
    pub taken: bool,
    /// Hotplug scripts have been at it.
    pub scripts: bool,
}

/// Reads everything; what cannot be read is a fact, too.
pub fn read(world: Option<&World>, places: &Places) -> Facts {
    let limit = |resource| getrlimit(resource).map_or(0, |(soft, _)| soft);
    let memlock = limit(Resource::RLIMIT_MEMLOCK);
    let mut facts = Facts {
        place: place(world),
        kernel: nix::sys::utsname::uname()
            .map(|name| name.release().to_string_lossy().into_owned())
            .unwrap_or_default(),
        no_io_uring: grant::caps::check_io_uring().err().map(|error| error.to_string()),
        memlock: (memlock != RLIM_INFINITY).then_some(memlock),
        open_files: limit(Resource::RLIMIT_NOFILE),
        pciback: Path::new("/sys/bus/pci/drivers/pciback").exists(),
        ..Facts::default()
    };
    if facts.place == Where::Dom0 {
        with_xl(&mut facts);
    }
    let Some(world) = world else { return facts };
    match store::toolstack(world) {
        Ok(mut store) => {
            if let Err(error) = with_store(&mut facts, &mut store, places) {
                facts.no_store = Some(format!("xenstore: {error}"));
            }
        }
        Err(error) => facts.no_store = Some(error.to_string()),
    }
    facts
}

fn place(world: Option<&World>) -> Where {
    match world {
        None => Where::Nowhere,
        Some(World::Embedded(_)) => Where::Embedded,
        // "control_d" is what makes a domain dom0. A store that the environment names stands for Xen's own.
        Some(World::Xen) => match fs::read_to_string("/proc/xen/capabilities") {
            Ok(text) if !text.contains("control_d") && World::store_path().is_none() => Where::DomU,
            _ => Where::Dom0,
        },
    }
}

fn with_xl(facts: &mut Facts) {
    let xl = Xl::default();
    match xl.output(&["info"]) {
        Ok(text) => facts.info = pairs(&text),
        Err(why) => {
            facts.no_xl = Some(why.to_string());
            return;
        }
    }
    match xl.list() {
        Ok(domains) => facts.domains = domains,
        Err(why) => facts.no_xl = Some(why.to_string()),
    }
    // Without xen-pciback it complains; then none is assignable.
    facts.assignable = xl.output(&["pci-assignable-list"]).map(|text| pci::assignable(&text)).unwrap_or_default();
    facts.quotas = quotas();
}

/// Quotas of xenstored by name; none where it does not tell.
pub fn quotas() -> BTreeMap<String, u64> {
    let Ok(output) = Command::new("xenstore-control").arg("quota").output() else { return BTreeMap::new() };
    let number = |(name, value): (String, String)| Some((name, value.split_whitespace().next()?.parse().ok()?));
    pairs(&String::from_utf8_lossy(&output.stdout)).into_iter().filter_map(number).collect()
}

/// Nodes of the store that are a service VM's own, nearly: those of its backends and of what it publishes.
///
/// # Errors
/// The store did not answer.
pub fn nodes(store: &mut Client, domid: u16) -> Result<usize, Error> {
    let mut sum = count(store, &format!("/local/domain/{domid}/{}", publish::ROOT))?;
    for class in Device::CLASSES {
        let root = format!("/local/domain/{domid}/backend/{class}");
        for guest in store.list(&root)? {
            for devid in store.list(&format!("{root}/{guest}"))? {
                sum += count(store, &format!("{root}/{guest}/{devid}"))?;
            }
        }
    }
    Ok(sum)
}

/// Lines `NAME : VALUE`.
pub(super) fn pairs(text: &str) -> BTreeMap<String, String> {
    let pair = |line: &str| line.split_once(':').map(|(name, value)| (name.trim().to_owned(), value.trim().to_owned()));
    text.lines().filter_map(pair).collect()
}

fn with_store(facts: &mut Facts, store: &mut Client, places: &Places) -> Result<(), Error> {
    let domains = domain::all(store)?;
    let mut names = match facts.place {
        Where::Dom0 => places.names().unwrap_or_default(),
        _ => Vec::new(),
    };
    for domain in &domains {
        let data = format!("/local/domain/{}/{}/ready", domain.domid, publish::ROOT);
        if store.text(&data)?.is_some() && !names.contains(&domain.name) {
            names.push(domain.name.clone());
        }
    }
    for name in names {
        let domain = domains.iter().find(|domain| domain.name == name);
        let mut vm = vm(&name, domain, &domains, store)?;
        if facts.place == Where::Dom0 {
            with_record(&mut vm, places);
        }
        facts.vms.push(vm);
    }
    facts.orphans = consumers::orphans(store)?;
    if facts.place == Where::Dom0 {
        let with_pci = store.list("/local/domain/0/backend/pci")?.into_iter().filter_map(|domid| domid.parse().ok());
        facts.pci_left = with_pci.filter(|domid| domains.iter().all(|domain| domain.domid != *domid)).collect();
    }
    Ok(())
}

fn vm(name: &str, domain: Option<&Domain>, domains: &[Domain], store: &mut Client) -> Result<VmFacts, Error> {
    let mut vm = VmFacts { name: name.to_owned(), domid: domain.map(|domain| domain.domid), ..VmFacts::default() };
    let Some(domain) = domain else { return Ok(vm) };
    let domid = domain.domid;
    vm.ready = consumers::is_ready(store, domid)?;
    vm.nodes = nodes(store, domid)?;
    for class in Device::CLASSES {
        let root = format!("/local/domain/{domid}/backend/{class}");
        for guest in store.list(&root)? {
            for devid in store.list(&format!("{root}/{guest}"))? {
                let device = devid.parse().ok().and_then(|devid| Device::new(class, devid));
                let (Ok(guest), Some(device)) = (guest.parse::<u16>(), device) else { continue };
                let paths = Paths::new(guest, domid, device);
                vm.devices.push(device_facts(store, &paths, domains)?);
            }
        }
    }
    Ok(vm)
}

fn device_facts(store: &mut Client, paths: &Paths, domains: &[Domain]) -> Result<DeviceFacts, Error> {
    use xenstore::xenbus::XenbusState;
    let seen = Seen::read(store, paths)?;
    let own = match paths.device {
        Device::Disk(vdev) => DeviceNode::read(store, paths.service, paths.guest, vdev.0)?,
        Device::Card(devid) => VifNode::read(store, paths.service, paths.guest, devid)?.device(),
    };
    let state = look::state(store, &paths.backend)?;
    let named = domains.iter().find(|domain| domain.domid == paths.guest && !domain.name.is_empty());
    Ok(DeviceFacts {
        guest: named.map_or_else(|| paths.guest.to_string(), |domain| domain.name.clone()),
        device: paths.device.to_string(),
        connected: seen.backend == XenbusState::Connected && seen.frontend == XenbusState::Connected,
        why: seen.describe(),
        ours: !own.phase.is_empty(),
        taken: !matches!(state, XenbusState::Unknown | XenbusState::Initialising),
        // Both are written by the script `block`, and the second only for what the kernel's backend serves.
        scripts: store.text(&format!("{}/physical-device", paths.backend))?.is_some(),
    })
}

/// Nodes at and below a path.
fn count(store: &mut Client, path: &str) -> Result<usize, Error> {
    let mut sum = 1;
    for child in store.list(path)? {
        sum += count(store, &format!("{path}/{child}"))?;
    }
    Ok(sum)
}

fn with_record(vm: &mut VmFacts, places: &Places) {
    if let Ok(record) = Record::load(places, &vm.name) {
        vm.created = true;
        vm.kind = Some(record.kind);
        vm.pci = record.pci;
        match Manifest::verify(&places.current(&vm.name)) {
            Ok(manifest) => vm.kernel = Some(manifest.kernel),
            Err(damage) => vm.damage = Some(damage.to_string()),
        }
        vm.grants = Config::load(&places.toml(&vm.name)).ok().map(|config| config.backend.grants);
    }
    let Some(domid) = vm.domid else { return };
    let Ok(text) = Xl::default().output(&["list", "-l", &domid.to_string()]) else { return };
    let Ok(domains) = serde_json::from_str::<serde_json::Value>(&text) else { return };
    let config = &domains[0]["config"];
    vm.maptrack_frames = config["b_info"]["max_maptrack_frames"].as_u64();
    if vm.kind.is_none() {
        vm.kind = match config["c_info"]["type"].as_str() {
            Some("pv") => Some(DomainType::Pv),
            Some("pvh") => Some(DomainType::Pvh),
            _ => None,
        };
    }
}
