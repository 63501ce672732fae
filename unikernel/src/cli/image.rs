//! `windsor image ...`.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::{FAILED, Failure, Outcome};
use crate::image::manifest::Manifest;
use crate::image::{self, DomainType, Recipe};

/// Arguments of `windsor image`.
#[derive(Args, Debug)]
pub struct ImageArgs {
    #[command(subcommand)]
    command: ImageCommand,
}

#[derive(Subcommand, Debug)]
enum ImageCommand {
    /// Make kernel, initramfs and xl configuration of a service VM, with this program as its PID 1
    Build(BuildArgs),
    /// Compare an image with its manifest, and say what is in it
    Verify(VerifyArgs),
}

#[derive(Args, Debug)]
struct VerifyArgs {
    /// Directory of the image
    #[arg(value_name = "DIR")]
    image: PathBuf,
    /// For programs
    #[arg(long)]
    json: bool,
}

#[derive(Args, Debug)]
struct BuildArgs {
    /// Kernel: boot/vmlinuz-VERSION of a kernel package (Debian: linux-image-6.12-cloud-amd64)
    #[arg(long, value_name = "VMLINUZ")]
    kernel: PathBuf,
    /// Its modules: lib/modules/VERSION of the same package
    #[arg(long, value_name = "DIR")]
    modules: PathBuf,
    /// Configuration of the service VM; its vm.modules adds kernel modules, such as "brd rd_nr=2"
    #[arg(long, value_name = "FILE.toml")]
    config: PathBuf,
    /// Directory for vmlinuz, initramfs.img, manifest.json and NAME.cfg, created if missing
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// PV can own a PCI device, PVH has zero copy
    #[arg(long = "type", value_enum, default_value_t = DomainType::Pv)]
    kind: DomainType,
    /// Memory of the VM
    #[arg(long, value_name = "MIB", default_value_t = 128)]
    memory: u32,
    /// CPUs of the VM
    #[arg(long, value_name = "N", default_value_t = 1)]
    vcpus: u32,
    /// More words for the kernel's command line
    #[arg(long, value_name = "WORDS", default_value = "", hide_default_value = true, allow_hyphen_values = true)]
    append: String,
    /// Write absolute paths: where the files will lie in dom0 [default: xl is started beside them]
    #[arg(long, value_name = "DIR")]
    dom0_dir: Option<PathBuf>,
}

/// Runs `windsor image ...`.
///
/// # Errors
/// With the exit code of `DESIGN`, "The command".
pub fn run(args: ImageArgs) -> Outcome {
    match args.command {
        ImageCommand::Build(args) => build(args).map_err(|error| Failure::new(error.exit_code(), error)),
        ImageCommand::Verify(args) => verify(&args),
    }
}

fn verify(args: &VerifyArgs) -> Outcome {
    let manifest = Manifest::verify(&args.image)?;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&manifest).map_err(|error| Failure::new(FAILED, error))?);
        return Ok(());
    }
    println!(
        "{} of {}, {}, kernel {}, windsor {}",
        manifest.id(),
        manifest.name,
        manifest.kind,
        manifest.kernel,
        manifest.windsor
    );
    for entry in &manifest.files {
        println!("{:>10}  {}  {}", entry.bytes, entry.name, entry.sha256);
    }
    for part in &manifest.contents {
        println!("{:>10}    {}", part.bytes, part.path);
    }
    Ok(())
}

/// Builds, and says on stdout which files it made.
fn build(args: BuildArgs) -> Result<(), image::Error> {
    let built = image::build(&Recipe {
        kernel: args.kernel,
        modules: args.modules,
        config: args.config,
        out: args.out,
        kind: args.kind,
        memory_mib: args.memory,
        vcpus: args.vcpus,
        append: args.append,
        dom0_dir: args.dom0_dir,
    })?;
    println!("{}", built.kernel.display());
    println!("{}", built.initramfs.display());
    println!("{}", built.config.display());
    let initramfs = built.manifest.files.last().map_or(0, |entry| entry.bytes);
    eprintln!(
        "windsor: kernel {}, initramfs {:.1} MiB, modules {}",
        built.version,
        initramfs as f64 / f64::from(1 << 20),
        built.modules.join(" ")
    );
    Ok(())
}
