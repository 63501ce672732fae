//! What Xen and xenstored let a service VM have: nodes, watches, frames for mappings.

use super::facts::{Facts, VmFacts, Where};
use super::{Finding, Level};

/// xenstored's own, where it does not tell.
const NODES: u64 = 1000;
/// The same of watches; oxenstored has 100.
const WATCHES: u64 = 128;
/// Mappings in a frame: a page of entries of 16 bytes (xen/common/grant_table.c, `MAPTRACK_PER_PAGE`).
const PER_FRAME: u64 = 256;

pub(super) fn check(facts: &Facts) -> Vec<Finding> {
    let mut findings = Vec::new();
    for vm in facts.vms.iter().filter(|vm| vm.domid.is_some()) {
        findings.extend([nodes(facts, vm), watches(facts, vm)]);
        findings.extend(maptrack(vm));
    }
    findings
}

fn raise(facts: &Facts, name: &str) -> String {
    match facts.place {
        Where::Embedded => format!("windsor host --quota {name}=20000"),
        _ => format!("xenstore-control quota set {name} 20000"),
    }
}

/// How much of a quota is used: from nine tenths on somebody should know.
fn level(used: u64, quota: u64) -> Level {
    match () {
        () if used >= quota => Level::Error,
        () if used.saturating_mul(10) >= quota.saturating_mul(9) => Level::Warning,
        () => Level::Ok,
    }
}

fn nodes(facts: &Facts, vm: &VmFacts) -> Finding {
    let quota = facts.quotas.get("nodes").copied().unwrap_or(NODES);
    let text = format!("{} nodes of xenstore, of {quota}", vm.nodes);
    let level = level(vm.nodes as u64, quota);
    let fix = if level == Level::Ok { String::new() } else { raise(facts, "nodes") };
    Finding::new("nodes", level, text, fix).about(&vm.name)
}

fn watches(facts: &Facts, vm: &VmFacts) -> Finding {
    let quota = facts.quotas.get("watches").copied().unwrap_or(WATCHES);
    // One of its own, and one for each device.
    let used = vm.devices.len() as u64 + 1;
    let text = format!("about {used} watches of xenstore, of {quota}");
    let level = level(used, quota);
    let fix = if level == Level::Ok { String::new() } else { raise(facts, "watches") };
    Finding::new("watches", level, text, fix).about(&vm.name)
}

fn maptrack(vm: &VmFacts) -> Option<Finding> {
    let frames = vm.maptrack_frames?;
    let fix = "max_maptrack_frames=1024 in the VM's xl configuration (XAPI: platform:max_maptrack_frames=1024), then start it again";
    let most = frames.saturating_mul(PER_FRAME);
    let finding = match (frames, vm.grants) {
        (0, _) => Finding::new(
            "maptrack",
            Level::Error,
            "it may map no page of another domain (max_maptrack_frames is 0)",
            fix,
        ),
        (_, Some(grants)) if u64::from(grants) > most => {
            let text = format!("it may map {most} pages of other domains, and [backend] grants is {grants}");
            Finding::new("maptrack", Level::Warning, text, format!("{fix}; or grants = {most} in its configuration"))
        }
        _ => Finding::ok("maptrack", format!("it may map {most} pages of other domains")),
    };
    Some(finding.about(&vm.name))
}
