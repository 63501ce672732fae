//! `windsor image build`: a kernel, an initramfs with this very program as PID 1, and a configuration for `xl`.
//!
//! The image holds no shell and no libraries:
//!
//! ```text
//! init                    this executable, static, without symbols and debug information
//! sbin/{poweroff,reboot}  links to it: what the kernel runs when dom0 writes control/shutdown
//! etc/windsor.toml        the configuration, byte for byte
//! etc/hostname            the VM's name
//! etc/modules             one module a line with its parameters, in load order
//! lib/modules/NAME.ko     the modules, decompressed
//! dev/console             what the kernel opens for PID 1 before anything is mounted
//! ```
//!
//! The same input gives the same bytes.

pub mod archive;
pub mod elf;
pub mod manifest;
pub mod modules;
pub mod xl;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use archive::Archive;
use elf::Elf;
use manifest::Manifest;
use modules::{Tree, Wanted};
pub use xl::DomainType;

use crate::config::{Config, ConfigError, DataPath};

/// Where PID 1 finds its configuration.
pub const CONFIG_PATH: &str = "/etc/windsor.toml";
/// Where PID 1 finds the VM's name.
pub const HOSTNAME_PATH: &str = "/etc/hostname";
/// Where PID 1 finds the modules' names and parameters.
pub const MODULES_PATH: &str = "/etc/modules";
/// The directory of the modules themselves.
pub const MODULES_DIR: &str = "/lib/modules";

/// What every service VM loads where the kernel has it as a module, and whether it can do without.
const MODULES: [(&str, bool); 7] = [
    ("xen_evtchn", true),
    ("xen_gntdev", true),
    ("xen_gntalloc", true),
    // A volume may itself be a PV disk.
    ("xen_blkfront", true),
    // Without these there are no NVMe volumes and no networks, but files and PV disks still work.
    ("nvme", false),
    ("tun", false),
    // Has Xen end the VM when PID 1 hangs.
    ("xen_wdt", false),
];

/// Why no image was built.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the fields are named by the messages")]
pub enum Error {
    /// A file or directory cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Read { path: PathBuf, source: io::Error },
    /// The output cannot be written.
    #[error("cannot write {}: {source}; is the disk full, or the directory not yours?", path.display())]
    Write { path: PathBuf, source: io::Error },
    /// The executable cannot be PID 1.
    #[error(
        "this windsor cannot be PID 1 of an image: {why}; build it with `cargo build --release` and without RUSTFLAGS in the \
         environment, which would undo .cargo/config.toml"
    )]
    NotStatic { why: &'static str },
    /// The kernel is not one.
    #[error("{} is not a Linux kernel for x86-64 (neither bzImage nor ELF); give boot/vmlinuz-VERSION of a kernel package", path.display())]
    NotKernel { path: PathBuf },
    /// Kernel and modules are of different versions.
    #[error("the kernel {} is version {kernel}, but the modules are of {modules}: give the modules of the same package", path.display())]
    Versions { path: PathBuf, kernel: String, modules: String },
    /// The module tree, or a module, is not usable.
    #[error("modules {}: {why}", dir.display())]
    Modules { dir: PathBuf, why: String },
    /// A module exists neither as a file nor built in.
    #[error(
        "module {module}{} is neither in {} nor built into {version}: choose a kernel that has it (Debian's \
         linux-image-cloud-amd64 does), or take it out of [vm] modules",
        user.as_ref().map(|user| format!(", which {user} needs,")).unwrap_or_default(), dir.display()
    )]
    MissingModule { module: String, user: Option<String>, version: String, dir: PathBuf },
    /// Parameters for something that is no module.
    #[error(
        "{module} is built into this kernel and takes no `{params}` from [vm] modules: use --append \"{module}.PARAMETER=VALUE\""
    )]
    BuiltinParameters { module: String, params: String },
    /// The configuration is wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A word of the command line cannot go into the configuration for `xl`.
    #[error("--{option}: {why}")]
    Usage { option: &'static str, why: String },
}

impl Error {
    /// The exit code of the command: 2 usage, 3 something that must be there is not, 1 anything else.
    pub fn exit_code(&self) -> i32 {
        match self {
            Self::Read { source, .. } | Self::Config(ConfigError::Read { source, .. })
                if source.kind() == io::ErrorKind::NotFound =>
            {
                3
            }
            Self::Config(ConfigError::Wrong { .. }) | Self::Usage { .. } | Self::BuiltinParameters { .. } => 2,
            Self::NotStatic { .. } | Self::MissingModule { .. } => 3,
            _ => 1,
        }
    }
}

