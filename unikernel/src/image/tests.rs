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
    for name in [
        "xen-evtchn",
        "xen-gntdev",
        "xen-gntalloc",
        "xen-blkfront",
        "xen-pcifront",
    ]
    .iter()
    .chain(more)
    {
        fs::write(
            tree.join(format!("kernel/{name}.ko")),
            elf::tests::sample(1, b"depends=\0"),
        )
        .unwrap();
    }
    fs::write(
        tree.join("modules.builtin"),
        "kernel/drivers/nvme/host/nvme.ko\n",
    )
    .unwrap();
    let config = dir.path().join("acme.toml");
    fs::write(
        &config,
        "[vm]\nname = \"acme\"\nmodules = [\"brd rd_nr=2 rd_size=65536\"]\n",
    )
    .unwrap();
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
    let order = [
        "xen_evtchn",
        "xen_gntdev",
        "xen_gntalloc",
        "xen_blkfront",
        "tun",
        "xen_pcifront",
        "brd",
    ];
    assert_eq!(built.modules, order);
    assert_eq!(built.config, dir.path().join("out/deep/acme.cfg"));
    assert_eq!(
        fs::read(&built.kernel).unwrap(),
        fs::read(&recipe.kernel).unwrap()
    );

    let entries = archive::tests::list(&fs::read(&built.initramfs).unwrap());
    let body = |name: &str| &entries.iter().find(|entry| entry.0 == name).unwrap().2;
    assert_eq!(body("init"), b"the program");
    assert_eq!(*body("etc/windsor.toml"), fs::read(&recipe.config).unwrap());
    assert_eq!(body("etc/hostname"), b"acme\n");
    assert_eq!(
        std::str::from_utf8(body("etc/modules")).unwrap(),
        "xen_evtchn\nxen_gntdev\nxen_gntalloc\nxen_blkfront\ntun\nxen_pcifront\nbrd rd_nr=2 rd_size=65536\n"
    );
    assert_eq!(
        entries
            .iter()
            .filter(|entry| entry.0.ends_with(".ko"))
            .count(),
        order.len()
    );

    let first = fs::read(&built.initramfs).unwrap();
    build_with(&recipe, b"the program".to_vec()).unwrap();
    assert_eq!(first, fs::read(&built.initramfs).unwrap());
}

#[test]
fn pvh_takes_no_pcifront() {
    let Package {
        dir: _dir,
        mut recipe,
    } = package("6.1.0-test", &["brd"]);
    recipe.kind = DomainType::Pvh;
    let built = build_with(&recipe, Vec::new()).unwrap();
    assert!(!built.modules.contains(&"xen_pcifront".into()));
    assert!(
        fs::read_to_string(built.config)
            .unwrap()
            .contains("type = \"pvh\"")
    );
}

#[test]
fn refusals_name_their_cause_and_write_nothing() {
    let refused = |version: &str, change: fn(&mut Recipe), words: &[&str], code: i32| {
        let Package {
            dir: _dir,
            mut recipe,
        } = package(version, &["brd"]);
        change(&mut recipe);
        let error = build_with(&recipe, Vec::new()).unwrap_err();
        let text = error.to_string();
        assert!(words.iter().all(|word| text.contains(word)), "{text}");
        assert_eq!(error.exit_code(), code, "{text}");
        assert!(!recipe.out.exists());
    };
    refused("6.12.0-other", |_| (), &["6.12.0-other", "6.1.0-test"], 1);
    refused(
        "6.1.0-test",
        |recipe| recipe.kernel = recipe.config.clone(),
        &["acme.toml", "not a Linux kernel"],
        1,
    );
    refused(
        "6.1.0-test",
        |recipe| recipe.kernel = "/nonexistent/vmlinuz".into(),
        &["/nonexistent/vmlinuz"],
        3,
    );
    refused(
        "6.1.0-test",
        |recipe| recipe.modules = "/nonexistent".into(),
        &["/nonexistent"],
        3,
    );
    refused(
        "6.1.0-test",
        |recipe| recipe.append = "a\nb".into(),
        &["--append"],
        2,
    );
    refused(
        "6.1.0-test",
        |recipe| recipe.dom0_dir = Some("here".into()),
        &["--dom0-dir"],
        2,
    );
    refused("6.1.0-test", |recipe| recipe.vcpus = 0, &["--vcpus"], 2);
    refused(
        "6.1.0-test",
        |recipe| recipe.memory_mib = 16,
        &["--memory", "64"],
        2,
    );
    refused(
        "6.1.0-test",
        |recipe| fs::write(&recipe.config, "[vm]\n").unwrap(),
        &["acme.toml", "name"],
        2,
    );
    refused(
        "6.1.0-test",
        |recipe| fs::write(&recipe.config, "[vm\n").unwrap(),
        &["acme.toml", "line 1"],
        2,
    );
    refused(
        "6.1.0-test",
        |recipe| fs::write(&recipe.config, "[vm]\nname='../x'\n").unwrap(),
        &["../x"],
        2,
    );
    refused(
        "6.1.0-test",
        |recipe| fs::write(&recipe.config, "[vm]\nname='x'\nmodules=['loop']\n").unwrap(),
        &["loop", "6.1.0-test", "neither"],
        3,
    );
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
