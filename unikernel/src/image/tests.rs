//! A whole image from a made-up kernel package.

use super::*;

struct Package {
    dir: tempfile::TempDir,
    recipe: Recipe,
}

/// A package of kernel `version` with the modules every image needs and those in `more`.
fn package(version: &str, more: &[&str]) -> Package {
    let dir = tempfile::tempdir().unwrap();
    let mut kernel = vec![0; 0x400];
    kernel[0x202..0x206].copy_from_slice(b"HdrS");
    kernel[0x20e..0x210].copy_from_slice(&0x100u16.to_le_bytes());
    let text = format!("{version} (builder@example)");
    kernel[0x300..0x300 + text.len()].copy_from_slice(text.as_bytes());
    fs::write(dir.path().join("vmlinuz"), kernel).unwrap();
    let tree = dir.path().join("lib/modules/6.1.0-test");
    fs::create_dir_all(tree.join("kernel")).unwrap();
    for name in ["xen-evtchn", "xen-gntdev", "xen-gntalloc", "xen-blkfront", "xen-pcifront"].iter().chain(more) {
        fs::write(tree.join(format!("kernel/{name}.ko")), elf::tests::sample(1, b"depends=\0")).unwrap();
    }
    fs::write(tree.join("modules.builtin"), "kernel/drivers/nvme/host/nvme.ko\n").unwrap();
    let config = dir.path().join("acme.toml");
    fs::write(&config, "[vm]\nname = \"acme\"\nmodules = [\"brd rd_nr=2 rd_size=65536\"]\n").unwrap();
    let recipe = Recipe {
        kernel: dir.path().join("vmlinuz"),
        modules: dir.path().join("lib/modules"),
        config,
        out: dir.path().join("out/deep"),
        kind: DomainType::Pv,
        memory_mib: 128,
        vcpus: 1,
        append: String::new(),
        dom0_dir: None,
    };
    Package { dir, recipe }
}

#[test]
fn the_image_holds_what_pid_1_needs_and_nothing_else() {
    let Package { dir, recipe } = package("6.1.0-test", &["brd", "tun", "unasked"]);
    let built = build_with(&recipe, b"the program".to_vec()).unwrap();
    assert_eq!(built.version, "6.1.0-test");
    let order = ["xen_evtchn", "xen_gntdev", "xen_gntalloc", "xen_blkfront", "tun", "xen_pcifront", "brd"];
    assert_eq!(built.modules, order);
    assert_eq!(built.config, dir.path().join("out/deep/acme.cfg"));
    assert_eq!(fs::read(&built.kernel).unwrap(), fs::read(&recipe.kernel).unwrap());

    let entries = archive::tests::list(&fs::read(&built.initramfs).unwrap());
    let body = |name: &str| &entries.iter().find(|entry| entry.0 == name).unwrap().2;
    assert_eq!(body("init"), b"the program");
    assert_eq!(*body("etc/windsor.toml"), fs::read(&recipe.config).unwrap());
    assert_eq!(body("etc/hostname"), b"acme\n");
    assert_eq!(
        std::str::from_utf8(body("etc/modules")).unwrap(),
        "xen_evtchn\nxen_gntdev\nxen_gntalloc\nxen_blkfront\ntun\nxen_pcifront\nbrd rd_nr=2 rd_size=65536\n"
    );
    assert_eq!(entries.iter().filter(|entry| entry.0.ends_with(".ko")).count(), order.len());

    let first = fs::read(&built.initramfs).unwrap();
    build_with(&recipe, b"the program".to_vec()).unwrap();
    assert_eq!(first, fs::read(&built.initramfs).unwrap());
}

#[test]
fn pvh_takes_no_pcifront() {
    let Package { dir: _dir, mut recipe } = package("6.1.0-test", &["brd"]);
    recipe.kind = DomainType::Pvh;
    let built = build_with(&recipe, Vec::new()).unwrap();
    assert!(!built.modules.contains(&"xen_pcifront".into()));
    assert!(fs::read_to_string(built.config).unwrap().contains("type = \"pvh\""));
}

#[test]
fn a_kernel_may_have_everything_built_in() {
    let Package { dir, recipe } = package("6.1.0-test", &[]);
    let tree = dir.path().join("lib/modules/6.1.0-test");
    fs::remove_dir_all(tree.join("kernel")).unwrap();
    let names = ["xen-evtchn", "xen-gntdev", "xen-gntalloc", "xen-blkfront", "nvme"];
    let lines: String = names.iter().map(|name| format!("kernel/drivers/{name}.ko\n")).collect();
    fs::write(tree.join("modules.builtin"), lines).unwrap();
    fs::write(&recipe.config, "[vm]\nname = \"acme\"\n").unwrap();
    assert!(build_with(&recipe, Vec::new()).unwrap().modules.is_empty());
    fs::write(tree.join("modules.builtin"), "").unwrap();
    assert!(build_with(&recipe, Vec::new()).unwrap_err().to_string().contains("modules.builtin"));
}

/// Builds from a package that `change` has spoiled: the error names `words`, has `code`, and nothing was written.
fn refused(code: i32, words: &[&str], change: impl Fn(&mut Recipe)) {
    let Package { dir: _dir, mut recipe } = package("6.1.0-test", &["brd"]);
    change(&mut recipe);
    let error = build_with(&recipe, Vec::new()).unwrap_err();
    let text = error.to_string();
    assert!(words.iter().all(|word| text.contains(word)), "{text}");
    assert_eq!(error.exit_code(), code, "{text}");
    assert!(!recipe.out.exists());
}

