//! The initramfs: a newc cpio archive, compressed with gzip, the same bytes for the same input.

use std::collections::BTreeMap;
use std::io::{self, Write};

use cpio::newc::{Builder, ModeFileType, trailer};
use flate2::{Compression, GzBuilder};

use super::manifest::Part;

/// What a path of the archive is.
enum Node {
    Directory,
    File {
        mode: u32,
        body: Vec<u8>,
    },
    Link(String),
    /// A character device (major, minor).
    Device(u32, u32),
}

/// Files on their way into an initramfs. Times are zero, owner is root and the order is that of the names, so the
/// archive depends on nothing but what was put in.
#[derive(Default)]
pub struct Archive {
    nodes: BTreeMap<String, Node>,
}

impl Archive {
    /// Puts a regular file at `path` (no leading slash); directories above it come by themselves.
    pub fn file(&mut self, path: &str, mode: u32, body: Vec<u8>) {
        self.insert(path, Node::File { mode, body });
    }

    /// Puts a symbolic link to `target` at `path`.
    pub fn link(&mut self, path: &str, target: &str) {
        self.insert(path, Node::Link(target.into()));
    }

    /// Puts a character device at `path`.
    pub fn device(&mut self, path: &str, major: u32, minor: u32) {
        self.insert(path, Node::Device(major, minor));
    }

    /// Puts an empty directory at `path`.
    pub fn directory(&mut self, path: &str) {
        self.insert(path, Node::Directory);
    }

    fn insert(&mut self, path: &str, node: Node) {
        for (slash, _) in path.match_indices('/') {
            self.nodes.entry(path[..slash].into()).or_insert(Node::Directory);
        }
        self.nodes.insert(path.into(), node);
    }

    /// Its regular files, by name, with their sizes.
    pub fn files(&self) -> Vec<Part> {
        let file = |(path, node): (&String, &Node)| match node {
            Node::File { body, .. } => Some(Part { path: path.clone(), bytes: body.len() as u64 }),
            _ => None,
        };
        self.nodes.iter().filter_map(file).collect()
    }

    /// Writes the compressed archive.
    ///
    /// # Errors
    /// Those of `output`, and a file of 4 GiB or more, which newc cannot hold.
    pub fn write(self, output: impl Write) -> io::Result<()> {
        let mut output = GzBuilder::new().mtime(0).write(output, Compression::default());
        for (inode, (path, node)) in (1..).zip(self.nodes) {
            let entry = Builder::new(&path).ino(inode);
            let (entry, body) = match node {
                Node::Directory => (entry.mode(0o755).nlink(2).set_mode_file_type(ModeFileType::Directory), Vec::new()),
                Node::File { mode, body } => (entry.mode(mode).set_mode_file_type(ModeFileType::Regular), body),
                Node::Link(target) => {
                    (entry.mode(0o777).set_mode_file_type(ModeFileType::Symlink), target.into_bytes())
                }
                Node::Device(major, minor) => {
                    let entry = entry.mode(0o600).set_mode_file_type(ModeFileType::Char);
                    (entry.rdev_major(major).rdev_minor(minor), Vec::new())
                }
            };
            let size = u32::try_from(body.len()).map_err(|_| io::Error::from(io::ErrorKind::FileTooLarge))?;
            let mut writer = entry.write(output, size);
            writer.write_all(&body)?;
            output = writer.finish()?;
        }
        trailer(output)?.finish()?.flush()
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use cpio::newc::Reader;

    /// The entries of a compressed archive as (name, mode, body).
    pub(in crate::image) fn list(archive: &[u8]) -> Vec<(String, u32, Vec<u8>)> {
        let mut input = flate2::read::GzDecoder::new(archive);
        let mut entries = Vec::new();
        loop {
            let reader = Reader::new(input).unwrap();
            if reader.entry().is_trailer() {
                return entries;
            }
            assert_eq!((reader.entry().mtime(), reader.entry().uid(), reader.entry().gid()), (0, 0, 0));
            let (name, mode) = (reader.entry().name().to_owned(), reader.entry().mode());
            let mut body = Vec::new();
            input = reader.to_writer(&mut body).unwrap();
            entries.push((name, mode, body));
        }
    }

    fn sample(reversed: bool) -> Vec<u8> {
        let mut archive = Archive::default();
        let mut steps: Vec<fn(&mut Archive)> = vec![
            |archive| archive.file("init", 0o755, b"program".to_vec()),
            |archive| archive.file("etc/a/b", 0o644, Vec::new()),
            |archive| archive.device("dev/console", 5, 1),
            |archive| archive.link("sbin/poweroff", "../init"),
            |archive| archive.directory("proc"),
        ];
        if reversed {
            steps.reverse();
        }
        steps.iter().for_each(|step| step(&mut archive));
        let mut bytes = Vec::new();
        archive.write(&mut bytes).unwrap();
        bytes
    }

    #[test]
    fn parents_come_first_and_types_are_right() {
        let entries = list(&sample(false));
        let found: Vec<_> = entries.iter().map(|(name, mode, body)| (name.as_str(), *mode, body.as_slice())).collect();
        assert_eq!(
            found,
            [
                ("dev", 0o040755, &b""[..]),
                ("dev/console", 0o020600, b""),
                ("etc", 0o040755, b""),
                ("etc/a", 0o040755, b""),
                ("etc/a/b", 0o100644, b""),
                ("init", 0o100755, b"program"),
                ("proc", 0o040755, b""),
                ("sbin", 0o040755, b""),
                ("sbin/poweroff", 0o120777, b"../init"),
            ]
        );
    }

    #[test]
    fn the_order_of_insertion_does_not_show() {
        assert_eq!(sample(false), sample(true));
    }
}
