//! Which kernel modules go into an image, and in which order PID 1 loads them.
//!
//! A module tree is what a kernel package installs: `lib/modules/VERSION`. `modules.dep` is used where depmod has
//! run; in an unpacked package it has not, and the dependencies are read from the modules themselves.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use super::elf::Elf;
use super::{Error, read};

/// A module somebody asks for, with the parameters it is to be loaded with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// The module's name; `-` and `_` are the same.
    pub name: String,
    /// Parameters as on modprobe's command line, `a=1 b=2`.
    pub params: String,
    /// Whether a kernel that has it neither as a module nor built in is an error.
    pub required: bool,
}

impl Wanted {
    /// Parses `NAME [PARAMETER=VALUE]...`, the form of `[vm] modules` and of `/etc/modules`.
    pub fn parse(text: &str, required: bool) -> Self {
        let mut words = text.split_whitespace();
        let name = normal(words.next().unwrap_or_default());
        Self { name, params: words.collect::<Vec<_>>().join(" "), required }
    }
}

/// A module of the image, unpacked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Module {
    /// The name with underscores, as in /proc/modules.
    pub name: String,
    /// Parameters, may be empty.
    pub params: String,
    /// The ELF file as the kernel takes it.
    pub body: Vec<u8>,
}

/// An installed module tree.
#[derive(Debug)]
pub struct Tree {
    /// The kernel's version: the name of the directory.
    pub version: String,
    root: PathBuf,
    /// Where each module lies, relative to `root`.
    files: BTreeMap<String, PathBuf>,
    /// From modules.dep; `None` where depmod never ran.
    depends: Option<BTreeMap<String, Vec<String>>>,
    builtin: BTreeSet<String>,
}

impl Tree {
    /// Opens `lib/modules/VERSION`, or the directory above it when it holds exactly one version.
    ///
    /// # Errors
    /// [`Error::Modules`] says what is wrong with the directory.
    pub fn open(dir: &Path) -> Result<Self, Error> {
        let root = Self::locate(dir)?;
        let version = root
            .canonicalize()
            .ok()
            .and_then(|path| Some(path.file_name()?.to_str()?.to_owned()))
            .ok_or_else(|| Error::Modules { dir: dir.into(), why: "its name is not a kernel version".into() })?;
        let builtin: BTreeSet<_> = read_lines(&root.join("modules.builtin"))?.iter().map(|line| normal(line)).collect();
        let mut files = BTreeMap::new();
        let mut depends = BTreeMap::new();
        for line in read_lines(&root.join("modules.dep"))? {
            let Some((file, needs)) = line.split_once(':') else {
                continue;
            };
            files.insert(normal(file), PathBuf::from(file));
            depends.insert(normal(file), needs.split_whitespace().map(normal).collect());
        }
        let depends = (!depends.is_empty()).then_some(depends);
        if depends.is_none() {
            walk(&root, Path::new(""), &mut files)?;
        }
        // A kernel may have everything built in.
        if files.is_empty() && builtin.is_empty() {
            let why = "there is not one .ko file in it, and its modules.builtin names none".into();
            return Err(Error::Modules { dir: dir.into(), why });
        }
        Ok(Self { version, root, files, depends, builtin })
    }

    fn locate(dir: &Path) -> Result<PathBuf, Error> {
        let is_tree = |dir: &Path| {
            ["modules.dep", "modules.builtin", "modules.order", "kernel"].iter().any(|name| dir.join(name).exists())
        };
        if is_tree(dir) {
            return Ok(dir.into());
        }
        let entries = fs::read_dir(dir).map_err(|source| Error::Read { path: dir.into(), source })?;
        let mut versions: Vec<_> =
            entries.filter_map(|entry| Some(entry.ok()?.path())).filter(|path| is_tree(path)).collect();
        versions.sort();
        match versions.as_slice() {
            [one] => Ok(one.clone()),
            [] => Err(Error::Modules {
                dir: dir.into(),
                why: "it holds no modules.dep, modules.builtin or kernel/; give the lib/modules/VERSION directory of the \
                      kernel package"
                    .into(),
            }),
            many => {
                let names: Vec<_> = many.iter().filter_map(|path| path.file_name()?.to_str()).collect();
                let why = format!("it holds several versions ({}); give one of them", names.join(", "));
                Err(Error::Modules { dir: dir.into(), why })
            }
        }
    }

