//! Both halves of a ring against the arithmetic of Xen's `io/ring.h`, while the peer writes any index.

use grant::heap;
use grant::ring::{BackRing, FrontRing, SLOTS_AT};

use super::Input;

const REQ_PROD: usize = 0;
const REQ_EVENT: usize = 4;
const RSP_PROD: usize = 8;
const RSP_EVENT: usize = 12;

pub fn ring(input: &[u8]) {
    let mut input = Input(input);
    let shape = input.byte();
    let slot_size = if shape & 1 == 0 { 112 } else { 108 };
    let memory = heap::pages(1 << (shape >> 1 & 3));
    let pages = memory.pages();
    let entries = 32u32 << (shape >> 1 & 3);
    let start = input.word();
    let mut front = FrontRing::new_at(pages.clone(), slot_size, start);
    let mut back = match BackRing::attach(pages.clone(), slot_size) {
        Ok(back) => back,
        Err(broken) => panic!("a fresh ring: {broken}"),
    };
    assert_eq!((front.entries(), back.entries()), (entries, entries));
    // Ours, as the header has them: what the other side may not move.
    let (mut req_prod, mut published, mut req_cons, mut rsp_prod, mut rsp_told) = (start, start, start, start, start);
    let mut rsp_cons = start;
    while !input.is_empty() {
        match input.byte() % 9 {
            0 if req_prod.wrapping_sub(rsp_cons) < entries => {
                assert_eq!(front.free(), entries - req_prod.wrapping_sub(rsp_cons));
                let request: Vec<u8> = (0..slot_size).map(|at| (req_prod as u8).wrapping_add(at as u8)).collect();
                front.put(&request);
                req_prod = req_prod.wrapping_add(1);
            }
            1 => {
                let event = pages.load_acquire(REQ_EVENT);
                let wanted = req_prod.wrapping_sub(event) < req_prod.wrapping_sub(published);
                assert_eq!(front.push(), wanted);
                published = req_prod;
                assert_eq!(pages.load_acquire(REQ_PROD), req_prod);
            }
            2 => {
                // The other side's lie about its requests.
                let lie = input.word();
                pages.store_release(REQ_PROD, if lie & 1 == 0 { lie } else { rsp_prod.wrapping_add(lie >> 1 & 1023) });
            }
            3 => {
                let outstanding = pages.load_acquire(REQ_PROD).wrapping_sub(rsp_prod);
                let taken = req_cons.wrapping_sub(rsp_prod);
                let good = (taken..=entries).contains(&outstanding).then(|| outstanding - taken);
                assert_eq!(back.unconsumed().ok(), good);
                if good.is_some_and(|waiting| waiting > 0) {
                    let at = SLOTS_AT + (req_cons % entries) as usize * slot_size;
                    let (mut there, mut here) = (vec![0; slot_size], vec![0; slot_size]);
                    pages.read(at, &mut there);
                    back.take(&mut here);
                    assert_eq!(there, here);
                    req_cons = req_cons.wrapping_add(1);
                    assert_eq!(back.req_cons(), req_cons);
                }
            }
            4 if rsp_prod != req_cons => {
                back.respond(&[rsp_prod as u8; 12]);
                let at = SLOTS_AT + (rsp_prod % entries) as usize * slot_size;
                assert_eq!(pages.load::<u8>(at), rsp_prod as u8);
                rsp_prod = rsp_prod.wrapping_add(1);
                assert_eq!(back.rsp_prod(), rsp_prod);
            }
            5 => {
                let event = pages.load_acquire(RSP_EVENT);
                let wanted = rsp_prod.wrapping_sub(event) < rsp_prod.wrapping_sub(rsp_told);
                assert_eq!(back.publish(), wanted);
                rsp_told = rsp_prod;
                assert_eq!(pages.load_acquire(RSP_PROD), rsp_prod);
            }
            6 => {
                if let Ok(work) = back.final_check() {
                    assert!(work || pages.load_acquire(REQ_EVENT) == req_cons.wrapping_add(1));
                }
            }
            7 => {
                let lie = input.word();
                pages.store_release(RSP_PROD, if lie & 1 == 0 { lie } else { rsp_cons.wrapping_add(lie >> 1 & 1023) });
            }
            8 => {
                let waiting = pages.load_acquire(RSP_PROD).wrapping_sub(rsp_cons);
                let good = (waiting <= published.wrapping_sub(rsp_cons)).then_some(waiting);
                assert_eq!(front.unconsumed().ok(), good);
                if good.is_some_and(|waiting| waiting > 0) {
                    front.take(&mut [0; 12]);
                    rsp_cons = rsp_cons.wrapping_add(1);
                }
            }
            _ => {}
        }
    }
}
