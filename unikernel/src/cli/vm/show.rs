//! `windsor vm list` and `windsor vm status`.

use clap::Args;

use super::super::{FAILED, Failure, Outcome, status};
use crate::vm::Places;
use crate::vm::list::{self, Row};
use crate::vm::xl::Xl;

#[derive(Args, Debug)]
pub(super) struct ListArgs {
    /// For programs
    #[arg(long)]
    json: bool,
}

#[derive(Args, Debug)]
pub(super) struct StatusArgs {
    /// The service VM
    #[arg(value_name = "NAME")]
    name: String,
    /// For programs
    #[arg(long)]
    json: bool,
}

pub(super) fn list(places: &Places, args: &ListArgs) -> Outcome {
    let rows = list::rows(places, &Xl::default(), &mut super::dom0()?)?;
    if args.json {
        return json(&serde_json::json!({ "schema_version": 1, "vms": rows }));
    }
    println!("{}", line(["NAME", "DOMID", "STATE", "MEM", "VCPU", "VBD", "VIF", "IMAGE"].map(str::to_owned)));
    for row in rows {
        println!("{}", line(columns(&row)));
    }
    Ok(())
}

fn columns(row: &Row) -> [String; 8] {
    [
        row.name.clone(),
        row.domid.map_or_else(|| "-".to_owned(), |domid| domid.to_string()),
        row.state.clone(),
        row.memory_mib.to_string(),
        row.vcpus.to_string(),
        row.vbds.to_string(),
        row.vifs.to_string(),
        row.image.clone().unwrap_or_else(|| "-".to_owned()),
    ]
}

fn line([name, domid, state, memory, vcpus, vbds, vifs, image]: [String; 8]) -> String {
    format!("{name:<20} {domid:>5} {state:<9} {memory:>5} {vcpus:>4} {vbds:>4} {vifs:>4} {image}")
}

pub(super) fn status(places: &Places, args: &StatusArgs) -> Outcome {
    let status = list::status(places, &Xl::default(), &mut super::dom0()?, &args.name)?;
    if args.json {
        return json(&status);
    }
    let row = &status.row;
    let domain = row.domid.map_or_else(String::new, |domid| format!(", domain {domid}"));
    println!("{}: {}{domain}, {} MiB, {} CPU(s)", row.name, row.state, row.memory_mib, row.vcpus);
    if let (Some(image), Some(manifest)) = (&row.image, &status.manifest) {
        let previous = status.previous_image.as_ref().map_or_else(String::new, |id| format!(", before that {id}"));
        println!(
            "  image {image}, {}, kernel {}, windsor {}{previous}",
            manifest.kind, manifest.kernel, manifest.windsor
        );
    }
    if let Some(created) = &status.created {
        for (what, words) in [("disk", &created.disks), ("card", &created.nets)] {
            words.iter().for_each(|words| println!("  its own {what}: {words}"));
        }
        created.pci.iter().for_each(|bdf| println!("  its own PCI device: {bdf}"));
    }
    if let Some(vm) = status.now {
        print!("{}", status::table(&crate::toolstack::look::Status { vms: vec![vm] }));
    }
    for orphan in &status.orphans {
        eprintln!(
            "windsor: {} {} waits for domain {}, which is gone: {}",
            orphan.guest, orphan.device, orphan.service_domid, orphan.why
        );
    }
    Ok(())
}

fn json(value: &impl serde::Serialize) -> Outcome {
    println!("{}", serde_json::to_string_pretty(value).map_err(|error| Failure::new(FAILED, error))?);
    Ok(())
}
