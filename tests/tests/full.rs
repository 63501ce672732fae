//! A volume on a file system that is full: the guest gets errors for what does not fit, and keeps what it has flushed.

mod rig;

use std::path::PathBuf;
use std::process::Command;

use rig::{Nbd, Rig};
use tests::skip::skip;

/// A small tmpfs, unmounted when it is dropped.
struct Small(PathBuf);

impl Small {
    fn new(path: PathBuf) -> Option<Small> {
        std::fs::create_dir(&path).expect("a directory");
        let mut mount = Command::new("mount");
        let mounted = mount.args(["-t", "tmpfs", "-o", "size=4m", "windsor-test"]).arg(&path).output();
        mounted.is_ok_and(|output| output.status.success()).then_some(Small(path))
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        // Lazily: a daemon that is being killed may hold the volume for a moment.
        let unmounted = Command::new("umount").arg("--lazy").arg(&self.0).status();
        assert!(unmounted.is_ok_and(|status| status.success()), "{} stays mounted", self.0.display());
    }
}

#[test]
fn what_does_not_fit_is_an_error_and_what_was_flushed_stays() {
    const MIB: usize = 1 << 20;
    const ENOSPC_OR_EIO: [u32; 2] = [28, 5];
    let mut rig = Rig::new();
    let Some(small) = Small::new(rig.path("small")) else {
        return skip("full-disk", "mounting a small tmpfs needs root");
    };
    let (ballast, image) = (small.0.join("ballast"), small.0.join("full.img"));
    std::fs::File::create(&image).unwrap().set_len(16 << 20).unwrap();
    std::fs::write(&ballast, vec![1; MIB]).unwrap();
    rig.serve(
        "acme",
        &format!("[[volume]]\nname = \"full\"\npath = \"{}\"\nmode = \"rw\"\ndirect = false", image.display()),
    );
    rig.guest("g1");
    rig.run("attach", &["g1", "acme:full"]).fine();
    let mut nbd = Nbd::open(&rig.nbd("g1"), "xvda").unwrap();
    let block = |n: usize| vec![n as u8 + 1; MIB];
    let answers: Vec<u32> = (0..8).map(|n| nbd.write((n * MIB) as u64, &block(n)).unwrap()).collect();
    let fitted = answers.iter().take_while(|answer| **answer == 0).count();
    assert!((1..4).contains(&fitted), "{answers:?}");
    assert!(answers[fitted..].iter().all(|answer| ENOSPC_OR_EIO.contains(answer)), "{answers:?}");
    assert_eq!(nbd.flush().unwrap(), 0);
    for n in 0..fitted {
        assert!(nbd.read((n * MIB) as u64, MIB).unwrap().unwrap() == block(n), "block {n}");
    }
    // Room again: the same disk goes on.
    std::fs::remove_file(ballast).unwrap();
    assert_eq!(nbd.write((fitted * MIB) as u64, &block(fitted)).unwrap(), 0);
    assert_eq!(nbd.flush().unwrap(), 0);
    rig.run("detach", &["g1", "xvda"]).fine();
    let bytes = std::fs::read(&image).unwrap();
    for n in 0..=fitted {
        assert!(bytes[n * MIB..(n + 1) * MIB] == block(n), "block {n} in the image");
    }
}
