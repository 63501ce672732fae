use std::fs::File;
use std::path::Path;

use super::*;

fn config(text: &str) -> Config {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.toml");
    std::fs::write(&path, format!("[vm]\nname='acme'\n{text}")).unwrap();
    Config::load(&path).unwrap()
}

fn of_dir(dir: &Path) -> Config {
    let mut config = config(&format!("[[volume]]\nname='images'\ndirectory='{}'\ndirect=false\n", dir.display()));
    refresh(&mut config);
    config
}

fn create(bytes: u64) -> Change {
    Change::Create { source: None, bytes }
}

fn apply(config: &mut Config, name: &str, change: Change) -> Result<u64, Refusal> {
    let done = check(config, name, change)?.run();
    assert!(refresh(config).is_empty());
    done
}

/// What no name of a volume is: none of it may ever reach the medium.
fn hostile() -> Vec<String> {
    let mut names: Vec<String> =
        ["", ".", "..", "/", "../x", "a/b", "/etc/passwd", "a\nb", "a\0b", "-a", "a b", "\u{e9}"]
            .map(String::from)
            .into();
    names.push("a".repeat(200));
    names.push("a".repeat(65));
    names
}

#[test]
fn images_are_made_resized_and_removed() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = of_dir(dir.path());
    assert!(config.volumes.is_empty());
    assert_eq!(apply(&mut config, "db", create(1 << 20)).unwrap(), 1 << 20);
    assert_eq!(config.volume("db").unwrap().source.as_deref(), Some("images"));
    assert!(matches!(apply(&mut config, "db", create(1 << 20)), Err(Refusal::Busy(_))));
    let grow = Change::Resize { bytes: 2 << 20, shrink: false };
    assert_eq!(apply(&mut config, "db", grow).unwrap(), 2 << 20);
    assert_eq!(std::fs::metadata(dir.path().join("db.img")).unwrap().len(), 2 << 20);
    let less = |shrink| Change::Resize { bytes: 512, shrink };
    assert!(apply(&mut config, "db", less(false)).unwrap_err().to_string().contains("--shrink"));
    assert_eq!(apply(&mut config, "db", less(true)).unwrap(), 512);
    // Somebody has it.
    let open = crate::supervisor::volume::open(config.volume("db").unwrap(), true).unwrap();
    assert!(matches!(apply(&mut config, "db", Change::Remove), Err(Refusal::Busy(_))));
    assert!(matches!(apply(&mut config, "db", less(true)), Err(Refusal::Busy(_))));
    drop(open);
    assert_eq!(apply(&mut config, "db", Change::Remove).unwrap(), 0);
    assert!(matches!(apply(&mut config, "db", Change::Remove), Err(Refusal::Missing(_))));
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn a_name_that_is_none_touches_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let inner = dir.path().join("inner");
    std::fs::create_dir(&inner).unwrap();
    let mut config = of_dir(&inner);
    for name in hostile() {
        for change in [create(512), Change::Resize { bytes: 512, shrink: true }, Change::Remove] {
            let refusal = apply(&mut config, &name, change).unwrap_err();
            assert!(matches!(refusal, Refusal::Usage(_)), "{name:?}: {refusal}");
            assert!(!refusal.to_string().contains('\n') && refusal.to_string().len() < 400, "{refusal}");
        }
    }
    assert_eq!(std::fs::read_dir(&inner).unwrap().count(), 0);
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    // Nor do sizes that are none.
    for bytes in [0, 1, 513, u64::MAX - 511] {
        assert!(matches!(apply(&mut config, "a", create(bytes)), Err(Refusal::Usage(_))), "{bytes}");
    }
}

#[test]
fn what_lies_about_in_a_directory_is_no_volume() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str| File::create(dir.path().join(name)).unwrap().set_len(512).unwrap();
    for name in ["db.img", "notes.txt", "no name.img", ".img", "x.img.part"] {
        file(name);
    }
    std::fs::create_dir(dir.path().join("sub.img")).unwrap();
    std::os::unix::fs::symlink("/etc/passwd", dir.path().join("link.img")).unwrap();
    let mut config = of_dir(dir.path());
    let errors = refresh(&mut config);
    assert_eq!(config.volumes.iter().map(|volume| volume.name.as_str()).collect::<Vec<_>>(), ["db"]);
    assert!(errors.len() == 2 && errors.iter().any(|error| error.contains("\"no name\"")), "{errors:?}");
    // A link is neither followed nor taken away.
    let order = Order { name: "link".into(), change: Change::Remove, source: config.sources[0].clone() };
    assert!(matches!(order.run(), Err(Refusal::Failed(_))));
    assert!(dir.path().join("link.img").symlink_metadata().is_ok());
}

