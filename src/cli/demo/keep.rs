//! Where everything is, for a look around while the network runs.

use std::path::PathBuf;

use super::proofs::{FORGED, HOTTEST};
use super::screen::Screen;
use crate::cli::local::LocalNetwork;
use crate::types::ClientId;

/// What there is to look at.
#[derive(Debug)]
pub(super) struct Looks {
    pub(super) clients: Vec<ClientId>,
    /// The replica whose history was tampered with.
    pub(super) tampered: usize,
}

impl Looks {
    /// Says where everything is, and what to try.
    pub(super) fn tell(&self, network: &LocalNetwork, screen: &Screen) -> anyhow::Result<()> {
        screen.say("\nThe network runs until you press Ctrl-C; then its files are removed, too.")?;
        for (replica, node) in network.files().nodes.iter().enumerate() {
            let api = network.api_url(replica);
            screen.say(format_args!(
                "   replica {replica}   API {api}/v1/status   metrics {api}/metrics   MQTT {}:{}",
                node.host, node.ports.mqtt
            ))?;
        }
        screen.say("Try, from another terminal:")?;
        for line in self.lines(network)? {
            screen.say(format_args!("   {line}"))?;
        }
        Ok(())
    }

    fn lines(&self, network: &LocalNetwork) -> anyhow::Result<Vec<String>> {
        let program = std::env::args_os().next().map_or_else(|| "ledgermq".into(), PathBuf::from);
        let (program, dir) = (program.display(), network.dir().display());
        let genesis = network.files().genesis.display();
        let (api, node) = (network.api_url(0), &network.files().nodes[0]);
        let mqtt = format!("-V 5 -h {} -p {}", node.host, node.ports.mqtt);
        let mut lines: Vec<String> = self
            .clients
            .iter()
            .map(|client| format!("curl '{api}/v1/records?client={client}&limit=3'"))
            .collect();
        lines.push(format!("{program} status --network {dir}"));
        lines.push(format!("{program} policy list --network {dir}"));
        lines.push(format!("{program} client list --network {dir}"));
        for bundle in [HOTTEST, FORGED] {
            let bundle = network.dir().join(bundle);
            lines.push(format!("{program} verify {} --genesis {genesis}", bundle.display()));
        }
        let history = network.history(self.tampered)?;
        lines.push(format!(
            "{program} audit --genesis {genesis} --node {api} --history {}",
            history.display()
        ));
        // Who is not registered is told so at once; a gateway reads what nodes say to it.
        lines.push(format!("mosquitto_sub {mqtt} -i demo/stranger -t 'demo/stranger/#' -F '%t %x'"));
        if let Some((client, key)) = self.clients.first().zip(network.dir().join("gateway-1.key").to_str()) {
            lines.push(format!(
                "mosquitto_rr {mqtt} -i {client} -u me -P \"$({program} client token {client} --key {key} \
                 --genesis {genesis})\" -t {client}/key -n -e {client}/forbidden -F '%t %x'"
            ));
        }
        Ok(lines)
    }
}
