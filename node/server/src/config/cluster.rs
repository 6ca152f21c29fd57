//! The parts of a configuration that only clusters have.

use super::{
    document::{self, Member},
    validate::Check,
};
use evergate_cluster::{
    lease,
    raft::{self, MAX_VOTERS, Node},
};
use evergate_ike::{config::GatewayConfig, record::GatewayId};
use evergate_state::MAX_WEIGHT;
use ipnet::IpNet;
use std::{net::SocketAddr, path::PathBuf, time::Duration};
use toml::Spanned;

/// Length of a zone's name, as of other names.
const MAX_ZONE: usize = 64;

/// The other members, and how they are talked to.
#[derive(Clone, Debug)]
pub(crate) struct ClusterConfig {
    /// Where other members are listened for.
    pub(crate) listen: SocketAddr,
    /// The certificate of the members' authority.
    pub(crate) ca: PathBuf,
    /// This member's certificate.
    pub(crate) cert: PathBuf,
    /// Its private key.
    pub(crate) key: PathBuf,
    /// The members that form the cluster, in the order of their names.
    pub(crate) members: Vec<Node>,
    /// Members of the cluster that this one joins.
    pub(crate) join: Vec<String>,
    /// The file with the token that it joins with.
    pub(crate) join_token_file: Option<PathBuf>,
    /// The pace of leases.
    pub(crate) lease: lease::Timing,
    /// The pace of elections.
    pub(crate) pace: raft::Timing,
}