    /// Unpacks what `wanted` needs, dependencies before their users. What is built in needs nothing and is left out.
    ///
    /// # Errors
    /// [`Error::MissingModule`] for a required module, or a dependency, that this kernel does not have;
    /// [`Error::BuiltinParameters`] where parameters are given for something that is built in.
    pub fn resolve(&self, wanted: &[Wanted]) -> Result<Vec<Module>, Error> {
        let mut order = Vec::new();
        for want in wanted {
            self.add(&want.name, None, want, &mut Vec::new(), &mut order)?;
        }
        for module in &mut order {
            let params = wanted.iter().filter(|want| want.name == module.name && !want.params.is_empty());
            module.params = params.map(|want| want.params.as_str()).collect::<Vec<_>>().join(" ");
        }
        Ok(order)
    }

    /// Depth first: `path` holds the modules being resolved, so that a circle ends.
    fn add(
        &self,
        name: &str,
        user: Option<&str>,
        want: &Wanted,
        path: &mut Vec<String>,
        order: &mut Vec<Module>,
    ) -> Result<(), Error> {
        if order.iter().any(|module| module.name == name) || path.iter().any(|other| other == name) {
            return Ok(());
        }
        let Some(file) = self.files.get(name) else {
            if self.builtin.contains(name) {
                if user.is_none() && !want.params.is_empty() {
                    return Err(Error::BuiltinParameters { module: name.into(), params: want.params.clone() });
                }
                return Ok(());
            }
            if user.is_none() && !want.required {
                return Ok(());
            }
            return Err(Error::MissingModule {
                module: name.into(),
                user: user.map(Into::into),
                version: self.version.clone(),
                dir: self.root.clone(),
            });
        };
        let body = unpack(&self.root.join(file))?;
        let elf = Elf::parse(&body).map_err(|why| Error::Modules {
            dir: self.root.join(file),
            why: format!("{why}; the module is damaged"),
        })?;
        let needs = match &self.depends {
            Some(depends) => depends.get(name).cloned().unwrap_or_default(),
            None => elf.modinfo("depends").iter().flat_map(|list| list.split(',')).map(normal).collect(),
        };
        path.push(name.into());
        for need in needs.iter().filter(|need| !need.is_empty()) {
            self.add(need, Some(name), want, path, order)?;
        }
        path.pop();
        order.push(Module { name: name.into(), params: String::new(), body });
        Ok(())
    }
}

/// A module's name from its name or its file: `kernel/drivers/xen/xen-evtchn.ko.xz` is `xen_evtchn`.
pub fn normal(file: &str) -> String {
    let file = file.trim();
    let name = file.rsplit('/').next().unwrap_or(file);
    let name = name.split_once(".ko").map_or(name, |(stem, _)| stem);
    name.replace('-', "_")
}

fn read_lines(path: &Path) -> Result<Vec<String>, Error> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(text.lines().map(str::to_owned).collect()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(source) => Err(Error::Read { path: path.into(), source }),
    }
}

fn walk(root: &Path, below: &Path, files: &mut BTreeMap<String, PathBuf>) -> Result<(), Error> {
    let dir = root.join(below);
    let failed = |source| Error::Read { path: dir.clone(), source };
    for entry in fs::read_dir(&dir).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let path = below.join(entry.file_name());
        // A symbolic link is not followed: `build` and `source` lead out of the tree.
        if entry.file_type().map_err(failed)?.is_dir() {
            walk(root, &path, files)?;
        } else if let Some(name) = path.file_name().and_then(|name| name.to_str())
            && [".ko", ".ko.xz", ".ko.gz", ".ko.zst"].iter().any(|end| name.ends_with(end))
        {
            files.insert(normal(name), path);
        }
    }
    Ok(())
}

/// Reads a module file, decompressed: the kernel of the image need not know the compression.
fn unpack(path: &Path) -> Result<Vec<u8>, Error> {
    let packed = read(path)?;
    let failed = |why: String| Error::Modules { dir: path.into(), why };
    let mut body = Vec::new();
    match path.extension().and_then(|end| end.to_str()) {
        Some("xz") => lzma_rs::xz_decompress(&mut packed.as_slice(), &mut body)
            .map_err(|error| failed(format!("its xz stream is damaged ({error:?})")))?,
        Some("gz") => {
            flate2::read::GzDecoder::new(packed.as_slice())
                .read_to_end(&mut body)
                .map_err(|error| failed(format!("its gzip stream is damaged ({error})")))?;
        }
        Some("zst") => {
            return Err(failed("zstd is not supported; unpack the modules with `zstd -d` first".into()));
        }
        _ => body = packed,
    }
    Ok(body)
}

#[cfg(test)]
mod tests {
    use super::super::elf::tests::sample;
    use super::*;
    use std::io::Write;

    fn module(depends: &str) -> Vec<u8> {
        sample(1, format!("depends={depends}\0").as_bytes())
    }

