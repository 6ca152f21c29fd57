//! Faults on the wire: IKE messages that get lost on the internet segment.
//!
//! The rules are in the bridge, behind the capture: the checker sees a
//! message also when it was dropped.

use crate::capture::{Capture, packets};
use crate::lab::Lab;
use crate::packet::{Body, IkeHeader, Packet};
use crate::{Result, secs, until};
use std::collections::HashSet;
use std::io::Write;
use std::net::IpAddr;
use std::process::{Command, Stdio};

/// Exchange types of RFC 7296 §3.1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Exchange {
    /// IKE_SA_INIT.
    SaInit = 34,
    /// IKE_AUTH.
    Auth = 35,
    /// CREATE_CHILD_SA.
    CreateChild = 36,
    /// INFORMATIONAL.
    Informational = 37,
    /// IKE_INTERMEDIATE (RFC 9242).
    Intermediate = 43,
    /// IKE_FOLLOWUP_KE (RFC 9370).
    FollowUpKe = 44,
}

/// Requests or responses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// The Response flag is clear.
    Request,
    /// The Response flag is set.
    Response,
}

/// The messages of this kind that `from` has sent by now, fragments one by one. What was sent again is there again: peers repeat what is not answered in time,
/// as when the machine stalls.
pub fn sent(capture: &Capture, from: &str, exchange: Exchange, kind: Kind) -> Result<Vec<Vec<u8>>> {
    let from: IpAddr = from.parse()?;
    let wanted = |packet: Packet| match packet.body {
        Body::Ike(message) if packet.src == from => {
            let header = IkeHeader::parse(&message)?;
            let fits =
                header.exchange == exchange as u8 && header.response == (kind == Kind::Response);
            fits.then_some(message)
        }
        _ => None,
    };
    let all = packets(&capture.so_far()?);
    Ok(all.into_iter().filter_map(wanted).collect())
}

/// How many different messages there are.
#[must_use]
pub fn different(messages: &[Vec<u8>]) -> usize {
    messages.iter().collect::<HashSet<_>>().len()
}

/// Waits until `from` has sent so many different messages of this kind, and fails if there are more.
pub fn sent_just(
    capture: &Capture,
    from: &str,
    exchange: Exchange,
    kind: Kind,
    count: usize,
) -> Result<()> {
    let what = format!("{from} sent {count} different messages: {exchange:?} {kind:?}");
    let mut seen = 0;
    until(secs(20), &what, || {
        seen = different(&sent(capture, from, exchange, kind)?);
        Ok(seen >= count)
    })?;
    anyhow::ensure!(
        seen == count,
        "it should be that {what}, but there are {seen}"
    );
    Ok(())
}

/// A message to lose: the first `count` that fit.
#[derive(Debug, Clone, Copy)]
pub struct Loss<'a> {
    /// The outer address of the sender.
    pub from: &'a str,
    /// Its exchange type.
    pub exchange: Exchange,
    /// Request or response.
    pub kind: Kind,
    /// How many in a row are lost.
    pub count: u32,
}

/// Offset in bits of the exchange type in a UDP datagram, without and with
/// the non-ESP marker (RFC 7296 §3.1, RFC 3948 §2.2), which must be there:
/// the same byte of an ESP packet has any value.
const EXCHANGE_AT: [(u16, &str, u16); 2] = [
    (500, "", (8 + 18) * 8),
    (4500, "@th,64,32 0x0", (8 + 4 + 18) * 8),
];

/// Replaces all faults of the lab by `losses`.
pub fn lose(lab: &Lab, losses: &[Loss<'_>]) -> Result<()> {
    let mut rules = String::from(
        "table bridge faults\ndelete table bridge faults\ntable bridge faults {\n chain forward {\n  type filter hook forward priority 0;\n",
    );
    for loss in losses {
        let family = if loss.from.contains(':') { "ip6" } else { "ip" };
        let flag = match loss.kind {
            Kind::Request => "0x0",
            Kind::Response => "0x20",
        };
        for (port, marker, at) in EXCHANGE_AT {
            rules.push_str(&format!(
                "  {family} saddr {} udp dport {port} {marker} @th,{at},8 {} @th,{},8 & 0x20 == {flag} numgen inc mod 1000000 < {} counter drop\n",
                loss.from,
                loss.exchange as u8,
                at + 8,
                loss.count
            ));
        }
    }
    rules.push_str(" }\n}\n");
    apply(lab, &rules)
}

/// Drops all fragments of IP packets on the segment, as many networks do.
pub fn drop_ip_fragments(lab: &Lab) -> Result<()> {
    apply(
        lab,
        "table bridge fragments {\n chain forward {\n  type filter hook forward priority 0;\n  \
         ip frag-off & 0x3fff != 0 counter drop\n  ether type ip6 @nh,48,8 44 counter drop\n }\n}\n",
    )
}

/// Cuts everything between `a` and the rest of the segment (or heals it).
pub fn cut(lab: &Lab, a: &str, cut: bool) -> Result<()> {
    let family = if a.contains(':') { "ip6" } else { "ip" };
    let mut rules = String::from("table bridge cut\ndelete table bridge cut\n");
    if cut {
        rules.push_str(&format!(
            "table bridge cut {{\n chain forward {{\n  type filter hook forward priority 0;\n  {family} saddr {a} drop\n  {family} daddr {a} drop\n }}\n}}\n"
        ));
    }
    apply(lab, &rules)
}

fn apply(lab: &Lab, rules: &str) -> Result<()> {
    let mut nft = Command::new("ip")
        .args(["netns", "exec", &lab.namespace("inet"), "nft", "-f", "-"])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    if let Some(mut stdin) = nft.stdin.take() {
        stdin.write_all(rules.as_bytes())?;
    }
    let output = nft.wait_with_output()?;
    anyhow::ensure!(
        output.status.success(),
        "nft: {}\n{rules}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}
