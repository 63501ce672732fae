//! `windsor vm create`.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;

use super::super::{Failure, Outcome, USAGE};
use crate::image::DomainType;
use crate::image::manifest::Manifest;
use crate::vm::create::{self, Source, Wanted};
use crate::vm::pci::Bdf;
use crate::vm::xl::{Xl, line};
use crate::vm::{Places, Record};

#[derive(Args, Debug)]
pub(super) struct CreateArgs {
    /// Its name, the one in its configuration
    #[arg(value_name = "NAME")]
    name: String,
    /// Its configuration, copied to /etc/windsor/NAME.toml [default: what is there already]
    #[arg(short = 'f', long, value_name = "FILE.toml")]
    config: Option<PathBuf>,
    /// PV can own a PCI device, PVH has zero copy [default: pvh; pv with --pci; an image's own with --image]
    #[arg(long = "type", value_enum)]
    kind: Option<DomainType>,
    /// Memory
    #[arg(long, value_name = "MIB", default_value_t = 128, value_parser = clap::value_parser!(u32).range(64..=1048576))]
    memory: u32,
    /// Virtual CPUs
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=128))]
    vcpus: u32,
    /// A PCI device that becomes its own, such as an NVMe SSD; again for more; makes it a PV domain
    #[arg(long, value_name = "BDF")]
    pci: Vec<Bdf>,
    /// A disk of its own, in xl's words (xl-disk-configuration(5)); again for more
    #[arg(long, value_name = "SPEC")]
    disk: Vec<String>,
    /// A network card of its own: a bridge of dom0's, or xl's words (xl-network-configuration(5)); again for more
    #[arg(long, value_name = "BRIDGE|SPEC")]
    net: Vec<String>,
    /// More words for its kernel's command line
    #[arg(long, value_name = "WORDS", default_value = "", hide_default_value = true, allow_hyphen_values = true)]
    append: String,
    /// Image that `windsor image build` made for it [default: one is built]
    #[arg(long, value_name = "DIR", conflicts_with_all = ["kernel", "modules"])]
    image: Option<PathBuf>,
    /// Kernel to build an image with [default: the newest in /boot, of those for virtual machines if there is one]
    #[arg(long, value_name = "VMLINUZ", requires = "modules")]
    kernel: Option<PathBuf>,
    /// Modules of that kernel
    #[arg(long, value_name = "DIR", requires = "kernel")]
    modules: Option<PathBuf>,
    /// Start it, too
    #[arg(long)]
    start: bool,
    /// How long it may take to be ready
    #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=3600))]
    wait: u64,
    /// Check everything and print what would be done
    #[arg(short = 'n', long)]
    dry_run: bool,
    /// Print the configuration for xl and do nothing
    #[arg(long)]
    print_xl: bool,
}

impl CreateArgs {
    fn wanted(&self) -> Result<Wanted, Failure> {
        let source = match (&self.image, &self.kernel, &self.modules) {
            (Some(image), _, _) => Source::Image(image.clone()),
            (None, Some(kernel), Some(modules)) => Source::Kernel { kernel: kernel.clone(), modules: modules.clone() },
            // To print a configuration none is needed.
            _ if self.print_xl => Source::Kernel { kernel: PathBuf::new(), modules: PathBuf::new() },
            _ => create::newest_kernel(Path::new("/boot"), Path::new("/lib/modules"))?,
        };
        let kind = match (self.kind, &source) {
            (Some(DomainType::Pvh), _) if !self.pci.is_empty() => {
                return Err(Failure::new(USAGE, "--type pvh cannot own a PCI device: leave it out, or say pv"));
            }
            (Some(kind), _) => kind,
            (None, _) if !self.pci.is_empty() => DomainType::Pv,
            (None, Source::Image(dir)) if !self.print_xl => Manifest::read(dir)?.kind,
            (None, _) => DomainType::Pvh,
        };
        let net = |spec: &String| if spec.contains('=') { spec.clone() } else { format!("bridge={spec}") };
        let record = Record {
            memory_mib: self.memory,
            vcpus: self.vcpus,
            pci: self.pci.clone(),
            disks: self.disk.clone(),
            nets: self.net.iter().map(net).collect(),
            append: self.append.clone(),
            ..Record::new(&self.name, kind)
        };
        Ok(Wanted { record, config: self.config.clone(), source })
    }
}

pub(super) fn run(places: &Places, args: &CreateArgs) -> Outcome {
    let wanted = args.wanted()?;
    if args.print_xl {
        print!("{}", wanted.record.xl(places));
        return Ok(());
    }
    let name = &args.name;
    if args.dry_run {
        create::check(places, &Xl::default(), &wanted)?;
        let image = match &wanted.source {
            Source::Image(dir) => format!("copy the image {}", dir.display()),
            Source::Kernel { kernel, .. } => format!("build an image with {}", kernel.display()),
        };
        println!("{image} into {}", places.images(name).display());
        println!("write {} for xl, as --print-xl shows it", places.cfg(name).display());
        if let Some(config) = &args.config {
            println!("copy {} to {}", config.display(), places.toml(name).display());
        }
        if args.start {
            println!("{}", line(&["create", &places.cfg(name).display().to_string()]));
        }
        return Ok(());
    }
    let manifest = create::run(places, &Xl::default(), &wanted)?;
    let mib = manifest.bytes() as f64 / f64::from(1 << 20);
    eprintln!("windsor: {name}: image {} ({mib:.1} MiB, kernel {})", manifest.id(), manifest.kernel);
    if args.start {
        return super::begin(places, name, Duration::from_secs(args.wait), false);
    }
    println!("{}", places.cfg(name).display());
    Ok(())
}
