//! PBFT: the replicated order of requests, as a pure state machine (Castro and Liskov 1999, 2002).
pub mod message;
