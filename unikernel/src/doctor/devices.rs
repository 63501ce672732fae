//! Devices of guests: who serves them, and why one is not connected.

use super::facts::Facts;
use super::{Finding, Level};

pub(super) fn check(facts: &Facts) -> Vec<Finding> {
    let mut findings = Vec::new();
    for vm in &facts.vms {
        for device in &vm.devices {
            let what = format!("{} of {}", device.device, device.guest);
            if device.scripts || (device.taken && !device.ours && vm.ready) {
                findings.push(
                    Finding::new(
                        "foreign-backend",
                        Level::Error,
                        format!("{what} is served by something else in {}: the kernel's own backend, or xl devd", vm.name),
                        "take xen-blkback and xen-netback out of that VM's modules, and xl devd out of its programs; then detach and attach",
                    )
                    .about(&vm.name),
                );
            }
            let finding = match device.connected {
                true => Finding::ok("connected", format!("{what} is connected")),
                false => Finding::new(
                    "connected",
                    Level::Error,
                    format!("{what} is not connected: {}", device.why),
                    format!(
                        "windsor detach {} {} --force, then attach it again; windsor vm status {}",
                        device.guest, device.device, vm.name
                    ),
                ),
            };
            findings.push(finding.about(&device.guest));
        }
    }
    for orphan in &facts.orphans {
        let finding = Finding::new("dead-service", Level::Error, orphan.loss(), orphan.cure());
        findings.push(finding.about(&orphan.guest));
    }
    findings
}
