//! Xen itself: that it is there and lets domains share pages; domains that do not go.

use super::facts::{Facts, Where};
use super::process::version;
use super::{Finding, Level};

pub(super) fn check(facts: &Facts) -> Vec<Finding> {
    let mut findings = vec![present(facts)];
    if let Some(why) = &facts.no_store {
        let fix = match facts.place {
            Where::Embedded => "windsor host --dir DIR",
            _ => "systemctl start xen",
        };
        findings.push(Finding::new("xenstore", Level::Error, why.clone(), fix));
    }
    if facts.place == Where::Dom0 && facts.no_xl.is_none() {
        findings.extend([xsm(facts), iommu(facts), pciback(facts), zombies(facts)]);
        findings.extend(facts.pci_left.iter().map(|domid| pci_left(*domid)));
    }
    findings
}

/// The hypervisor's command line, its words.
pub(super) fn options(facts: &Facts) -> impl DoubleEndedIterator<Item = &str> {
    facts.info.get("xen_commandline").map_or("", String::as_str).split_whitespace()
}

/// Whether a service VM has a PCI device.
fn passes_pci(facts: &Facts) -> bool {
    facts.vms.iter().any(|vm| !vm.pci.is_empty())
}

fn present(facts: &Facts) -> Finding {
    match facts.place {
        Where::Nowhere => Finding::new(
            "xen",
            Level::Note,
            "no Xen on this machine: the embedded host works all the same",
            "apt-get install xen-system-amd64, and boot it; or windsor demo",
        ),
        Where::Embedded => Finding::ok("xen", "an embedded host"),
        Where::DomU => Finding::new(
            "xen",
            Level::Note,
            "this is no dom0: the hypervisor and other domains cannot be looked at from here",
            "run windsor doctor in dom0",
        ),
        Where::Dom0 => match (&facts.no_xl, facts.info.get("xen_version")) {
            (Some(why), _) => {
                Finding::new("xen", Level::Error, why.clone(), "apt-get install xen-utils-4.17; systemctl start xen")
            }
            (None, Some(text)) if version(text).is_some_and(|version| version < (4, 17)) => {
                let text = format!("Xen {text} is older than what Windsor is tested with");
                Finding::new("xen", Level::Warning, text, "upgrade to Xen 4.17 or newer (Debian 12)")
            }
            (None, Some(text)) => Finding::ok("xen", format!("Xen {text}")),
            (None, None) => Finding::new("xen", Level::Warning, "xl info tells no version of Xen", "xl info"),
        },
    }
}

fn xsm(facts: &Facts) -> Finding {
    match options(facts).filter_map(|word| word.strip_prefix("xsm=")).next_back() {
        Some("silo") => Finding::new(
            "xsm",
            Level::Error,
            "XSM silo is on: no domain but dom0 may share pages with another, so no service VM can serve",
            "take xsm=silo out of GRUB_CMDLINE_XEN_DEFAULT in /etc/default/grub, then update-grub and reboot",
        ),
        Some("flask") => Finding::new(
            "xsm",
            Level::Warning,
            "XSM flask is on: its policy decides whether service VMs can serve",
            "label service VMs so that they may map grants of their guests and bind event channels to them",
        ),
        _ => Finding::ok("xsm", "no XSM module keeps domains apart that share pages"),
    }
}

fn iommu(facts: &Facts) -> Finding {
    let caps = facts.info.get("virt_caps").map_or("", String::as_str);
    let there = caps.split_whitespace().any(|word| matches!(word, "hvm_directio" | "pv_directio" | "directio"));
    let text = "no IOMMU is in use: PCI devices cannot safely belong to a service VM";
    let fix = "switch the IOMMU (VT-d, AMD-Vi) on in the firmware; add iommu=1 to GRUB_CMDLINE_XEN_DEFAULT, update-grub, reboot";
    match (there, passes_pci(facts)) {
        (true, _) => Finding::ok("iommu", "the IOMMU is in use"),
        (false, true) => Finding::new("iommu", Level::Error, text, fix),
        (false, false) => Finding::new("iommu", Level::Note, text, fix),
    }
}

fn pciback(facts: &Facts) -> Finding {
    let fix = "modprobe xen-pciback; echo xen-pciback >/etc/modules-load.d/xen-pciback.conf";
    match (facts.pciback, passes_pci(facts)) {
        (true, _) => {
            Finding::ok("pciback", format!("xen-pciback is loaded, {} devices are assignable", facts.assignable.len()))
        }
        (false, true) => Finding::new("pciback", Level::Error, "xen-pciback is not loaded", fix),
        (false, false) => {
            Finding::new("pciback", Level::Note, "xen-pciback is not loaded; only PCI devices need it", fix)
        }
    }
}

fn zombies(facts: &Facts) -> Finding {
    let dead = facts.domains.iter().filter(|domain| domain.state() == "dying" || domain.name == "(null)");
    let dead: Vec<String> = dead.map(|domain| domain.domid.to_string()).collect();
    if dead.is_empty() {
        return Finding::ok("zombies", "no dead domain is left");
    }
    Finding::new(
        "zombies",
        Level::Error,
        format!("dead domains that do not go: {}; somebody still has pages of theirs mapped", dead.join(", ")),
        "xl debug-keys g; xl dmesg (who has their grants); windsor vm stop --force of that service VM frees them",
    )
}

/// What libxl 4.17 leaves when a PV domain turns itself off and nobody takes it away, as `windsor vm stop` does.
fn pci_left(domid: u16) -> Finding {
    Finding::new(
        "pci-left",
        Level::Warning,
        format!("domain {domid} is gone, and nodes of its PCI devices are left; the devices are free"),
        format!("xenstore-rm /local/domain/0/backend/pci/{domid}"),
    )
}
