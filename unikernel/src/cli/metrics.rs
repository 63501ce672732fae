//! `windsor metrics`: numbers of service VMs for Prometheus, which need no network of their own for it.

use clap::{Args, Subcommand};

use super::{FAILED, Failure, Outcome, WorldArgs, print};
use crate::channel::client;
use crate::channel::wire::{Answer, Ask};
use crate::doctor::facts;
use crate::metrics::check::check;
use crate::metrics::serve::{Listen, Listener};
use crate::metrics::text::Text;
use crate::store;
use crate::toolstack::domain::{self, Domain};
use crate::toolstack::look::{self, Status};
use crate::world::World;

/// Arguments of `windsor metrics`.
#[derive(Args, Debug)]
#[command(args_conflicts_with_subcommands = true)]
pub struct MetricsArgs {
    #[command(flatten)]
    world: WorldArgs,
    #[command(subcommand)]
    command: Option<MetricsCommand>,
    /// The service VM; not needed where there is one
    vm: Option<String>,
}

#[derive(Subcommand, Debug)]
enum MetricsCommand {
    /// Hand the numbers of a VM, or of all of them, to whoever asks for /metrics
    Serve(MetricsServeArgs),
}

/// Arguments of `windsor metrics serve`.
#[derive(Args, Debug)]
pub struct MetricsServeArgs {
    /// Where: unix:PATH or 127.0.0.1:PORT
    #[arg(long, value_name = "WHERE")]
    listen: Listen,
    /// End with the process that has started this
    #[arg(long, hide = true)]
    with_parent: bool,
    /// The service VM; all of them if none is named
    vm: Option<String>,
}

/// Prints the text, or serves it until it is killed.
///
/// # Errors
/// When there is no such VM, it does not answer, or nobody can be served.
pub fn run(args: &MetricsArgs) -> Outcome {
    let world = args.world.world()?;
    let Some(MetricsCommand::Serve(serve)) = &args.command else {
        let vm = look::service(&mut store::toolstack(&world)?, args.vm.as_deref())?;
        return print(&scrape(&world, Some(&vm.name))?);
    };
    if serve.with_parent {
        let set = nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGTERM);
        set.map_err(|error| Failure::new(FAILED, error))?;
        // The daemons that start this have their signals blocked.
        let unblocked = nix::sys::signal::SigSet::all().thread_unblock();
        unblocked.map_err(|error| Failure::new(FAILED, error))?;
    }
    let failed = |error: std::io::Error| Failure::new(FAILED, format!("metrics: {error}"));
    let listener = Listener::bind(&serve.listen).map_err(failed)?;
    if !serve.with_parent {
        print("ready\n")?;
    }
    listener.serve(|| scrape(&world, serve.vm.as_deref()).map_err(|failure| failure.text)).map_err(failed)
}

/// The numbers of one VM or of all, each family in one piece.
fn scrape(world: &World, vm: Option<&str>) -> Result<String, Failure> {
    let mut client = store::toolstack(world)?;
    let failed = |error: xenstore::Error| Failure::new(FAILED, format!("xenstore: {error}"));
    let status = look::states(&mut client).map_err(failed)?;
    let domains = domain::all(&mut client).map_err(failed)?;
    let wanted = |name: &str, domid: u16| vm.is_none_or(|vm| vm == name || vm == domid.to_string());
    let mut merged = Merged::default();
    if let World::Xen = world {
        merged.quota = facts::quotas().get("nodes").copied();
    }
    let mut found = false;
    for vm in status.vms.iter().filter(|vm| wanted(&vm.name, vm.domid)) {
        found = true;
        merged.nodes.push((vm.name.clone(), facts::nodes(&mut client, vm.domid).map_err(failed)?));
        let text = match client::ask(world, vm.domid, &Ask::Metrics) {
            Ok(Answer::Metrics { text }) => text,
            Ok(other) => return Err(super::unexpected(other)),
            // One VM that is away does not hide the others.
            Err(error) => {
                eprintln!("windsor: {error}");
                merged.up.push((vm.name.clone(), 0));
                continue;
            }
        };
        check(&text).map_err(|why| Failure::new(FAILED, format!("the numbers of {}: {why}", vm.name)))?;
        merged.up.push((vm.name.clone(), 1));
        merged.add(&named(&text, &domains));
    }
    if let (Some(vm), false) = (vm, found) {
        return Err(Failure::new(super::MISSING, format!("no service VM named \"{vm}\"")));
    }
    Ok(merged.finish(&status, wanted))
}

