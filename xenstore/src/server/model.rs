//! A check by a model: many transactions at once, from several domains, must mean what they mean one after the other.
//!
//! Each that commits is played again at that moment, alone, on a second store. If every answer and both stores agree,
//! conflicts are found where there are any, and what a transaction saw was true when it committed.

use std::collections::HashMap;

use super::operations::{self as op, Caller};
use super::perms::Who;
use super::quota::Limits;
use super::transaction::{Inside, Order, Overlay};
use super::tree::{Tree, parent};
use crate::Permission;
use crate::wire::ErrorName;

#[derive(Clone, Debug)]
enum Operation {
    Read(String),
    Directory(String),
    GetPerms(String),
    Write(String, u8),
    Mkdir(String),
    Rm(String),
    SetPerms(String, Vec<Permission>),
}

type Answer = Result<String, ErrorName>;

fn perform(operation: &Operation, overlay: &mut Overlay, tree: &mut Tree, caller: &Caller) -> Answer {
    let view = &mut Inside { overlay, tree };
    match operation {
        Operation::Read(path) => op::read(view, path, caller).map(|value| format!("{value:?}")),
        Operation::Directory(path) => op::directory(view, path, caller).map(|node| format!("{:?}", node.children)),
        Operation::GetPerms(path) => op::get_perms(view, path, caller).map(|perms| format!("{perms:?}")),
        Operation::Write(path, value) => op::write(view, path, &[*value], caller).map(|()| String::new()),
        Operation::Mkdir(path) => op::mkdir(view, path, caller).map(|()| String::new()),
        Operation::Rm(path) => op::rm(view, path, caller).map(|()| String::new()),
        Operation::SetPerms(path, perms) => op::set_perms(view, path, perms.clone(), caller).map(|()| String::new()),
    }
}

fn random_operation(random: &mut fastrand::Rng) -> Operation {
    let path: String = (0..random.usize(1..4)).map(|_| *random.choice(&["/a", "/b", "/c"]).unwrap()).collect();
    match random.u8(0..12) {
        0 | 1 => Operation::Read(path),
        2 | 3 => Operation::Directory(path),
        4 => Operation::GetPerms(path),
        5..=7 => Operation::Write(path, random.u8(..)),
        8 => Operation::Mkdir(path),
        9 | 10 => Operation::Rm(path),
        _ => {
            let entry = |random: &mut fastrand::Rng| Permission {
                domid: random.u16(0..3),
                read: random.bool(),
                write: random.bool(),
            };
            Operation::SetPerms(path, (0..random.usize(1..4)).map(|_| entry(random)).collect())
        }
    }
}

/// Everything but generations.
fn content(tree: &Tree) -> Vec<String> {
    let mut nodes: Vec<String> = tree
        .nodes()
        .map(|(path, node)| format!("{path} {:?} {:?} {:?}", node.value, node.perms, node.children))
        .collect();
    nodes.sort();
    nodes
}

/// Every node hangs on its parent, every name leads to a node, and the accounts are right.
fn check(tree: &Tree) {
    let mut owned: HashMap<u16, usize> = HashMap::new();
    let mut names = 1;
    for (path, node) in tree.nodes() {
        *owned.entry(node.owner()).or_default() += 1;
        names += node.children.iter().count();
        if path != "/" {
            let above = tree.get(parent(path)).unwrap_or_else(|| panic!("{path} hangs in the air"));
            assert!(above.children.iter().any(|child| path.ends_with(&format!("/{child}"))), "{path} has no name");
        }
    }
    assert_eq!(names, tree.nodes().count(), "names and nodes");
    (0..3).for_each(|domid| assert_eq!(tree.owned(domid).nodes, owned.get(&domid).copied().unwrap_or(0)));
}

struct Open {
    caller: Caller,
    overlay: Overlay,
    done: Vec<(Operation, Answer)>,
}

#[test]
fn concurrent_transactions_mean_what_they_mean_one_after_the_other() {
    let mut random = fastrand::Rng::with_seed(421);
    let limits = Limits { nodes: usize::MAX, ..Limits::default() };
    let (mut tree, mut model) = (Tree::new(), Tree::new());
    let mut open: Vec<Open> = Vec::new();
    let (mut committed, mut refused) = (0, 0);
    for step in 0..100_000 {
        let at = random.usize(0..6);
        if at >= open.len() {
            let caller = Caller { who: Who::domain(random.u16(0..3)), limits };
            open.push(Open { caller, overlay: Overlay::default(), done: Vec::new() });
            continue;
        }
        if random.u8(0..5) > 0 {
            let transaction = &mut open[at];
            let operation = random_operation(&mut random);
            let answer = perform(&operation, &mut transaction.overlay, &mut tree, &transaction.caller);
            transaction.done.push((operation, answer));
            continue;
        }
        let Open { caller, overlay, done } = open.swap_remove(at);
        match overlay.commit(&mut tree, &caller, Order::Seen) {
            Err(error) => {
                assert_eq!(error, ErrorName::Eagain);
                refused += 1;
            }
            Ok(_) => {
                committed += 1;
                let mut again = Overlay::default();
                for (operation, answer) in &done {
                    let now = perform(operation, &mut again, &mut model, &caller);
                    assert_eq!(&now, answer, "step {step}: {operation:?} of {done:?}");
                }
                again.commit(&mut model, &caller, Order::Seen).unwrap();
            }
        }
        if step % 50 == 0 {
            assert_eq!(content(&tree), content(&model), "step {step}");
            check(&tree);
        }
    }
    assert!(committed > 2000 && refused > 2000, "{committed} committed, {refused} refused");
}

#[test]
fn a_quota_at_any_step_leaves_the_store_as_it_was() {
    for room in 0..6 {
        let limits = Limits { nodes: room, ..Limits::default() };
        let mut tree = Tree::new();
        let (dom0, guest) = (Caller { who: Who::DOM0, limits }, Caller { who: Who::domain(1), limits });
        let mut setup = Overlay::default();
        perform(&Operation::Mkdir("/d".into()), &mut setup, &mut tree, &dom0).unwrap();
        let both = vec![Permission::both(0)];
        perform(&Operation::SetPerms("/d".into(), both), &mut setup, &mut tree, &dom0).unwrap();
        setup.commit(&mut tree, &dom0, Order::Seen).unwrap();
        let before = content(&tree);
        let mut overlay = Overlay::default();
        let made = perform(&Operation::Write("/d/e/f/g".into(), 1), &mut overlay, &mut tree, &guest);
        overlay.commit(&mut tree, &guest, Order::Seen).unwrap();
        assert_eq!(made.is_ok(), room >= 3, "{made:?}");
        assert_eq!(content(&tree) == before, room < 3);
        check(&tree);
    }
}
