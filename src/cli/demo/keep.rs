//! Where everything is, for a look around while the network runs.

use std::path::{Path, PathBuf};

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
                "   replica {replica}   API {api} (/v1/status, /metrics)   MQTT {}:{}",
                node.host, node.ports.mqtt
            ))?;
        }
        screen.say("Try, from another terminal:")?;
        for line in self.lines(network)? {
            screen.say(format_args!("   {line}"))?;
        }
        Ok(())
    }

    /// Each fits a terminal: what is long has a name, in variables of the shell.
    fn lines(&self, network: &LocalNetwork) -> anyhow::Result<Vec<String>> {
        let called = std::env::args_os().next().map_or_else(|| "ledgermq".into(), PathBuf::from);
        let program = std::env::current_exe().unwrap_or(called);
        let (api, node, dir) = (network.api_url(0), &network.files().nodes[0], network.dir());
        let below = |path: &Path| match path.strip_prefix(dir) {
            Ok(path) => format!("$D/{}", path.display()),
            Err(_) => path.display().to_string(),
        };
        let genesis = below(&network.files().genesis);
        let mqtt = format!("-V 5 -h {} -p {}", node.host, node.ports.mqtt);
        let mut lines =
            vec![format!("L={}", program.display()), format!("D={}", dir.display()), format!("A={api}")];
        lines.extend(
            self.clients.iter().map(|client| format!("curl \"$A/v1/records?client={client}&limit=3\"")),
        );
        lines.extend(["status", "policy list", "client list"].map(|what| format!("$L {what} --network $D")));
        for bundle in [HOTTEST, FORGED] {
            lines.push(format!("$L verify $D/{bundle} --genesis {genesis}"));
        }
        let history = below(&network.history(self.tampered)?);
        lines.push(format!("$L audit --genesis {genesis} --node $A \\"));
        lines.push(format!("  --history {history}"));
        // Who is not registered is told so at once; a gateway reads what nodes say to it.
        lines.push(format!("mosquitto_sub {mqtt} -i demo/stranger \\"));
        lines.push("  -t 'demo/stranger/#' -F '%t %x'".to_owned());
        if let Some(client) = self.clients.first() {
            lines.push(format!("mosquitto_rr {mqtt} -i {client} -u me \\"));
            lines.push(format!("  -P \"$($L client token {client} --key $D/gateway-1.key \\"));
            lines.push(format!("  --genesis {genesis})\" \\"));
            lines.push(format!("  -t {client}/key -n -e {client}/forbidden -F '%t %x'"));
        }
        Ok(lines)
    }
}
