//! `windsor image ...`.

use std::path::PathBuf;

use clap::{Args, Subcommand};

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
    /// Directory for vmlinuz, initramfs.img and NAME.cfg, created if missing
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
    #[arg(long, value_name = "WORDS", default_value = "", allow_hyphen_values = true)]
    append: String,
    /// Write absolute paths: where the files will lie in dom0 [default: xl is started beside them]
    #[arg(long, value_name = "DIR")]
    dom0_dir: Option<PathBuf>,
}

/// Runs `windsor image ...` and says on stdout which files it made. Returns the exit code.
///
/// # Errors
/// [`image::Error`], whose [`exit_code`](image::Error::exit_code) the command ends with.
pub fn run(args: ImageArgs) -> Result<i32, image::Error> {
    let ImageCommand::Build(args) = args.command;
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
    eprintln!(
        "windsor: kernel {}, initramfs {:.1} MiB, modules {}",
        built.version,
        built.initramfs_bytes as f64 / f64::from(1 << 20),
        built.modules.join(" ")
    );
    Ok(0)
}
