//! T30: writers that get in the way of dom0's transactions.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use xenstore::server::Limits;
use xenstore::wire::{ErrorName, MessageType};
use xenstore::{Permission, Store};

use crate::daemon::Daemon;
use crate::peer::Peer;
use crate::{again, alone, assert_serves, commit, introduce, start, words};

/// XSA-206: guests that write without end what dom0 reads in a transaction. It has to commit all the same, by the
/// limited number of attempts that our client makes.
#[test]
fn t30_dom0_commits_in_a_storm_of_conflicting_writers() {
    let _alone = alone();
    let daemon = Daemon::new();
    let mut dom0 = daemon.client();
    let guests: Vec<u16> = (1..=4).collect();
    let mut writers: Vec<Peer> = guests.iter().map(|domid| introduce(&daemon, *domid)).collect();
    dom0.mkdir("/contended").unwrap();
    let all: Vec<Permission> = std::iter::once(0).chain(guests.iter().copied()).map(Permission::both).collect();
    dom0.set_perms("/contended", &all).unwrap();
    let stop = AtomicBool::new(false);
    let mut times = Vec::new();
    let written: u64 = std::thread::scope(|scope| {
        let threads: Vec<_> = writers
            .iter_mut()
            .map(|writer| {
                let stop = &stop;
                scope.spawn(move || {
                    let mut count = 0;
                    while !stop.load(Ordering::Relaxed) {
                        writer.request(MessageType::Write, b"/contended\0storm").unwrap();
                        count += 1;
                    }
                    count
                })
            })
            .collect();
        for turn in 0..20_u8 {
            let (began, mut attempts) = (Instant::now(), 0);
            let result = dom0.transaction(|tx| {
                attempts += 1;
                tx.read("/contended")?;
                tx.write("/committed", &[turn])?;
                tx.write("/contended", b"dom0")
            });
            assert!(result.is_ok(), "{result:?} after {attempts} attempts, {:?}", began.elapsed());
            times.push((began.elapsed(), attempts));
        }
        stop.store(true, Ordering::Relaxed);
        threads.into_iter().map(|thread| thread.join().unwrap()).sum()
    });
    assert_eq!(dom0.read("/committed").unwrap(), [19]);
    let slowest = times.iter().max().unwrap();
    let attempts: u32 = times.iter().map(|(_, attempts)| attempts).sum();
    println!(
        "20 commits against 4 writers ({written} writes): the slowest took {slowest:?}, {attempts} attempts in all"
    );
}

/// The same by guests' transactions: they are in each other's way, and each is told so or has committed.
#[test]
fn t30_of_conflicting_transactions_each_is_whole_or_refused() {
    let _alone = alone();
    let daemon = Daemon::with(Limits { write_rate: usize::MAX, ..Limits::default() });
    let mut dom0 = Peer::connect(&daemon.socket());
    let writers: Vec<Peer> = (1..=4).map(|domid| introduce(&daemon, domid)).collect();
    dom0.request(MessageType::Write, b"/counter\x000").unwrap();
    dom0.request(MessageType::SetPerms, b"/counter\0b0\0").unwrap();
    let read = |peer: &mut Peer, number: u32| {
        let value = peer.ask(MessageType::Read as u32, number, b"/counter\0").unwrap();
        std::str::from_utf8(&value).unwrap().parse::<u32>().unwrap()
    };
    let (done, refused) = std::thread::scope(|scope| {
        let add = move |mut peer: Peer| {
            let (mut done, mut refused) = (0, 0);
            while done + refused < 2000 {
                let number = start(&mut peer).unwrap();
                let next = format!("/counter\0{}", read(&mut peer, number) + 1);
                peer.ask(MessageType::Write as u32, number, next.as_bytes()).unwrap();
                match commit(&mut peer, number) {
                    Ok(()) => done += 1,
                    Err(error) => {
                        assert_eq!(error, ErrorName::Eagain);
                        refused += 1;
                    }
                }
            }
            (done, refused)
        };
        let threads: Vec<_> = writers.into_iter().map(|peer| scope.spawn(move || add(peer))).collect();
        let ends = threads.into_iter().map(|thread| thread.join().unwrap());
        ends.fold((0, 0), |all, one| (all.0 + one.0, all.1 + one.1))
    });
    println!("{done} committed, {refused} refused");
    assert_eq!(read(&mut dom0, 0), done, "none is lost, none is counted twice");
}

/// XSA-421: what is made and removed in one transaction was committed in part and stayed in the books.
#[test]
fn t30_what_a_transaction_makes_and_removes_is_in_nobody_s_books() {
    let _alone = alone();
    let limits = Limits { nodes: 10, write_rate: usize::MAX, ..Limits::default() };
    let daemon = Daemon::with(limits);
    let mut guest = introduce(&daemon, 3);
    let write = |peer: &mut Peer, number: u32, path: &str| {
        peer.ask(MessageType::Write as u32, number, &words(&[path])).map(drop)
    };
    let rm =
        |peer: &mut Peer, number: u32, path: &str| peer.ask(MessageType::Rm as u32, number, &words(&[path])).map(drop);
    write(&mut guest, 0, "data/old/below").unwrap();
    for round in 0..1000 {
        let number = start(&mut guest).unwrap();
        write(&mut guest, number, "data/a/b/c").unwrap();
        rm(&mut guest, number, "data/a").unwrap();
        // Removed and made again, made and removed and made, in turn.
        rm(&mut guest, number, "data/old").unwrap();
        write(&mut guest, number, "data/old/below").unwrap();
        if round % 2 == 0 {
            write(&mut guest, number, "data/a").unwrap();
            rm(&mut guest, number, "data/a").unwrap();
        }
        commit(&mut guest, number).unwrap();
        assert_eq!(guest.request(MessageType::Directory, b"data\0").unwrap(), b"old\0");
    }
    // `data`, `old` and `below` are three of ten.
    let more = (0..20).map(|n| write(&mut guest, 0, &format!("data/{n}"))).take_while(Result::is_ok).count();
    assert_eq!(more, 7);
    rm(&mut guest, 0, "data/old").unwrap();
    (0..2).for_each(|n| write(&mut guest, 0, &format!("data/more{n}")).unwrap());
    assert_eq!(write(&mut again(&daemon, 3), 0, "data/last"), Err(ErrorName::Enospc));
    assert_serves(&daemon);
}
