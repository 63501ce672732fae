//! Both ends against hostile ones, in one process and by hand: what a test puts into the shared pages is what the other
//! side may put there.

use std::time::{Duration, Instant};

use grant::heap::{Heap, HeapPorts};
use grant::{Access, DomId, EventChannel, Grants, Pages, Port, SharedMemory};

use super::client::{ChannelError, Session};
use super::ring::{self, PAGES};
use super::server::{RATE, Server};
use super::wire::{self, Answer, Ask, HEAD, Head, MAX_ASK, MAX_PIECE, VERSION};

const VM: DomId = DomId(3);

/// A server, dom0's mapping of its pages, and a port bound to it.
struct World {
    server: Server,
    memory: SharedMemory,
    ports: Option<HeapPorts>,
    port: Port,
    now: Instant,
}

impl World {
    fn new() -> World {
        let heap = Heap::new(64);
        let now = Instant::now();
        let server = Server::new(&mut heap.access(), Box::new(heap.ports(VM).unwrap()), now).unwrap();
        let place = server.place();
        assert_eq!((place.version, place.refs.len()), (VERSION, PAGES));
        let refs: Vec<_> = place.refs.iter().map(|gref| grant::GrantRef(*gref)).collect();
        let memory = heap.grants(DomId(0)).map(&refs, Access::ReadWrite).unwrap();
        let mut ports = heap.ports(DomId(0)).unwrap();
        let port = ports.bind(VM, Port(place.port)).unwrap();
        World { server, memory, ports: Some(ports), port, now }
    }

    fn pages(&self) -> Pages {
        self.memory.pages()
    }

    fn session(&mut self) -> Session {
        let ports = Box::new(self.ports.take().unwrap());
        Session::over(3, &self.pages(), ports, self.port).unwrap()
    }

    /// Time passes, and the server has a look.
    fn turn(&mut self) -> Option<(u32, Vec<u8>)> {
        self.now += Duration::from_millis(100);
        self.server.turn(self.now)
    }

    /// Attaches by hand and gives the raw ends.
    fn attach(&mut self, token: u32) -> (ring::Outlet, ring::Inlet) {
        let (head, mut asks, mut answers) = ring::join(&self.pages()).unwrap();
        asks.reset();
        answers.reset();
        head.want(token);
        assert!(self.turn().is_none());
        assert_eq!(head.session(), token);
        (asks, answers)
    }
}

fn read_answer(answers: &mut ring::Inlet) -> Option<(Head, Vec<u8>)> {
    let mut head = [0; HEAD];
    if answers.read(&mut head).unwrap() < HEAD {
        return None;
    }
    let head = Head::parse(head);
    let mut body = vec![0; head.len as usize];
    assert_eq!(answers.read(&mut body).unwrap(), body.len());
    Some((head, body))
}

#[test]
fn questions_and_answers_of_any_size() {
    let mut world = World::new();
    let mut session = world.session();
    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let until = std::sync::Arc::clone(&stop);
    let vm = std::thread::spawn(move || {
        while !until.load(std::sync::atomic::Ordering::Relaxed) {
            // As fast as questions may come.
            if let Some((id, body)) = world.turn() {
                let size: usize = serde_json::from_slice(&body).unwrap();
                world.server.answer(id, &vec![b'x'; size], world.now);
            }
            std::thread::yield_now();
        }
    });
    for (token, size) in [(1, 0), (2, 1), (3, MAX_PIECE), (4, MAX_PIECE + 1), (5, 1 << 20)] {
        session.knock(token, &mut || false).unwrap();
        for _ in 0..2 {
            let answer = session.call(size.to_string().as_bytes(), &mut || false).unwrap();
            assert_eq!(answer.len(), size);
        }
    }
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    vm.join().unwrap();
}

#[test]
fn half_a_question_is_waited_for_and_another_guest_of_the_channel_starts_afresh() {
    let mut world = World::new();
    let (mut asks, _) = world.attach(7);
    let message = wire::pieces(9, b"\"top\"");
    for byte in &message {
        assert!(world.turn().is_none());
        assert_eq!(asks.write(&[*byte]).unwrap(), 1);
    }
    let (id, body) = world.turn().unwrap();
    assert_eq!((id, serde_json::from_slice::<Ask>(&body).unwrap()), (9, Ask::Top));
    // Half a question and half an answer of one that died are nothing to the next.
    world.server.answer(9, &[b'x'; 100_000], world.now);
    asks.write(&message[..5]).unwrap();
    let (mut asks, mut answers) = world.attach(8);
    assert!(read_answer(&mut answers).is_none());
    asks.write(&message).unwrap();
    assert_eq!(world.turn().unwrap().0, 9);
    world.server.answer(9, b"yes", world.now);
    let (head, body) = read_answer(&mut answers).unwrap();
    assert!(head.id == 9 && head.last && body == b"yes");
}