impl Check<'_> {
    /// Virtual gateways. Their numbers follow from their names, so that another order of the document is no other gateway.
    pub(super) fn gateways(
        &mut self,
        gateways: Vec<(Spanned<String>, Spanned<document::Gateway>)>,
    ) -> Vec<GatewayConfig> {
        let mut done: Vec<GatewayConfig> = Vec::new();
        for (name, gateway) in gateways {
            self.name(&name, "gateway");
            let (span, gateway) = (gateway.span(), gateway.into_inner());
            let outer: Vec<IpNet> = gateway.outer.into_iter().map(|t| t.0).collect();
            let inner: Vec<IpNet> = gateway.inner.into_iter().map(|t| t.0).collect();
            if outer.is_empty() {
                self.error(
                    span.clone(),
                    "outer is empty, expected at least one address",
                );
            }
            let config = GatewayConfig {
                id: number(name.get_ref()),
                name: name.into_inner(),
                outer,
                inner,
            };
            let mut all: Vec<_> = of(&config).collect();
            all.sort_unstable();
            let twice = all.windows(2).any(|pair| pair[0] == pair[1]);
            let taken = done.iter().flat_map(of).any(|a| all.contains(&a));
            if twice || taken {
                let what = "an address stands here twice, or is another gateway's, expected each in one place";
                self.error(span.clone(), what);
            }
            if let Some(other) = done.iter().find(|g| g.id == config.id) {
                let what = format!(
                    "the name has the same number as {:?}, expected another name for one of them",
                    other.name
                );
                self.error(span, what);
            }
            done.push(config);
        }
        done.sort_by(|a, b| a.name.cmp(&b.name));
        done
    }

    /// Where a member stands.
    pub(super) fn place(&mut self, member: Option<&Spanned<Member>>) {
        let Some(member) = member else { return };
        let Member { zone, weight, .. } = member.get_ref();
        if !(1..=MAX_WEIGHT).contains(weight) {
            let what = format!("weight is {weight}, expected 1 to {MAX_WEIGHT}");
            self.error(member.span(), what);
        }
        if zone.len() > MAX_ZONE || zone.chars().any(char::is_control) {
            let what =
                format!("zone is not a name, expected up to {MAX_ZONE} printable characters");
            self.error(member.span(), what);
        }
    }

    /// `[cluster]`, which needs virtual gateways, and which they need.
    pub(super) fn cluster(
        &mut self,
        cluster: Option<Spanned<document::Cluster>>,
        member: Option<&Spanned<Member>>,
        gateways: &[GatewayConfig],
    ) -> Option<ClusterConfig> {
        let Some(cluster) = cluster else {
            if let Some(member) = member
                && !gateways.is_empty()
            {
                let what = "there are gateways, but no [cluster], expected one: a member that is alone serves all addresses that it has";
                self.error(member.span(), what);
            }
            return None;
        };
        let (span, cluster) = (cluster.span(), cluster.into_inner());
        let mut members: Vec<Node> = cluster
            .members
            .into_iter()
            .map(|m| Node {
                name: m.name,
                address: m.address,
            })
            .collect();
        // All members must have them in the same order.
        members.sort_by(|a, b| a.name.cmp(&b.name));
        let mut wrong = Vec::new();
        if members.windows(2).any(|pair| pair[0].name == pair[1].name) {
            wrong.push("members has a name twice, expected each once".to_owned());
        }
        let own = member
            .map(|m| m.get_ref().name.as_str())
            .unwrap_or_default();
        if members.is_empty() == cluster.join.is_empty() {
            let what = "there are both members and join, or none of them, expected the members that form a cluster, or some to ask of the cluster that this one joins";
            wrong.push(what.to_owned());
        } else if cluster.join.is_empty() && members.iter().all(|m| m.name != own) {
            wrong.push(format!(
                "members does not have this member, expected {own:?} among them"
            ));
        }
        let voters = members.len();
        if voters > MAX_VOTERS {
            wrong.push(format!(
                "{voters} members vote, expected at most {MAX_VOTERS}: others can join later as learners"
            ));
        }
        let mut addresses = members.iter().map(|m| &m.address).chain(&cluster.join);
        if let Some(bad) = addresses.find(|address| !is_endpoint(address)) {
            wrong.push(format!(
                "{bad:?} is not where a member is reached, expected a host and a port"
            ));
        }
        if gateways.is_empty() {
            wrong.push(
                "there are no gateways, expected a [gateways.NAME] table with addresses that move"
                    .to_owned(),
            );
        }
        let (lease, pace) = timing(
            [cluster.lease, cluster.renew].map(|t| t.map(|t| t.0)),
            [
                cluster.heartbeat,
                cluster.election_min,
                cluster.election_max,
            ]
            .map(|t| t.map(|t| t.0)),
        );
        if let Err(what) = lease.check() {
            wrong.push(what.to_owned());
        }
        if pace.heartbeat.is_zero()
            || pace.heartbeat * 2 > pace.election_min
            || pace.election_min >= pace.election_max
        {
            let what = "these times cannot be used, expected election_min to be at least two heartbeats, and election_max more";
            wrong.push(what.to_owned());
        }
        for what in wrong {
            self.error(span.clone(), what);
        }
        Some(ClusterConfig {
            listen: cluster.listen.0,
            ca: self.directory.join(cluster.ca),
            cert: self.directory.join(cluster.cert),
            key: self.directory.join(cluster.key),
            members,
            join: cluster.join,
            join_token_file: cluster.join_token_file.map(|f| self.directory.join(f)),
            lease,
            pace,
        })
    }
}

fn timing(
    [grant, renew]: [Option<Duration>; 2],
    [heartbeat, election_min, election_max]: [Option<Duration>; 3],
) -> (lease::Timing, raft::Timing) {
    let usual = raft::Timing::default();
    let pace = raft::Timing {
        heartbeat: heartbeat.unwrap_or(usual.heartbeat),
        election_min: election_min.unwrap_or(usual.election_min),
        election_max: election_max.unwrap_or(usual.election_max),
    };
    let usual = lease::Timing::default();
    let lease = lease::Timing {
        grant: grant.unwrap_or(usual.grant),
        renew: renew.unwrap_or(usual.renew),
        // That is how long followers refuse to vote.
        election_timeout_max: pace.election_max,
        ..usual
    };
    (lease, pace)
}

fn of(gateway: &GatewayConfig) -> impl Iterator<Item = std::net::IpAddr> + '_ {
    gateway.outer.iter().chain(&gateway.inner).map(IpNet::addr)
}

/// Whether it is a host and a port.
pub(crate) fn is_endpoint(address: &str) -> bool {
    let parts = address.rsplit_once(':');
    parts.is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok_and(|p| p != 0))
}