#[test]
fn a_name_is_given_once() {
    let dir = tempfile::tempdir().unwrap();
    File::create(dir.path().join("db.img")).unwrap().set_len(512).unwrap();
    let sources = |more: &str| format!("[[volume]]\nname='a'\ndirectory='{}'\n{more}", dir.path().display());
    let mut taken = config(&sources("[[volume]]\nname='db'\nkind='null'\nsize=512\n"));
    let errors = refresh(&mut taken);
    assert!(taken.volumes.len() == 1 && errors[0].contains("a second volume"), "{errors:?}");
    let refusal = check(&taken, "db", Change::Remove).unwrap_err();
    assert!(refusal.to_string().contains("named by the configuration"), "{refusal}");
    // With two places, one has to be said; with none there is no making.
    let two = config(&sources(&format!("[[volume]]\nname='b'\ndirectory='{}'\n", dir.path().display())));
    assert!(check(&two, "x", create(512)).unwrap_err().to_string().contains("a, b"));
    check(&two, "x", Change::Create { source: Some("b".into()), bytes: 512 }).unwrap();
    assert!(matches!(
        check(&two, "x", Change::Create { source: Some("c/../b".into()), bytes: 512 }),
        Err(Refusal::Missing(_))
    ));
    let none = config("");
    assert!(matches!(check(&none, "x", create(512)), Err(Refusal::Usage(_))));
}

#[test]
fn partitions_of_a_disk_image() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk");
    File::create(&path).unwrap().set_len(64 << 20).unwrap();
    let mut config = config(&format!("[[volume]]\nname='ssd'\ndisk='{}'\n", path.display()));
    assert!(refresh(&mut config).is_empty() && config.volumes.is_empty());
    assert_eq!(apply(&mut config, "db", create((4 << 20) + 512)).unwrap(), 5 << 20);
    assert_eq!(apply(&mut config, "log", create(8 << 20)).unwrap(), 8 << 20);
    assert!(matches!(apply(&mut config, "db", create(512)), Err(Refusal::Busy(_))));
    let refusal = apply(&mut config, "huge", create(1 << 30)).unwrap_err();
    assert!(matches!(&refusal, Refusal::Failed(why) if why.contains("the largest free one has")), "{refusal}");
    // Behind it is another partition.
    let grow = |bytes| Change::Resize { bytes, shrink: false };
    assert!(apply(&mut config, "db", grow(6 << 20)).unwrap_err().to_string().contains("5242880 bytes at most"));
    assert_eq!(apply(&mut config, "log", grow(16 << 20)).unwrap(), 16 << 20);
    assert!(apply(&mut config, "log", grow(1 << 20)).unwrap_err().to_string().contains("--shrink"));
    assert_eq!(apply(&mut config, "db", Change::Remove).unwrap(), 0);
    assert_eq!(config.volumes.iter().map(|volume| volume.name.as_str()).collect::<Vec<_>>(), ["log"]);
    // Its place is used again, and the table is one for others.
    assert_eq!(apply(&mut config, "web", create(5 << 20)).unwrap(), 5 << 20);
    let table = table_of(&path);
    let web = table.partitions().values().find(|partition| partition.name == "web").unwrap();
    assert_eq!(web.first_lba, 2048);
    let refusal = partitions::node(&path, "web").unwrap_err();
    assert!(refusal.to_string().contains("only partitions of block devices"), "{refusal}");
}

fn table_of(path: &Path) -> gpt::GptDisk<File> {
    gpt::GptConfig::new().only_valid_headers(true).open(path).unwrap()
}

/// The kernel goes on calling a partition what it has called it, whatever becomes of those before it.
#[test]
fn a_partition_keeps_its_number_for_life() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk");
    File::create(&path).unwrap().set_len(64 << 20).unwrap();
    let mut config = config(&format!("[[volume]]\nname='ssd'\ndisk='{}'\n", path.display()));
    let numbers = || -> Vec<(u32, String)> {
        table_of(&path).partitions().iter().map(|(number, it)| (*number, it.name.clone())).collect()
    };
    let named = |names: &[(u32, &str)]| -> Vec<_> { names.iter().map(|(n, name)| (*n, String::from(*name))).collect() };
    for name in ["a", "b", "c", "d"] {
        apply(&mut config, name, create(1 << 20)).unwrap();
    }
    apply(&mut config, "a", Change::Remove).unwrap();
    apply(&mut config, "c", Change::Remove).unwrap();
    assert_eq!(numbers(), named(&[(2, "b"), (4, "d")]));
    apply(&mut config, "d", Change::Resize { bytes: 2 << 20, shrink: false }).unwrap();
    assert_eq!(numbers(), named(&[(2, "b"), (4, "d")]));
    apply(&mut config, "e", create(1 << 20)).unwrap();
    assert_eq!(numbers(), named(&[(1, "e"), (2, "b"), (4, "d")]));
    for name in ["b", "d", "e"] {
        apply(&mut config, name, Change::Remove).unwrap();
    }
    assert_eq!(numbers(), []);
}

