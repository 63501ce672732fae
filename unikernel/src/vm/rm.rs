//! `windsor vm rm`: forgets a VM that does not run.

use std::fs;
use std::io;

use super::xl::Xl;
use super::{Places, Record};
use crate::toolstack::Refusal;
use crate::vm::places::at;
use crate::world::World;

/// Removes its images and records, and with `purge` its configuration.
///
/// # Errors
/// [`Refusal::Busy`] while it runs, or while guests are saved in it.
pub fn run(places: &Places, xl: &Xl, name: &str, purge: bool) -> Result<(), Refusal> {
    Record::load(places, name)?;
    if let Ok(World::Xen) = World::find(None)
        && let Some(running) = xl.find(name)?
    {
        let text = format!("{name} runs (domain {}): `windsor vm stop {name}` first", running.domid);
        return Err(Refusal::Busy(text));
    }
    let dir = places.of(name);
    let saved = places.saved(name);
    if fs::read_dir(&saved).is_ok_and(|mut entries| entries.next().is_some()) {
        return Err(Refusal::Busy(format!(
            "guests are saved in {}: `xl restore` them, or delete what is in it if nobody needs it",
            saved.display()
        )));
    }
    // Under another name first: half a VM is none.
    let dying = places.state.join(format!(".{name}.old"));
    let _ = fs::remove_dir_all(&dying);
    fs::rename(&dir, &dying).map_err(|error| at(&dir, &error))?;
    fs::remove_dir_all(&dying).map_err(|error| at(&dying, &error))?;
    if purge {
        let toml = places.toml(name);
        match fs::remove_file(&toml) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(at(&toml, &error)),
            _ => {}
        }
    }
    Ok(())
}
