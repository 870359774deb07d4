//! Censoring primary: correct in everything, but it never orders what one node admitted.

use ledgermq::ledger::VerifiedRequest;

use super::Adversary;
use crate::clients::client;

pub struct CensoringPrimary {
    pub victim: usize,
}

impl Adversary for CensoringPrimary {
    fn name(&self) -> &'static str {
        "censoring primary"
    }

    fn takes_request(&mut self, request: &VerifiedRequest) -> bool {
        request.telemetry().is_none_or(|telemetry| telemetry.header.client != client(self.victim))
    }
}