/// Whichever copy of the table is lost, the other one has everything.
#[test]
fn either_copy_of_the_table_is_enough() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk");
    File::create(&path).unwrap().set_len(8 << 20).unwrap();
    let mut config = config(&format!("[[volume]]\nname='ssd'\ndisk='{}'\n", path.display()));
    for name in ["a", "b", "c"] {
        apply(&mut config, name, create(1 << 20)).unwrap();
    }
    apply(&mut config, "b", Change::Remove).unwrap();
    let good = std::fs::read(&path).unwrap();
    for lost in [512..34 * 512, good.len() - 33 * 512..good.len()] {
        let mut bytes = good.clone();
        bytes[lost].fill(0xff);
        std::fs::write(&path, &bytes).unwrap();
        assert!(refresh(&mut config).is_empty());
        assert_eq!(config.volumes.iter().map(|volume| volume.name.as_str()).collect::<Vec<_>>(), ["a", "c"]);
        // The next change brings the other one back.
        apply(&mut config, "d", create(1 << 20)).unwrap();
        assert_eq!(table_of(&path).partitions().keys().copied().collect::<Vec<_>>(), [1, 2, 3]);
    }
}

#[test]
fn a_disk_that_holds_something_else_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk");
    let mut content = vec![0u8; 4 << 20];
    for at in [0usize, 1 << 10, (4 << 20) - 1] {
        content.fill(0);
        content[at] = 1;
        std::fs::write(&path, &content).unwrap();
        let mut config = config(&format!("[[volume]]\nname='ssd'\ndisk='{}'\n", path.display()));
        assert_eq!(refresh(&mut config).len(), 1);
        let refusal = check(&config, "db", create(1 << 20)).unwrap().run().unwrap_err();
        assert!(refusal.to_string().contains("no GPT"), "{refusal}");
        assert!(std::fs::read(&path).unwrap() == content);
    }
}

/// Its checksums are right.
#[test]
fn a_table_with_entries_of_another_size_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk");
    File::create(&path).unwrap().set_len(8 << 20).unwrap();
    let mut config = config(&format!("[[volume]]\nname='ssd'\ndisk='{}'\n", path.display()));
    apply(&mut config, "db", create(1 << 20)).unwrap();
    let good = std::fs::read(&path).unwrap();
    let forge: [fn(&mut gpt::header::Header); 3] =
        [|header| header.part_size = 256, |header| header.part_size = 0, |header| header.num_parts = 1025];
    for change in forge {
        std::fs::write(&path, &good).unwrap();
        let mut header = table_of(&path).primary_header().unwrap().clone();
        change(&mut header);
        let mut file = File::options().read(true).write(true).open(&path).unwrap();
        header.write_primary(&mut file, gpt::disk::LogicalBlockSize::Lb512).unwrap();
        assert!(refresh(&mut config)[0].contains("no tool makes"));
        assert!(config.volumes.is_empty());
    }
}

#[test]
fn a_broken_table_is_an_error_and_no_more() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk");
    File::create(&path).unwrap().set_len(8 << 20).unwrap();
    let mut config = config(&format!("[[volume]]\nname='ssd'\ndisk='{}'\n", path.display()));
    apply(&mut config, "db", create(1 << 20)).unwrap();
    let good = std::fs::read(&path).unwrap();
    let mut random = fastrand::Rng::with_seed(6);
    for _ in 0..300 {
        let mut bytes = good.clone();
        for _ in 0..random.usize(1..40) {
            // The head of the disk and the copy at its end.
            let at = random.usize(0..34 * 512);
            let at = if random.bool() { at } else { bytes.len() - 1 - at };
            bytes[at] = random.u8(..);
        }
        std::fs::write(&path, &bytes).unwrap();
        refresh(&mut config);
        let named = config.volumes.iter().all(|volume| check_volume_name(&volume.name).is_ok());
        assert!(named, "{:?}", config.volumes);
    }
}
