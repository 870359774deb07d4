//! Only registered clients' requests: whatever a block writes is of a client that an operation
//! before it registered, under the key of that operation, which the admin of genesis signed.

use std::collections::BTreeMap;

use ledgermq::device;
use ledgermq::ledger::{AdminAction, Operation};
use ledgermq::types::{ClientId, Height, PublicKey};

use super::{Broken, Property, Seen, World, ensure};

#[derive(Default)]
pub struct RegisteredClients {
    keys: BTreeMap<ClientId, PublicKey>,
    /// All blocks up to here were looked at; agreement is another property.
    height: Height,
}

impl Property for RegisteredClients {
    fn name(&self) -> &'static str {
        "only registered clients"
    }

    fn check(&mut self, world: &World, at: usize, seen: &Seen) -> Result<(), Broken> {
        let Seen::Block(block) = seen else { return Ok(()) };
        if world.faulty.contains(&at) || block.header.height != self.height.next() {
            return Ok(());
        }
        self.height = block.header.height;
        for operation in &block.operations {
            match operation {
                Operation::Admin(operation) => {
                    let by_admin = operation.admin == world.admin && operation.verify(&world.network).is_ok();
                    ensure!(by_admin, "block {} has an operation of no admin", self.height);
                    if let AdminAction::RegisterClient { client, key, .. } = &operation.action {
                        self.keys.insert(client.clone(), *key);
                    }
                }
                Operation::Digest(_) => {}
                Operation::Write { request, .. } => {
                    let header = device::Header::decode(&request.header).unwrap();
                    let registered = self.keys.get(&header.client) == Some(&request.client_key);
                    ensure!(registered, "block {} writes for {}, not registered", self.height, header.client);
                }
            }
        }
        Ok(())
    }
}
