//! `windsor vm upgrade` and `windsor vm rollback`.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use super::super::{FAILED, Failure, Outcome};
use crate::vm::create::{Source, check_image, place_image};
use crate::vm::places;
use crate::vm::upgrade::{Plan, Upgrade};
use crate::vm::xl::Xl;
use crate::vm::{Places, Record};

#[derive(Args, Debug)]
pub(super) struct UpgradeArgs {
    /// The service VM
    #[arg(value_name = "NAME")]
    name: String,
    /// Image that `windsor image build` made for it
    #[arg(long, value_name = "DIR")]
    image: PathBuf,
    /// How long each part may take: the old one to end, the new one to be ready, a guest to be connected
    #[arg(long, value_name = "SECONDS", default_value_t = 120, value_parser = clap::value_parser!(u64).range(1..=3600))]
    wait: u64,
    /// Print the plan
    #[arg(short = 'n', long)]
    dry_run: bool,
}

#[derive(Args, Debug)]
pub(super) struct RollbackArgs {
    /// The service VM
    #[arg(value_name = "NAME")]
    name: String,
    /// How long each part may take: the old one to end, the new one to be ready, a guest to be connected
    #[arg(long, value_name = "SECONDS", default_value_t = 120, value_parser = clap::value_parser!(u64).range(1..=3600))]
    wait: u64,
    /// Print the plan
    #[arg(short = 'n', long)]
    dry_run: bool,
}

pub(super) fn run(places: &Places, args: &UpgradeArgs) -> Outcome {
    let record = Record::load(places, &args.name)?;
    let manifest = check_image(&args.image, &record)?;
    let mut store = super::dom0()?;
    let plan = Plan::new(places, &Xl::default(), &mut store, &args.name, &manifest.id())?;
    if args.dry_run {
        println!("copy the image {} into {}", args.image.display(), places.images(&args.name).display());
        return print(places, &plan);
    }
    plan.check_space(places)?;
    place_image(&places.images(&args.name), &Source::Image(args.image.clone()), &record, &places.toml(&args.name))?;
    let wait = Duration::from_secs(args.wait);
    Upgrade { places, store: &mut store, record: &record, wait, say: &mut say }.run(&plan)?;
    println!("{}", plan.to);
    Ok(())
}

pub(super) fn back(places: &Places, args: &RollbackArgs) -> Outcome {
    let record = Record::load(places, &args.name)?;
    let mut store = super::dom0()?;
    let wait = Duration::from_secs(args.wait);
    if !args.dry_run && (Upgrade { places, store: &mut store, record: &record, wait, say: &mut say }).resume()? {
        eprintln!("windsor: {}: what an upgrade has left is brought back", args.name);
        return Ok(());
    }
    let Some(previous) = places::target(&places.previous(&args.name)) else {
        return Err(Failure::new(FAILED, format!("{} has no image from before an upgrade", args.name)));
    };
    check_image(&places.previous(&args.name), &record)?;
    let plan = Plan::new(places, &Xl::default(), &mut store, &args.name, &previous)?;
    if args.dry_run {
        return print(places, &plan);
    }
    Upgrade { places, store: &mut store, record: &record, wait, say: &mut say }.run(&plan)?;
    println!("{previous}");
    Ok(())
}

fn print(places: &Places, plan: &Plan) -> Outcome {
    if !plan.guests.is_empty() {
        println!("{} MiB to save guests in, of {} MiB that are free", plan.needs() >> 20, plan.free(places)? >> 20);
    }
    for step in plan.steps() {
        println!("{}", plan.describe(&step));
    }
    Ok(())
}

fn say(text: &str) {
    eprintln!("windsor: {text}");
}
