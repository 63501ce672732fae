//! `windsor vm create`: an image, a record and a configuration for `xl`, all of it or nothing.

use std::fs;
use std::path::{Path, PathBuf};

use super::places::{self, Places, at};
use super::record::{Record, is_name};
use super::xl::Xl;
use super::{pci, start};
use crate::config::Config;
use crate::image::manifest::{FILE, INITRAMFS, KERNEL, Manifest};
use crate::image::{self, Recipe, xl::quotable};
use crate::store;
use crate::toolstack::Refusal;
use crate::toolstack::domain;
use crate::world::World;

/// What the VM boots.
#[derive(Clone, Debug)]
pub enum Source {
    /// An image that was built for it.
    Image(PathBuf),
    /// A kernel and its modules.
    Kernel {
        /// `vmlinuz-VERSION`.
        kernel: PathBuf,
        /// `lib/modules/VERSION`.
        modules: PathBuf,
    },
}

/// What to create.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// What becomes `vm.json`.
    pub record: Record,
    /// Its configuration, where it is not in [`Places::config`] already.
    pub config: Option<PathBuf>,
    /// What it boots.
    pub source: Source,
}

/// Everything but the VM itself is checked.
///
/// # Errors
/// [`Refusal`] with what is missing, wrong or taken.
pub fn check(places: &Places, xl: &Xl, wanted: &Wanted) -> Result<(), Refusal> {
    let Record { name, .. } = &wanted.record;
    if !is_name(name) {
        return Err(Refusal::Failed(format!(
            "\"{name}\" cannot be the name of a VM: letters, digits, '.', '_' and '-'"
        )));
    }
    let dir = places.of(name);
    if dir.exists() {
        return Err(Refusal::Busy(format!(
            "a service VM named {name} has been created already ({}): choose another name, or `windsor vm rm {name}`",
            dir.display()
        )));
    }
    // On a machine without Xen a VM can be made ready for another one.
    if let Ok(World::Xen) = World::find(None) {
        let mut store = store::toolstack(&World::Xen).map_err(|error| Refusal::NotFound(error.to_string()))?;
        if let Some(other) = domain::all(&mut store)?.into_iter().find(|domain| domain.name == *name) {
            let text = format!("domain {} is named {name} already: choose another name", other.domid);
            return Err(Refusal::Busy(text));
        }
        pci::check(xl, &wanted.record.pci)?;
        start::check_disks(&mut store, &wanted.record.disks)?;
    }
    for words in wanted.record.disks.iter().chain(&wanted.record.nets).chain([&wanted.record.append]) {
        if !quotable(words) {
            return Err(Refusal::Failed(format!("{words:?} cannot stand in an xl configuration")));
        }
    }
    let config = wanted.config.clone().unwrap_or_else(|| places.toml(name));
    check_config(&config, name)?;
    if let Source::Image(dir) = &wanted.source {
        check_image(dir, &wanted.record)?;
    }
    Ok(())
}

/// The configuration is one, and this VM's.
fn check_config(path: &Path, name: &str) -> Result<(), Refusal> {
    let config = Config::load(path).map_err(|error| match error {
        crate::config::ConfigError::Read { path, source } => {
            Refusal::NotFound(format!("{}: {source}; -f FILE.toml gives a configuration", path.display()))
        }
        wrong => Refusal::Usage(wrong.to_string()),
    })?;
    if config.vm.name != name {
        let its = &config.vm.name;
        return Err(Refusal::Usage(format!("{} is of a VM named \"{its}\", not \"{name}\"", path.display())));
    }
    Ok(())
}

/// An image is whole, and this VM's.
///
/// # Errors
/// [`Refusal`] with what is wrong.
pub fn check_image(dir: &Path, record: &Record) -> Result<Manifest, Refusal> {
    let manifest = Manifest::verify(dir)?;
    let wrong = |why: String| Err(Refusal::Usage(format!("{} {why}", dir.display())));
    if manifest.name != record.name {
        return wrong(format!("is an image of \"{}\", not of \"{}\"", manifest.name, record.name));
    }
    if manifest.kind != record.kind {
        return wrong(format!("is an image for type {}, and {} is to be {}", manifest.kind, record.name, record.kind));
    }
    Ok(manifest)
}