/// What to build an image from.
#[derive(Clone, Debug)]
pub struct Recipe {
    /// A bzImage, or an ELF kernel.
    pub kernel: PathBuf,
    /// `lib/modules/VERSION`, or the directory above with exactly one version in it.
    pub modules: PathBuf,
    /// The service VM's configuration.
    pub config: PathBuf,
    /// Where the three files go; created if it is not there.
    pub out: PathBuf,
    /// PV or PVH.
    pub kind: DomainType,
    /// Memory in MiB.
    pub memory_mib: u32,
    /// Virtual CPUs.
    pub vcpus: u32,
    /// More words for the kernel's command line.
    pub append: String,
    /// Where the files will lie in dom0, if not where `xl` is started.
    pub dom0_dir: Option<PathBuf>,
}

/// What was built.
#[derive(Clone, Debug)]
pub struct Built {
    /// Copy of the kernel.
    pub kernel: PathBuf,
    /// The initramfs.
    pub initramfs: PathBuf,
    /// The configuration for `xl create`.
    pub config: PathBuf,
    /// The kernel's version.
    pub version: String,
    /// The modules in load order.
    pub modules: Vec<String>,
    /// What is in it, with the sizes and sums of its files.
    pub manifest: Manifest,
}

/// Builds an image with the running program in it.
///
/// # Errors
/// [`Error`] says what is wrong; nothing is written before everything has been read and checked.
pub fn build(recipe: &Recipe) -> Result<Built, Error> {
    // Not current_exe(): its path may by now be another file.
    let init = program(&read(Path::new("/proc/self/exe"))?)?;
    build_with(recipe, init)
}

/// The program as it goes into the image.
fn program(bytes: &[u8]) -> Result<Vec<u8>, Error> {
    let failed = |why| Error::NotStatic { why };
    let elf = Elf::parse(bytes).map_err(failed)?;
    if !elf.is_x86_64() {
        return Err(failed("it is not an x86-64 program"));
    }
    if elf.has_interpreter() {
        return Err(failed("it is linked dynamically (the ELF file names an interpreter)"));
    }
    elf.without_sections().ok_or_else(|| failed("its program headers point outside the file"))
}

fn build_with(recipe: &Recipe, init: Vec<u8>) -> Result<Built, Error> {
    let config = Config::load(&recipe.config)?;
    let config_text = read(&recipe.config)?;
    let name = config.vm.name.as_str();
    check_usage(recipe, &config)?;
    let kernel = read(&recipe.kernel)?;
    let tree = Tree::open(&recipe.modules)?;
    if let Some(version) = kernel_version(&kernel).map_err(|()| Error::NotKernel { path: recipe.kernel.clone() })?
        && version != tree.version
    {
        return Err(Error::Versions { path: recipe.kernel.clone(), kernel: version, modules: tree.version });
    }
    let mut wanted: Vec<_> = MODULES.iter().map(|&(name, required)| Wanted::parse(name, required)).collect();
    if recipe.kind == DomainType::Pv {
        wanted.push(Wanted::parse("xen_pcifront", false));
    }
    if !config.bridges.is_empty() {
        // Out of what the VM itself has been given: cards of dom0's, most often.
        wanted.extend(["bridge", "xen_netfront"].map(|name| Wanted::parse(name, true)));
    }
    wanted.extend(config.vm.modules.iter().map(|text| Wanted::parse(text, true)));
    let modules = tree.resolve(&wanted)?;

    let mut archive = Archive::default();
    for dir in ["proc", "sys", "run", "tmp"] {
        archive.directory(dir);
    }
    archive.device("dev/console", 5, 1);
    archive.file("init", 0o755, init);
    archive.link("sbin/poweroff", "/init");
    archive.link("sbin/reboot", "/init");
    archive.file(inside(CONFIG_PATH), 0o644, config_text);
    archive.file(inside(HOSTNAME_PATH), 0o644, format!("{}\n", name).into_bytes());
    let names: Vec<_> = modules.iter().map(|module| module.name.clone()).collect();
    let mut list = String::new();
    for module in modules {
        list.push_str(format!("{} {}", module.name, module.params).trim_end());
        list.push('\n');
        archive.file(&format!("{}/{}.ko", inside(MODULES_DIR), module.name), 0o644, module.body);
    }
    archive.file(inside(MODULES_PATH), 0o644, list.into_bytes());

    let (vmlinuz, ramdisk) = (recipe.out.join(manifest::KERNEL), recipe.out.join(manifest::INITRAMFS));
    let contents = archive.files();
    let mut initramfs = Vec::new();
    archive.write(&mut initramfs).map_err(|source| Error::Write { path: ramdisk.clone(), source })?;
    let version = (tree.version.as_str(), kernel.as_slice());
    let manifest = Manifest::new(name, recipe.kind, version, names.clone(), &initramfs, contents);
    let domain = xl::Domain {
        name,
        kind: recipe.kind,
        memory_mib: recipe.memory_mib,
        vcpus: recipe.vcpus,
        append: &recipe.append,
        dom0_dir: recipe.dom0_dir.as_deref(),
        pci: &[],
        disks: &[],
        nets: &[],
    };
    fs::create_dir_all(&recipe.out).map_err(|source| Error::Write { path: recipe.out.clone(), source })?;
    let config = recipe.out.join(format!("{name}.cfg"));
    write(&vmlinuz, &kernel)?;
    write(&ramdisk, &initramfs)?;
    write(&config, domain.text().as_bytes())?;
    write(&recipe.out.join(manifest::FILE), manifest.text().as_bytes())?;
    Ok(Built { kernel: vmlinuz, initramfs: ramdisk, config, version: tree.version, modules: names, manifest })
}