/// With the names of guests, which a service VM does not know.
fn named(text: &str, domains: &[Domain]) -> String {
    let mut named = text.to_owned();
    for domain in domains.iter().filter(|domain| !domain.name.is_empty()) {
        let number = format!("guest_domid=\"{}\"", domain.domid);
        if named.contains(&number) {
            let name: String = domain.name.chars().filter(|c| !c.is_control() && !['"', '\\'].contains(c)).collect();
            named = named.replace(&number, &format!("guest=\"{name}\",{number}"));
        }
    }
    named
}

/// Texts of several VMs, family by family.
#[derive(Default)]
struct Merged {
    /// Head and samples, in the order in which they came first.
    families: Vec<(String, String)>,
    up: Vec<(String, u8)>,
    /// Nodes that each VM has in xenstore.
    nodes: Vec<(String, usize)>,
    /// How many it may have, where xenstored tells.
    quota: Option<u64>,
}

impl Merged {
    fn add(&mut self, text: &str) {
        let mut head = String::new();
        for line in text.lines() {
            if line.starts_with("# HELP ") {
                head = format!("{line}\n");
            } else if line.starts_with("# TYPE ") {
                head = format!("{head}{line}\n");
                if !self.families.iter().any(|(known, _)| *known == head) {
                    self.families.push((head.clone(), String::new()));
                }
            } else if let Some((_, samples)) = self.families.iter_mut().find(|(known, _)| *known == head) {
                samples.push_str(line);
                samples.push('\n');
            }
        }
    }

    fn finish(self, status: &Status, wanted: impl Fn(&str, u16) -> bool) -> String {
        let mut text = Text::default();
        text.family("windsor_up", "gauge", "Whether a service VM answers.");
        for (vm, up) in &self.up {
            text.sample("windsor_up", &[("vm", vm)], up);
        }
        text.family("windsor_xenstore_nodes", "gauge", "Nodes of xenstore that a service VM has, nearly.");
        for (vm, nodes) in &self.nodes {
            text.sample("windsor_xenstore_nodes", &[("vm", vm)], nodes);
        }
        if let Some(quota) = self.quota {
            text.family("windsor_xenstore_node_quota", "gauge", "Nodes of xenstore that a domain may have.");
            text.sample("windsor_xenstore_node_quota", &[], quota);
        }
        let name = "windsor_xenbus_state";
        text.family(name, "gauge", "State of either side of a device: 4 is Connected.");
        for vm in status.vms.iter().filter(|vm| wanted(&vm.name, vm.domid)) {
            let disks =
                vm.devices.iter().map(|it| (&it.guest, it.guest_domid, &it.vdev, it.backend_state, it.frontend_state));
            let cards =
                vm.cards.iter().map(|it| (&it.guest, it.guest_domid, &it.vif, it.backend_state, it.frontend_state));
            for (guest, domid, device, backend, frontend) in disks.chain(cards) {
                let domid = domid.to_string();
                for (side, state) in [("backend", backend), ("frontend", frontend)] {
                    let labels = [
                        ("vm", &*vm.name),
                        ("guest", guest),
                        ("guest_domid", &domid),
                        ("device", device),
                        ("side", side),
                    ];
                    text.sample(name, &labels, state);
                }
            }
        }
        let mut text = text.finish();
        for (head, samples) in self.families {
            text.push_str(&head);
            text.push_str(&samples);
        }
        text
    }
}
