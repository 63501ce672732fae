//! Real network stacks on the paravirtual path: each guest's card is a TAP in a network namespace, and ordinary programs
//! (ping, iperf3, tcpdump) use it.

#[path = "../rig/mod.rs"]
mod rig;

mod offloads;
mod space;
mod traffic;
mod uplinks;