#[test]
fn wrong_arguments_are_named() {
    refused(1, &["acme.toml", "not a Linux kernel"], |recipe| recipe.kernel = recipe.config.clone());
    refused(3, &["/nonexistent/vmlinuz"], |recipe| recipe.kernel = "/nonexistent/vmlinuz".into());
    refused(3, &["/nonexistent"], |recipe| recipe.modules = "/nonexistent".into());
    refused(3, &["/nonexistent.toml"], |recipe| recipe.config = "/nonexistent.toml".into());
    refused(2, &["--append"], |recipe| recipe.append = "a\nb".into());
    refused(2, &["--dom0-dir"], |recipe| recipe.dom0_dir = Some("here".into()));
    refused(2, &["--vcpus"], |recipe| recipe.vcpus = 0);
    refused(2, &["--memory", "64"], |recipe| recipe.memory_mib = 16);
}

#[test]
fn kernel_and_modules_must_be_of_one_version() {
    let other = package("6.12.0-other", &[]);
    refused(1, &["6.12.0-other", "6.1.0-test"], |recipe| recipe.kernel = other.recipe.kernel.clone());
}

#[test]
fn a_wrong_configuration_is_refused_before_it_is_in_a_vm() {
    let wrong = |code, words: &[&str], text: &str| {
        refused(code, words, |recipe| fs::write(&recipe.config, text).unwrap());
    };
    wrong(2, &["acme.toml", "name"], "[vm]\n");
    wrong(2, &["acme.toml:1"], "[vm\n");
    wrong(2, &["../x"], "[vm]\nname='../x'\n");
    wrong(2, &["acme.toml:3", "colour"], "[vm]\nname='x'\ncolour='red'\n");
    wrong(3, &["loop", "6.1.0-test", "neither"], "[vm]\nname='x'\nmodules=['loop']\n");
    wrong(2, &["--type", "zero-copy"], "[vm]\nname='x'\n[backend]\ndata-path='zero-copy'\n");
}

#[test]
fn an_unwritable_directory_is_named() {
    let Package { dir, mut recipe } = package("6.1.0-test", &["brd"]);
    recipe.out = dir.path().join("vmlinuz/out");
    let error = build_with(&recipe, Vec::new()).unwrap_err().to_string();
    assert!(error.contains("vmlinuz/out"), "{error}");
}

#[test]
fn a_dynamic_program_is_refused() {
    let error = program(&elf::tests::sample(3, b"")).unwrap_err();
    assert!(error.to_string().contains("RUSTFLAGS"), "{error}");
    assert_eq!(error.exit_code(), 3);
    assert_eq!(program(&elf::tests::sample(1, b"")).unwrap().len(), 120);
    assert!(program(b"#!/bin/sh\n").is_err());
}

#[test]
fn the_manifest_tells_a_damaged_image_from_a_good_one() {
    let Package { dir: _dir, recipe } = package("6.1.0-test", &["brd"]);
    let built = build_with(&recipe, b"the program".to_vec()).unwrap();
    assert_eq!(Manifest::verify(&recipe.out).unwrap(), built.manifest);
    assert_eq!((built.manifest.name.as_str(), built.manifest.kind), ("acme", DomainType::Pv));
    let init = built.manifest.contents.iter().find(|part| part.path == "init").unwrap();
    assert_eq!(init.bytes, 11);
    // The same bytes are the same image, other bytes are another one.
    let id = built.manifest.id();
    assert_eq!(build_with(&recipe, b"the program".to_vec()).unwrap().manifest.id(), id);
    assert_ne!(build_with(&recipe, b"another one".to_vec()).unwrap().manifest.id(), id);

    let mut bytes = fs::read(&built.initramfs).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    fs::write(&built.initramfs, &bytes).unwrap();
    let why = Manifest::verify(&recipe.out).unwrap_err().to_string();
    assert!(why.contains("initramfs.img is damaged"), "{why}");
    fs::write(&built.initramfs, &bytes[..last]).unwrap();
    let why = Manifest::verify(&recipe.out).unwrap_err().to_string();
    assert!(why.contains(&format!("{last} bytes where {}", last + 1)), "{why}");
    fs::remove_file(&built.kernel).unwrap();
    assert!(Manifest::verify(&recipe.out).unwrap_err().to_string().contains("vmlinuz cannot be read"));

    let manifest = recipe.out.join(manifest::FILE);
    for (text, says) in [("{", "EOF"), ("{\"schema_version\": 1}", "missing field")] {
        fs::write(&manifest, text).unwrap();
        let why = Manifest::read(&recipe.out).unwrap_err().to_string();
        assert!(why.contains(says) && why.contains("manifest.json"), "{why}");
    }
    // A manifest cannot make anybody read other files than an image's.
    let mut foreign = built.manifest.clone();
    foreign.files[0].name = "../../etc/shadow".into();
    fs::write(&manifest, foreign.text()).unwrap();
    assert!(Manifest::verify(&recipe.out).unwrap_err().to_string().contains("it names the files"));
    foreign = built.manifest.clone();
    foreign.schema_version = 9;
    fs::write(&manifest, foreign.text()).unwrap();
    assert!(Manifest::read(&recipe.out).unwrap_err().to_string().contains("format 9"));
    fs::remove_file(&manifest).unwrap();
    assert!(Manifest::read(&recipe.out).unwrap_err().to_string().contains("holds no image"));
}
