//! A dom0 without Xen: the embedded host's xenstored stands for Xen's, a script for `xl`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use unikernel::image::DomainType;
use unikernel::image::manifest::Manifest;
use xenstore::{Client, Store};

use crate::rig::{Ended, Rig, run, windsor};

/// Such a dom0.
pub struct Dom0 {
    /// The host behind it.
    pub rig: Rig,
}

impl Dom0 {
    /// With nothing on it.
    #[track_caller]
    pub fn new() -> Dom0 {
        let dom0 = Dom0 { rig: Rig::new() };
        fs::create_dir_all(dom0.xl("")).unwrap();
        fs::create_dir_all(dom0.rig.path("bin")).unwrap();
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/dom0/xl");
        std::os::unix::fs::symlink(script, dom0.rig.path("bin/xl")).unwrap();
        fs::write(dom0.xl("calls"), "").unwrap();
        fs::write(dom0.xl("changes"), "").unwrap();
        dom0
    }

    /// A file that the scripted `xl` reads or writes.
    pub fn xl(&self, file: &str) -> PathBuf {
        self.rig.path("xl").join(file)
    }

    /// Tells it something, one line.
    pub fn tell(&self, file: &str, line: &str) {
        fs::write(self.xl(file), format!("{line}\n")).unwrap();
    }

    /// What it was asked for that changes something.
    pub fn changes(&self) -> Vec<String> {
        let text = fs::read_to_string(self.xl("changes")).unwrap();
        text.lines().map(str::to_owned).collect()
    }

    /// Forgets what it was asked for.
    pub fn forget(&self) {
        for file in ["changes", "count.change", "ran"] {
            let _ = fs::remove_file(self.xl(file));
        }
        fs::write(self.xl("changes"), "").unwrap();
    }

    /// A call of `windsor` in this dom0.
    pub fn windsor(&self) -> Command {
        let mut command = windsor();
        let program = command.get_program().to_owned();
        let path = format!("{}:{}", self.rig.path("bin").display(), std::env::var("PATH").unwrap());
        command.env("PATH", path).env("XENSTORED_PATH", self.rig.dir().join("xenstored/socket"));
        command.env("WINDSOR", program).env("XL", self.xl(""));
        command
    }

    /// `windsor ARGS...`.
    #[track_caller]
    pub fn run(&self, args: &[&str]) -> Ended {
        run(self.windsor().args(args))
    }

    /// `windsor vm ARGS...` with the directories of this dom0.
    #[track_caller]
    pub fn vm(&self, args: &[&str]) -> Ended {
        let mut command = self.windsor();
        command.arg("vm").arg("--state-dir").arg(self.rig.path("state"));
        run(command.arg("--config-dir").arg(self.rig.path("etc")).args(args))
    }

    /// `windsor vm ARGS... --json`.
    #[track_caller]
    pub fn json(&self, args: &[&str]) -> Value {
        let ended = self.vm(&[args, &["--json"]].concat());
        serde_json::from_str(ended.fine()).expect("JSON")
    }

    /// Runs the scripted `xl`, as an operator would.
    #[track_caller]
    pub fn by_hand(&self, args: &[&str]) {
        let mut xl = Command::new(self.rig.path("bin/xl"));
        let windsor = self.windsor();
        for (key, value) in windsor.get_envs() {
            if let Some(value) = value {
                xl.env(key, value);
            }
        }
        let ended = run(xl.args(args));
        assert_eq!(ended.code, Some(0), "xl {args:?}: {ended:?}");
    }

    /// A configuration of the VM `name`; `more` makes the image another one.
    pub fn config(&self, name: &str, more: &str) -> PathBuf {
        let text = format!("[vm]\nname = \"{name}\"\n[[volume]]\nname = \"db\"\npath = \"/dev/xvda\"\n{more}\n");
        self.rig.config(&format!("{name}{}", more.len()), &text)
    }

    /// An image of the VM `name`, as `windsor image build` leaves one; nothing here boots it.
    #[track_caller]
    pub fn image(&self, name: &str, kind: &str, more: &str) -> PathBuf {
        let out = self.rig.path(&format!("image-{name}-{kind}-{}", more.len()));
        let kind = if kind == "pv" { DomainType::Pv } else { DomainType::Pvh };
        let initramfs = format!("{name} {kind} {more}");
        let kernel = ("6.12.0-test", &b"a kernel"[..]);
        let manifest = Manifest::new(name, kind, kernel, Vec::new(), initramfs.as_bytes(), Vec::new());
        fs::create_dir_all(&out).unwrap();
        fs::write(out.join("vmlinuz"), kernel.1).unwrap();
        fs::write(out.join("initramfs.img"), initramfs).unwrap();
        fs::write(out.join("manifest.json"), manifest.text()).unwrap();
        out
    }

    /// Creates the VM `acme` from an image of its own.
    #[track_caller]
    pub fn acme(&self) {
        let (config, image) = (self.config("acme", ""), self.image("acme", "pvh", ""));
        self.vm(&["create", "acme", "-f", config.to_str().unwrap(), "--image", image.to_str().unwrap()]).fine();
    }

    /// A guest with a disk from `acme`, as `xl create` leaves it.
    #[track_caller]
    pub fn guest(&self, name: &str, disks: &[&str]) {
        let saved: String = disks.iter().map(|devid| format!("{devid} acme db\n")).collect();
        let file = self.rig.path(&format!("{name}.born"));
        fs::write(&file, format!("{name}\n{saved}")).unwrap();
        self.by_hand(&["restore", file.to_str().unwrap()]);
    }

    /// The store.
    pub fn store(&self) -> Client {
        self.rig.store()
    }

    /// The number of a domain.
    #[track_caller]
    pub fn domid(&self, name: &str) -> u16 {
        let text = fs::read_to_string(self.xl("domains").join(name)).expect("no such domain");
        text.split(' ').next().unwrap().parse().unwrap()
    }

    /// All domains but dom0, by name.
    pub fn domains(&self) -> Vec<String> {
        let entries = fs::read_dir(self.xl("domains")).into_iter().flatten().flatten();
        let mut names: Vec<String> = entries.map(|entry| entry.file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    /// The states of a guest's disk, backend first.
    pub fn states(&self, guest: &str, devid: u32) -> (Option<String>, Option<String>) {
        let mut store = self.store();
        let mut text = |path: String| {
            let value = store.read_optional(&path).unwrap()?;
            Some(String::from_utf8(value).unwrap())
        };
        let id = self.domid(guest);
        let back = text(format!("/libxl/{id}/device/vbd/{devid}/backend")).unwrap_or_default();
        (text(format!("{back}/state")), text(format!("/local/domain/{id}/device/vbd/{devid}/state")))
    }

    /// Every file below the directories of the VMs, links with what they point to.
    pub fn files(&self) -> Vec<String> {
        let mut found = Vec::new();
        for top in ["state", "etc"] {
            walk(&self.rig.path(top), top, &mut found);
        }
        found.sort();
        found
    }
}

fn walk(dir: &Path, name: &str, found: &mut Vec<String>) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let name = format!("{name}/{}", entry.file_name().into_string().unwrap());
        let kind = entry.file_type().unwrap();
        if kind.is_symlink() {
            found.push(format!("{name} -> {}", fs::read_link(entry.path()).unwrap().display()));
        } else if kind.is_dir() {
            walk(&entry.path(), &name, found);
        } else {
            found.push(name);
        }
    }
}
