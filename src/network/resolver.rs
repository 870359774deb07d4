//! Host names into addresses: the one question that the network asks the operating system.

use std::fmt;
use std::io;
use std::net::{IpAddr, ToSocketAddrs as _};

use futures::FutureExt as _;
use futures::future::BoxFuture;
use tokio::sync::oneshot;

/// Turns a host name into its addresses.
pub trait Resolve: fmt::Debug + Send + Sync {
    /// All addresses of the host, of both families.
    fn resolve(&self, host: &str) -> BoxFuture<'static, io::Result<Vec<IpAddr>>>;
}

/// What the operating system says: its hosts file, its name servers, its search list, read anew when
/// they change.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemResolver;

impl Resolve for SystemResolver {
    fn resolve(&self, host: &str) -> BoxFuture<'static, io::Result<Vec<IpAddr>>> {
        let (answer, heard) = oneshot::channel();
        let host = host.to_owned();
        // A thread of its own and not one of the runtime's, which would have to wait for it when the
        // node stops: a name server that is gone takes up to half a minute.
        let started = std::thread::Builder::new().name("dns".to_owned()).spawn(move || {
            let found = (host.as_str(), 0).to_socket_addrs();
            let _nobody_waits = answer.send(found.map(|all| all.map(|address| address.ip()).collect()));
        });
        async move {
            started?;
            heard.await.unwrap_or_else(|_| Err(io::Error::other("the lookup ended without an answer")))
        }
        .boxed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_system_knows_localhost_and_not_an_invalid_name() {
        let found = SystemResolver.resolve("localhost").await.unwrap();
        assert!(found.iter().all(IpAddr::is_loopback) && !found.is_empty(), "{found:?}");
        SystemResolver.resolve("nodes.invalid").await.unwrap_err();
    }
}
