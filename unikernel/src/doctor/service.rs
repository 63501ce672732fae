//! Service VMs: images, types, PCI devices, and that they serve.

use super::facts::{Facts, VmFacts};
use super::process::version;
use super::{Finding, Level};
use crate::image::DomainType;

pub(super) fn check(facts: &Facts) -> Vec<Finding> {
    let mut findings = Vec::new();
    for vm in &facts.vms {
        let found = [alive(facts, vm), image(vm), kernel(vm), kind(vm)];
        findings.extend(found.into_iter().flatten());
        findings.extend(pci(facts, vm));
    }
    findings
}

fn alive(facts: &Facts, vm: &VmFacts) -> Option<Finding> {
    let name = &vm.name;
    let domid = vm.domid?;
    let running = facts.domains.iter().find(|domain| domain.domid == domid);
    let finding = match running.map(|running| running.state()) {
        Some(state @ ("crashed" | "dying" | "shut down")) => Finding::new(
            "alive",
            Level::Error,
            format!("{name} (domain {domid}) is {state}: its guests wait for nobody"),
            format!(
                "xl destroy {domid}; windsor vm start {name}; then detach and attach its disks (a guest that has I/O in flight on Linux older than 7.0 must be restarted)"
            ),
        ),
        Some("paused") => Finding::new(
            "alive",
            Level::Error,
            format!("{name} (domain {domid}) is paused"),
            format!("xl unpause {domid}"),
        ),
        _ if vm.ready => Finding::ok("alive", format!("{name} (domain {domid}) serves")),
        _ => Finding::new(
            "alive",
            Level::Error,
            format!("{name} (domain {domid}) does not serve"),
            format!("see /var/log/xen/console/guest-{name}.log; windsor vm stop {name} && windsor vm start {name}"),
        ),
    };
    Some(finding.about(name))
}

fn image(vm: &VmFacts) -> Option<Finding> {
    if !vm.created {
        return None;
    }
    let name = &vm.name;
    let finding = match &vm.damage {
        Some(damage) => Finding::new(
            "image",
            Level::Error,
            damage.clone(),
            format!(
                "windsor vm rollback {name}, or build one (windsor image build) and windsor vm upgrade {name} --image DIR"
            ),
        ),
        None => Finding::ok("image", format!("the image of {name} is what its manifest says")),
    };
    Some(finding.about(name))
}

fn kernel(vm: &VmFacts) -> Option<Finding> {
    let text = vm.kernel.as_ref()?;
    let fix = "windsor image build with linux-image-6.12-cloud-amd64, then windsor vm upgrade";
    let finding = match version(text) {
        Some(version) if version < (6, 1) => Finding::new(
            "vm-kernel",
            Level::Error,
            format!("{} has Linux {text}: io_uring lacks what it needs", vm.name),
            fix,
        ),
        Some(version) if version < (6, 12) => Finding::new(
            "vm-kernel",
            Level::Note,
            format!("{} has Linux {text}: no fixed buffers over grants", vm.name),
            fix,
        ),
        _ => Finding::ok("vm-kernel", format!("{} has Linux {text}", vm.name)),
    };
    Some(finding.about(&vm.name))
}

/// PV is for those with PCI devices: reported, never refused.
fn kind(vm: &VmFacts) -> Option<Finding> {
    let finding = match (vm.kind?, vm.pci.is_empty()) {
        (DomainType::Pvh, _) => Finding::ok("type", format!("{} is PVH", vm.name)),
        (DomainType::Pv, false) => Finding::new(
            "type",
            Level::Note,
            format!(
                "{} is PV, which its PCI device needs: data is copied, and more of Xen is within its reach (XSA-227, 229, 284)",
                vm.name
            ),
            "",
        ),
        (DomainType::Pv, true) => Finding::new(
            "type",
            Level::Warning,
            format!(
                "{} is PV without a PCI device: data is copied, and more of Xen is within its reach (XSA-227, 229, 284)",
                vm.name
            ),
            format!("windsor vm rm {0}; windsor vm create {0} --type pvh ...", vm.name),
        ),
    };
    Some(finding.about(&vm.name))
}

fn pci(facts: &Facts, vm: &VmFacts) -> Vec<Finding> {
    // One that it has is no more in the list.
    if vm.domid.is_some() {
        return Vec::new();
    }
    let missing = vm.pci.iter().filter(|bdf| !facts.assignable.contains(bdf));
    missing
        .map(|bdf| {
            let text = format!("{} cannot start: PCI device {bdf} is not assignable", vm.name);
            let fix = format!("modprobe xen-pciback; xl pci-assignable-add {bdf}");
            Finding::new("pci", Level::Error, text, fix).about(&vm.name)
        })
        .collect()
}
