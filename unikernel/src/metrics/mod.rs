//! Numbers as Prometheus takes them (text format 0.0.4), and a server that hands them out.

pub mod check;
pub mod serve;
pub mod text;