fn check_usage(recipe: &Recipe, config: &Config) -> Result<(), Error> {
    let usage = |option, why: &str| Err(Error::Usage { option, why: why.into() });
    if !xl::quotable(&recipe.append) {
        return usage("append", "a line end, a backslash or both kinds of quotes cannot stand in an xl configuration");
    }
    if let Some(dir) = &recipe.dom0_dir
        && !(dir.is_absolute() && xl::quotable(&dir.to_string_lossy()))
    {
        return usage("dom0-dir", "it must be an absolute path that can stand in an xl configuration");
    }
    if recipe.kind == DomainType::Pv && config.backend.data_path == DataPath::ZeroCopy {
        return usage(
            "type",
            "[backend] data-path = \"zero-copy\" is for PVH: a PV VM that dies under I/O would keep its guests' pages",
        );
    }
    if recipe.vcpus == 0 {
        return usage("vcpus", "a VM needs at least one CPU");
    }
    if recipe.memory_mib < 64 {
        return usage("memory", "a service VM does not boot with less than 64 MiB; 128 is the default");
    }
    Ok(())
}

/// The version a bzImage was built as (Linux x86 boot protocol, `kernel_version` at 0x20e); `None` for an ELF kernel
/// and for a bzImage that does not say.
fn kernel_version(kernel: &[u8]) -> Result<Option<String>, ()> {
    if Elf::parse(kernel).is_ok_and(|elf| elf.is_x86_64()) {
        return Ok(None);
    }
    if kernel.get(0x202..0x206) != Some(b"HdrS") {
        return Err(());
    }
    let Some(&[low, high]) = kernel.get(0x20e..0x210) else {
        return Err(());
    };
    let at = usize::from(u16::from_le_bytes([low, high]));
    let text = (at != 0).then(|| kernel.get(at.checked_add(0x200)?..)).flatten().unwrap_or_default();
    let version = text.iter().take(128).take_while(|byte| byte.is_ascii_graphic()).map(|&byte| char::from(byte));
    let version: String = version.collect();
    Ok((!version.is_empty()).then_some(version))
}

/// An absolute path of the image as a name of the archive.
fn inside(path: &str) -> &str {
    path.trim_start_matches('/')
}

fn read(path: &Path) -> Result<Vec<u8>, Error> {
    fs::read(path).map_err(|source| Error::Read { path: path.into(), source })
}

/// Writes a whole file or leaves none: half an initramfs would boot into a puzzling panic.
fn write(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    fs::write(path, bytes).map_err(|source| {
        let _ = fs::remove_file(path);
        Error::Write { path: path.into(), source }
    })
}

#[cfg(test)]
mod tests;