    /// A tree of version 6.1.0-test with modules (name, what .modinfo says it depends on).
    fn tree(modules: &[(&str, &str)], builtin: &str) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("6.1.0-test");
        fs::create_dir_all(root.join("kernel/drivers")).unwrap();
        for (name, depends) in modules {
            fs::write(root.join("kernel/drivers").join(format!("{name}.ko")), module(depends)).unwrap();
        }
        fs::write(root.join("modules.builtin"), builtin).unwrap();
        dir
    }

    fn names(modules: &[Module]) -> Vec<&str> {
        modules.iter().map(|module| module.name.as_str()).collect()
    }

    fn want(text: &str) -> Wanted {
        Wanted::parse(text, true)
    }

    #[test]
    fn dependencies_come_first_and_once_without_depmod() {
        let dir = tree(&[("top-a", "mid"), ("mid", "base,other"), ("base", ""), ("other", "base"), ("extra", "")], "");
        let tree = Tree::open(dir.path()).unwrap();
        assert_eq!(tree.version, "6.1.0-test");
        let modules = tree.resolve(&[want("top_a x=1"), want("other y=2 z=3")]).unwrap();
        assert_eq!(names(&modules), ["base", "other", "mid", "top_a"]);
        assert_eq!(modules[3].params, "x=1");
        assert_eq!(modules[1].params, "y=2 z=3");
    }

    #[test]
    fn modules_dep_is_believed_where_it_exists() {
        let dir = tree(&[("a", ""), ("b", "")], "");
        fs::write(
            dir.path().join("6.1.0-test/modules.dep"),
            "kernel/drivers/a.ko: kernel/drivers/b.ko\nkernel/drivers/b.ko:\n",
        )
        .unwrap();
        let modules = Tree::open(dir.path()).unwrap().resolve(&[want("a")]).unwrap();
        assert_eq!(names(&modules), ["b", "a"]);
    }

    #[test]
    fn builtin_needs_no_file_but_takes_no_parameters() {
        let dir = tree(&[("a", "nvme-core")], "kernel/drivers/nvme/host/nvme-core.ko\n");
        let tree = Tree::open(dir.path()).unwrap();
        assert_eq!(names(&tree.resolve(&[want("a"), want("nvme_core")]).unwrap()), ["a"]);
        let error = tree.resolve(&[want("nvme-core x=1")]).unwrap_err().to_string();
        assert!(error.contains("nvme_core") && error.contains("--append"), "{error}");
    }

    #[test]
    fn a_missing_module_is_named_with_its_user() {
        let dir = tree(&[("a", "gone")], "");
        let tree = Tree::open(dir.path()).unwrap();
        let error = tree.resolve(&[want("a")]).unwrap_err().to_string();
        assert!(error.contains("gone") && error.contains('a') && error.contains("6.1.0-test"), "{error}");
        assert!(tree.resolve(&[want("b")]).unwrap_err().to_string().contains('b'));
        assert!(tree.resolve(&[Wanted::parse("b", false)]).unwrap().is_empty());
    }

    #[test]
    fn a_circle_ends() {
        let dir = tree(&[("a", "b"), ("b", "a")], "");
        assert_eq!(names(&Tree::open(dir.path()).unwrap().resolve(&[want("a")]).unwrap()), ["b", "a"]);
    }

    #[test]
    fn compressed_modules_are_unpacked() {
        let dir = tree(&[], "");
        let drivers = dir.path().join("6.1.0-test/kernel/drivers");
        let mut packed = Vec::new();
        lzma_rs::xz_compress(&mut module("b").as_slice(), &mut packed).unwrap();
        fs::write(drivers.join("a.ko.xz"), packed).unwrap();
        let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gz.write_all(&module("")).unwrap();
        fs::write(drivers.join("b.ko.gz"), gz.finish().unwrap()).unwrap();
        fs::write(drivers.join("c.ko.zst"), b"").unwrap();
        let tree = Tree::open(dir.path()).unwrap();
        let modules = tree.resolve(&[want("a")]).unwrap();
        assert_eq!(names(&modules), ["b", "a"]);
        assert_eq!(modules[1].body, module("b"));
        assert!(tree.resolve(&[want("c")]).unwrap_err().to_string().contains("zstd"));
    }

    #[test]
    fn a_directory_with_two_versions_or_none_is_refused() {
        let dir = tree(&[("a", "")], "");
        fs::create_dir_all(dir.path().join("6.12.0-test/kernel")).unwrap();
        let error = Tree::open(dir.path()).unwrap_err().to_string();
        assert!(error.contains("6.1.0-test, 6.12.0-test"), "{error}");
        assert!(Tree::open(&dir.path().join("6.12.0-test/kernel")).is_err());
        assert!(Tree::open(Path::new("/nonexistent")).unwrap_err().to_string().contains("/nonexistent"));
    }
}