#[test]
fn indexes_out_of_range_end_the_session_and_nothing_else() {
    // Producer of the questions, consumer of the answers.
    for (at, value) in [(64, 4097), (64, u32::MAX), (64, 1 << 31), (68, 1), (68, u32::MAX - 32_768), (68, 1 << 31)] {
        let mut world = World::new();
        world.attach(7);
        world.pages().store_release(at, value);
        if at == 68 {
            world.server.answer(1, &[0; 10], world.now);
        }
        assert!(world.turn().is_none());
        assert!(world.server.timer().is_none_or(|timer| timer > world.now), "it spins");
        // It hears no more, whatever comes.
        world.pages().store_release(at, 0);
        let (_, mut asks, _) = ring::join(&world.pages()).unwrap();
        asks.write(&wire::pieces(1, b"\"top\"")).unwrap();
        assert!(world.turn().is_none());
        // Until somebody attaches anew.
        let (mut asks, _) = world.attach(8);
        asks.write(&wire::pieces(2, b"\"top\"")).unwrap();
        assert_eq!(world.turn().unwrap().0, 2);
    }
}

#[test]
fn what_is_too_long_or_of_another_version_is_refused() {
    let good = Head { len: 5, id: 4, version: VERSION, last: true };
    for (head, says) in [
        (Head { len: MAX_ASK as u32 + 1, ..good }, "at most"),
        (Head { len: u32::MAX, ..good }, "at most"),
        (Head { last: false, ..good }, "one piece"),
        (Head { version: VERSION + 1, ..good }, "version 2"),
        (Head { version: 0, ..good }, "version 0"),
    ] {
        let mut world = World::new();
        let (mut asks, mut answers) = world.attach(7);
        asks.write(&head.bytes()).unwrap();
        asks.write(b"\"top\"").unwrap();
        assert!(world.turn().is_none());
        let (_, body) = read_answer(&mut answers).unwrap();
        let Answer::Refused { why, .. } = serde_json::from_slice(&body).unwrap() else { panic!() };
        assert!(why.contains(says), "{why}");
        assert!(world.turn().is_none());
    }
}

#[test]
fn random_bytes_are_survived() {
    let mut random = fastrand::Rng::with_seed(3);
    let mut world = World::new();
    for token in 1..400 {
        let (mut asks, _) = world.attach(token);
        for _ in 0..random.usize(1..6) {
            let bytes: Vec<u8> = (0..random.usize(1..5000)).map(|_| random.u8(..)).collect();
            let _ = asks.write(&bytes);
            if random.u8(..8) == 0 {
                world.pages().store_release(random.usize(0..40) * 4, random.u32(..));
            }
            if let Some((id, body)) = world.turn() {
                assert!(body.len() <= MAX_ASK);
                world.server.answer(id, &body, world.now);
            }
        }
    }
}

#[test]
fn a_reader_that_never_reads_costs_an_answer_for_half_a_minute() {
    let mut world = World::new();
    let (mut asks, _) = world.attach(7);
    asks.write(&wire::pieces(1, b"\"top\"")).unwrap();
    assert!(world.turn().is_some());
    world.server.answer(1, &vec![0; 1 << 20], world.now);
    asks.write(&wire::pieces(2, b"\"top\"")).unwrap();
    let start = world.now;
    while world.server.timer().is_some_and(|timer| timer > world.now) {
        assert!(world.turn().is_none(), "a second question before the first answer is read");
        assert!(world.now - start < Duration::from_secs(40));
    }
    assert!(world.now - start >= Duration::from_secs(29));
}

#[test]
fn so_many_questions_a_second() {
    let mut world = World::new();
    let (mut asks, mut answers) = world.attach(7);
    let (start, mut taken) = (world.now, 0);
    while world.now - start < Duration::from_secs(10) {
        let _ = asks.write(&wire::pieces(1, b"\"top\""));
        for _ in 0..50 {
            if let Some((id, _)) = world.server.turn(world.now) {
                taken += 1;
                world.server.answer(id, b"x", world.now);
                read_answer(&mut answers).unwrap();
                let _ = asks.write(&wire::pieces(1, b"\"top\""));
            }
        }
        world.now += Duration::from_millis(50);
    }
    assert!((10 * RATE..10 * RATE + 60).contains(&taken), "{taken}");
}

#[test]
fn a_vm_that_lies_is_an_error_for_dom0() {
    let good = Head { len: 3, id: 0, version: VERSION, last: true };
    // Which index, or which head the answer has.
    for lie in 0..6 {
        let mut world = World::new();
        let mut session = world.session();
        let pages = world.pages();
        pages.store_release(12, 5);
        session.knock(5, &mut || false).unwrap();
        let answer = |head: Head| {
            pages.write(2 * grant::PAGE_SIZE, &head.bytes());
            pages.store_release(132, 500);
        };
        match lie {
            0 => pages.store_release(132, 1 << 20),
            1 => pages.store_release(128, 77),
            2 => answer(Head { len: MAX_PIECE as u32 + 1, ..good }),
            3 => answer(Head { version: 2, ..good }),
            // Of another question, but for one chance in four billions.
            4 => answer(good),
            _ => pages.store_release(132, u32::MAX),
        }
        let error = session.call(b"\"top\"", &mut || false).unwrap_err();
        assert!(matches!(error, ChannelError::Failed(3, _)) && error.exit_code() == 1, "{lie}: {error}");
    }
    // Pages that hold something else.
    let mut world = World::new();
    world.pages().store_release(0, 1);
    let ports = Box::new(world.ports.take().unwrap());
    assert!(Session::over(3, &world.pages(), ports, world.port).is_err());
    // One that is restarted under way.
    let mut world = World::new();
    let mut session = world.session();
    assert!(matches!(session.knock(5, &mut || true), Err(ChannelError::Restarted(3))));
}