/// The number of a gateway (FNV-1a of its name). Never 0, which is the gateway of a member that is alone.
fn number(name: &str) -> GatewayId {
    let hash = name.bytes().fold(0x811c_9dc5_u32, |hash, byte| {
        (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193)
    });
    GatewayId(hash.max(1))
}

#[cfg(test)]
mod tests {
    use crate::config::parse;
    use std::{path::Path, time::Duration};

    const MEMBERS: &str = "members = [{ name = 'm2', address = '198.51.100.2:4510' }, { name = 'm1', address = '198.51.100.1:4510' }]\n";

    fn document(more: &str, rest: &str) -> String {
        format!(
            "[member]\nname = 'm1'\n[cluster]\nlisten = '198.51.100.1:4510'\nca = 'ca.pem'\ncert = 'm1.pem'\nkey = 'm1.key'\n{MEMBERS}{more}\n{rest}"
        )
    }

    const GATEWAYS: &str = "[gateways.west]\nouter = ['192.0.2.2/24', '2001:db8::2/64']\ninner = ['10.1.0.1/24']\n[gateways.east]\nouter = ['192.0.2.3/24']\n";

    #[test]
    fn a_cluster_is_read_with_its_gateways() {
        let config = parse(&document("lease = '400ms'", GATEWAYS), Path::new("/etc/x")).unwrap();
        let cluster = config.cluster.unwrap();
        assert_eq!(cluster.ca, Path::new("/etc/x/ca.pem"));
        let names: Vec<_> = cluster.members.iter().map(|m| m.name.as_str()).collect();
        assert_eq!(names, ["m1", "m2"], "the same order everywhere");
        assert_eq!(cluster.lease.grant, Duration::from_millis(400));
        assert_eq!(
            cluster.lease.election_timeout_max,
            cluster.pace.election_max
        );
        let gateways = config.policy.gateways;
        let ids: Vec<_> = gateways.iter().map(|g| (g.name.as_str(), g.id.0)).collect();
        assert_eq!(ids, [("east", 5_468_732), ("west", 3_941_157_294)]);
        assert_eq!(gateways[1].outer[0].to_string(), "192.0.2.2/24");
    }

    #[test]
    fn what_cannot_work_is_refused_where_it_stands() {
        let twice = "[gateways.a]\nouter = ['192.0.2.2/24']\ninner = ['192.0.2.2/32']\n";
        let cases = [
            (document("", ""), "3:1: error: there are no gateways"),
            (
                document("lease = '60ms'", GATEWAYS),
                "3:1: error: a lease must last",
            ),
            (
                document("lease = '300ms'", GATEWAYS),
                "3:1: error: a lease must outlast an election",
            ),
            (
                document("election_max = '200ms'", GATEWAYS),
                "3:1: error: a lease must outlast an election",
            ),
            (
                document("election_max = '10ms'", GATEWAYS),
                "3:1: error: the election time-out",
            ),
            (
                document("", twice),
                "10:1: error: an address stands here twice",
            ),
            (document("x = 1", GATEWAYS), "9:1: error: unknown field `x`"),
            (
                document("", GATEWAYS).replace("'m1', address", "'m3', address"),
                "3:1: error: members does not have this member, expected \"m1\"",
            ),
            (
                document("", GATEWAYS).replace("2:4510' }", "2' }"),
                "3:1: error: \"198.51.100.2\" is not where a member is reached",
            ),
            (
                format!("[member]\nname = 'm1'\n{GATEWAYS}"),
                "1:1: error: there are gateways, but no [cluster]",
            ),
            (
                document("", "[gateways.a]\nouter = ['192.0.2.2']\n"),
                "11:10: error: \"192.0.2.2\" is not an address with a prefix, expected",
            ),
        ];
        for (text, expected) in cases {
            let problems = parse(&text, Path::new(".")).unwrap_err();
            let said: Vec<_> = problems.iter().map(ToString::to_string).collect();
            assert!(
                said.iter().any(|s| s.starts_with(expected)),
                "{expected}: {said:?}"
            );
        }
    }
}