/// Creates the VM; what was begun is undone if any of it fails.
///
/// # Errors
/// [`Refusal`].
pub fn run(places: &Places, xl: &Xl, wanted: &Wanted) -> Result<Manifest, Refusal> {
    check(places, xl, wanted)?;
    let Record { name, .. } = &wanted.record;
    fs::create_dir_all(&places.state).map_err(|error| at(&places.state, &error))?;
    let fresh = Fresh(places.state.join(format!(".{name}.new")));
    if fresh.0.exists() {
        fs::remove_dir_all(&fresh.0).map_err(|error| at(&fresh.0, &error))?;
    }
    let toml = wanted.config.clone().unwrap_or_else(|| places.toml(name));
    let manifest = place_image(&fresh.0.join("images"), &wanted.source, &wanted.record, &toml)?;
    let id = manifest.id();
    places::point(&fresh.0.join("images/current"), &id)?;
    wanted.record.store(&fresh.0)?;
    places::write(&fresh.0.join(format!("{name}.cfg")), wanted.record.xl(places).as_bytes())?;
    if let Some(config) = &wanted.config
        && *config != places.toml(name)
    {
        fs::create_dir_all(&places.config).map_err(|error| at(&places.config, &error))?;
        let text = fs::read(config).map_err(|error| at(config, &error))?;
        places::write(&places.toml(name), &text)?;
    }
    let dir = places.of(name);
    fs::rename(&fresh.0, &dir).map_err(|error| at(&dir, &error))?;
    Ok(manifest)
}

/// A directory that goes away unless it has been renamed.
struct Fresh(PathBuf);

impl Drop for Fresh {
    fn drop(&mut self) {
        // Not there is what it is like when all went well.
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Puts an image beside the others, under its own name.
///
/// # Errors
/// [`Refusal`]; nothing is left then.
pub fn place_image(images: &Path, source: &Source, record: &Record, toml: &Path) -> Result<Manifest, Refusal> {
    let fresh = Fresh(images.join(".new"));
    if fresh.0.exists() {
        fs::remove_dir_all(&fresh.0).map_err(|error| at(&fresh.0, &error))?;
    }
    fs::create_dir_all(&fresh.0).map_err(|error| at(&fresh.0, &error))?;
    let manifest = match source {
        Source::Image(dir) => {
            let manifest = check_image(dir, record)?;
            for file in [KERNEL, INITRAMFS, FILE] {
                let from = dir.join(file);
                fs::copy(&from, fresh.0.join(file)).map_err(|error| at(&from, &error))?;
            }
            // What was copied is what was checked.
            Manifest::verify(&fresh.0)?;
            manifest
        }
        Source::Kernel { kernel, modules } => {
            image::build(&Recipe {
                kernel: kernel.clone(),
                modules: modules.clone(),
                config: toml.to_owned(),
                out: fresh.0.clone(),
                kind: record.kind,
                memory_mib: record.memory_mib,
                vcpus: record.vcpus,
                append: record.append.clone(),
                dom0_dir: None,
            })?
            .manifest
        }
    };
    let place = images.join(manifest.id());
    if !place.exists() {
        fs::rename(&fresh.0, &place).map_err(|error| at(&place, &error))?;
    }
    Ok(manifest)
}

/// The newest kernel in `boot` whose modules are in `modules`; those made for virtual machines first.
///
/// # Errors
/// [`Refusal::NotFound`] with the package that has one.
pub fn newest_kernel(boot: &Path, modules: &Path) -> Result<Source, Refusal> {
    let mut found: Vec<(bool, Vec<u64>, String)> = Vec::new();
    for entry in fs::read_dir(boot).into_iter().flatten().flatten() {
        let Ok(name) = entry.file_name().into_string() else { continue };
        let Some(version) = name.strip_prefix("vmlinuz-") else { continue };
        if modules.join(version).is_dir() {
            let numbers = version.split(|c: char| !c.is_ascii_digit()).filter_map(|part| part.parse().ok()).collect();
            found.push((version.contains("cloud"), numbers, version.to_owned()));
        }
    }
    found.sort();
    match found.pop() {
        Some((_, _, version)) => {
            Ok(Source::Kernel { kernel: boot.join(format!("vmlinuz-{version}")), modules: modules.join(&version) })
        }
        None => Err(Refusal::NotFound(format!(
            "no kernel in {} with its modules in {}: `apt-get install linux-image-6.12-cloud-amd64` (bookworm-backports \
             or newer), or give --kernel and --modules",
            boot.display(),
            modules.display()
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_kernel_for_virtual_machines() {
        let dir = tempfile::tempdir().unwrap();
        let (boot, modules) = (dir.path().join("boot"), dir.path().join("modules"));
        assert!(newest_kernel(&boot, &modules).unwrap_err().to_string().contains("linux-image"));
        fs::create_dir_all(&boot).unwrap();
        let versions = ["6.1.0-9-cloud-amd64", "6.1.0-40-cloud-amd64", "6.18.0-1-amd64", "7.0.0-1-cloud-amd64"];
        for version in versions {
            fs::write(boot.join(format!("vmlinuz-{version}")), "").unwrap();
            fs::create_dir_all(modules.join(version)).unwrap();
        }
        // Without its modules it is none.
        fs::remove_dir(modules.join(versions[3])).unwrap();
        let Source::Kernel { kernel, modules } = newest_kernel(&boot, &modules).unwrap() else { panic!("an image") };
        assert!(kernel.ends_with("vmlinuz-6.1.0-40-cloud-amd64"), "{}", kernel.display());
        assert!(modules.ends_with("6.1.0-40-cloud-amd64"), "{}", modules.display());
    }
}
