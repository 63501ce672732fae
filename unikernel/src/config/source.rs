//! `[[volume]]` tables that stand for many volumes: a disk with labelled partitions, or a directory of images.

use std::ops::Range;
use std::path::PathBuf;

use blkback::config::{DiskKind, OnError};
use toml::Spanned;

use super::{Mode, Volume, VolumeTable, Wrong, check_volume_name, wrong};

/// Most characters of a partition's label (UEFI: 36 units of UTF-16).
const MAX_LABEL: usize = 36;

/// Where volumes are found, made and removed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// Its name in `windsor volume create --in NAME`.
    pub name: String,
    /// What it is.
    pub place: Place,
    /// No guest may write, and no volume is made or removed.
    pub read_only: bool,
    /// Past the page cache.
    pub direct: bool,
    /// What happens when a volume fails.
    pub on_error: OnError,
    /// Guests may discard, where the medium can.
    pub discard: bool,
}

/// What a [`Source`] is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// Every regular file `NAME.img` in it is the volume NAME.
    Directory(PathBuf),
    /// Every partition of its GPT whose label is a volume's name is that volume.
    Disk(PathBuf),
}

impl Source {
    /// A volume in it: an image, or the partition with this label.
    pub fn volume(&self, name: &str) -> Volume {
        let (path, label) = match &self.place {
            Place::Directory(dir) => (dir.join(format!("{name}.img")), None),
            Place::Disk(disk) => (disk.clone(), Some(name.to_owned())),
        };
        Volume {
            name: name.to_owned(),
            path: Some(path),
            label,
            source: Some(self.name.clone()),
            read_only: self.read_only,
            direct: self.direct,
            kind: DiskKind::Raw,
            size: 0,
            on_error: self.on_error,
            discard: self.discard,
            fault: None,
        }
    }
}

/// What a partition's label may be: anything that is shown and fits.
pub(super) fn check_label(label: &str) -> Result<(), String> {
    let fits = (1..=MAX_LABEL).contains(&label.encode_utf16().count());
    if fits && !label.chars().any(char::is_control) {
        return Ok(());
    }
    Err(format!("a partition's label is 1 to {MAX_LABEL} characters, none of them control characters"))
}

/// Whether a table stands for many volumes.
pub(super) fn is_source(table: &VolumeTable) -> bool {
    table.directory.is_some() || (table.disk.is_some() && table.label.is_none())
}

/// Reads a table that does.
pub(super) fn source(table: Spanned<VolumeTable>) -> Result<(Range<usize>, Source), Wrong> {
    let whole = table.span();
    let table = table.into_inner();
    let at = table.name.span();
    let name = table.name.into_inner();
    check_volume_name(&name).map_err(|why| wrong(at.clone(), format!("volume name {name:?}: {why}")))?;
    let one = table.path.is_some() || table.label.is_some() || table.kind.is_some() || table.size.is_some();
    if one || table.fault.is_some() {
        let why =
            "directory, and disk without label, stand for many volumes: path, label, kind, size and fault are for one";
        return Err(wrong(whole, format!("volume \"{name}\": {why}")));
    }
    let place = match (table.directory, table.disk) {
        (Some(directory), None) if !directory.as_os_str().is_empty() => Place::Directory(directory),
        (None, Some(disk)) if !disk.as_os_str().is_empty() => Place::Disk(disk),
        (Some(_), Some(_)) => {
            return Err(wrong(whole, format!("volume \"{name}\": directory and disk exclude each other")));
        }
        _ => return Err(wrong(whole, format!("volume \"{name}\": its path is empty"))),
    };
    let source = Source {
        name,
        place,
        read_only: table.mode == Some(Mode::Ro),
        direct: table.direct.unwrap_or(true),
        on_error: table.on_error.unwrap_or_default(),
        discard: table.discard.unwrap_or(true),
    };
    Ok((at, source))
}

#[cfg(test)]
mod tests {
    use super::super::Config;
    use super::super::tests::fails;
    use super::*;

    #[test]
    fn tables_of_many_and_of_one() {
        let text = "[vm]\nname='a'\n[[volume]]\nname='ssd'\ndisk='/dev/x'\n[[volume]]\nname='images'\ndirectory='/srv'\n\
                    mode='ro'\ndirect=false\n[[volume]]\nname='db'\ndisk='/dev/x'\nlabel='acme db'\n";
        let config = Config::parse(text).unwrap();
        assert_eq!(config.sources.len(), 2);
        assert_eq!(config.sources[0].place, Place::Disk("/dev/x".into()));
        let image = config.sources[1].volume("web");
        assert_eq!(image.path.as_deref(), Some("/srv/web.img".as_ref()));
        assert!(image.read_only && !image.direct && image.source.as_deref() == Some("images"));
        let db = config.volume("db").unwrap();
        assert_eq!((db.label.as_deref(), db.path.as_deref()), (Some("acme db"), Some("/dev/x".as_ref())));
        assert_eq!(config.sources[0].volume("web").label.as_deref(), Some("web"));
    }

    #[test]
    fn what_does_not_go_together_is_refused_with_its_line() {
        let head = "[vm]\nname = 'acme'\n[[volume]]\nname = 'db'\n";
        for (more, says) in [
            ("directory = '/a'\ndisk = '/b'\n", "exclude each other"),
            ("directory = '/a'\npath = '/b'\n", "are for one"),
            ("disk = '/b'\nkind = 'null'\n", "are for one"),
            ("directory = ''\n", "its path is empty"),
            ("label = 'x'\n", "say disk, too"),
            ("path = '/b'\nlabel = 'x'\n", "say disk, too"),
            ("path = '/b'\ndisk = '/c'\nlabel = 'x'\n", "exclude each other"),
            ("disk = '/c'\nlabel = ''\n", "1 to 36 characters"),
            ("disk = '/c'\nlabel = \"a\\nb\"\n", "1 to 36 characters"),
        ] {
            let text = fails(&format!("{head}{more}"));
            assert!(text.starts_with("3: ") && text.contains(says), "{more}: {text}");
        }
        let text = fails(&format!("{head}directory = '/a'\n[[volume]]\nname = 'db'\npath = '/b'\n"));
        assert!(text.contains("a second volume named \"db\""), "{text}");
    }
}
