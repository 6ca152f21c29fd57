//! Outer addresses: which of ours lead to which of a peer's, and what names stand for.

use crate::shared::Shared;
use evergate_ike::{
    config::{Connection, Policy},
    record::GatewayId,
};
use ipnet::IpNet;
use std::{net::IpAddr, sync::Arc, time::Duration};
use tokio::{net::lookup_host, sync::Semaphore, time::timeout};
use tracing::warn;

/// So long may the system's resolver take.
const RESOLVE: Duration = Duration::from_secs(5);

/// So many names are looked up at the same time; each look-up keeps a thread.
const RESOLVERS: usize = 8;

/// So many addresses of one name are used.
const MAX_RESOLVED: usize = 8;

static RESOLVING: Semaphore = Semaphore::const_new(RESOLVERS);

/// Pairs of an address of ours and one of the peer's to initiate with, in the order in which they are to be tried: first the addresses that the
/// configuration names, then what its names stand for now.
pub(crate) async fn pairs(shared: &Arc<Shared>, connection: &Connection) -> Vec<(IpAddr, IpAddr)> {
    let mut remotes: Vec<IpAddr> = connection.remote_hosts().collect();
    for name in &connection.remote_names {
        remotes.extend(resolve(&shared.gateway, &connection.name, name).await);
    }
    let policy = shared.policy.load_full();
    let mut pairs: Vec<(IpAddr, IpAddr)> = Vec::new();
    for remote in remotes {
        let tried = pairs.iter().any(|(_, r)| *r == remote);
        let locals = sources(shared, &policy, Some(connection), None, remote);
        if let (false, Some(local)) = (tried, locals.first()) {
            pairs.push((*local, remote));
        }
    }
    pairs
}

/// What the system's resolver says of a name.
async fn resolve(gateway: &GatewayId, connection: &str, name: &str) -> Vec<IpAddr> {
    let asked = name.to_owned();
    // The look-up keeps its place until it ends, also when nobody waits any more.
    let looking = tokio::spawn(async move {
        let _place = RESOLVING.acquire().await;
        lookup_host((asked.as_str(), 0))
            .await
            .map(|all| all.map(|a| a.ip()).take(MAX_RESOLVED).collect())
    });
    let why = match timeout(RESOLVE, looking).await {
        Ok(Ok(Ok(addresses))) => return addresses,
        Ok(Ok(Err(e))) => e.to_string(),
        Ok(Err(e)) => e.to_string(),
        Err(_) => "the resolver does not answer".to_owned(),
    };
    warn!(
        event = "resolve-failed",
        gateway = gateway.0,
        connection,
        name,
        "cannot look up {name:?}: {why}"
    );
    Vec::new()
}

/// Our addresses from which a peer can be reached, best first. `used` is the one in use.
pub(crate) fn sources(
    shared: &Shared,
    policy: &Policy,
    connection: Option<&Connection>,
    used: Option<IpAddr>,
    remote: IpAddr,
) -> Vec<IpAddr> {
    let own = shared.outer_addresses(policy);
    let named: &[IpNet] = connection.map_or(&[], |c| &c.local_addrs);
    let allowed = |a: &IpAddr| {
        a.is_ipv4() == remote.is_ipv4() && (named.is_empty() || named.iter().any(|n| n.contains(a)))
    };
    let chosen = shared.plane.source_to(None, remote);
    if let Some(chosen) = chosen.filter(|a| own.contains(a) && allowed(a)) {
        return vec![chosen];
    }
    // The kernel would take one that the connection or the gateway is not for.
    let mut fitting: Vec<IpAddr> = own
        .iter()
        .copied()
        .filter(|a| allowed(a) && shared.plane.source_to(Some(*a), remote).is_some())
        .collect();
    fitting.sort_by_key(|a| Some(*a) != used);
    if fitting.is_empty() && used.is_none() {
        // What the configuration names may not be on this host yet; the message is repeated until then.
        let hosts = named
            .iter()
            .filter(|n| n.prefix_len() == n.max_prefix_len());
        fitting.extend(
            hosts
                .map(IpNet::addr)
                .filter(|a| a.is_ipv4() == remote.is_ipv4()),
        );
    }
    fitting
}
