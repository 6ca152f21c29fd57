//! Packets on their way from the member that handed a virtual gateway over to its successor.

use super::{
    Membership,
    message::{decode, encode},
};
use crate::{handovers::Relayed, node::Node};
use bytes::Bytes;
use evergate_dataplane::{DataPlane, Datagram, DatagramKind, Hold, Packet, TcpEnd};
use evergate_ike::record::GatewayId;
use futures::{FutureExt, StreamExt, future::BoxFuture, stream::BoxStream};
use serde::{Deserialize, Serialize, Serializer};
use std::{
    net::SocketAddr,
    sync::{Arc, Weak},
    time::Duration,
};
use tokio::{
    sync::mpsc,
    time::{Instant, timeout, timeout_at},
};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

/// A successor answers within this time; else a gateway is handed over without what comes meanwhile.
const ANSWER: Duration = Duration::from_millis(500);

/// Bytes of packets in one message, about.
const PORTION: usize = 256 << 10;

/// Messages that wait to be sent. What does not fit stays in the hold, which is bounded.
const PORTIONS: usize = 4;

/// So long packets wait for their receiver to learn that it has the gateway: it applies the log a little later than others, or never.
const PATIENCE: Duration = Duration::from_secs(2);

/// At the end the successor has this time to take what is under way.
const LAST: Duration = Duration::from_millis(500);

/// What packets are of.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct Head {
    gateway: GatewayId,
    /// The epoch in which the receiver has it.
    epoch: u32,
}

/// A packet between members.
#[derive(Serialize, Deserialize)]
enum Wire<'a> {
    #[serde(borrow)]
    Clear(Raw<'a>),
    #[serde(borrow)]
    Outer(WireDatagram<'a>),
}

#[derive(Serialize, Deserialize)]
struct WireDatagram<'a> {
    kind: Kind,
    local: SocketAddr,
    remote: SocketAddr,
    traffic_class: u8,
    #[serde(borrow)]
    bytes: Raw<'a>,
}

#[derive(Clone, Copy, Serialize, Deserialize)]
enum Kind {
    Ike,
    EspInUdp,
    Esp,
    IkeInTcp(End),
    EspInTcp(End),
}

/// Which end of the TCP connection the gateway was.
#[derive(Clone, Copy, Serialize, Deserialize)]
enum End {
    Originator,
    Responder,
}

impl From<TcpEnd> for End {
    fn from(end: TcpEnd) -> Self {
        match end {
            TcpEnd::Originator => Self::Originator,
            TcpEnd::Responder => Self::Responder,
        }
    }
}

impl From<End> for TcpEnd {
    fn from(end: End) -> Self {
        match end {
            End::Originator => Self::Originator,
            End::Responder => Self::Responder,
        }
    }
}

/// Bytes, written at once.
#[derive(Deserialize)]
struct Raw<'a>(&'a [u8]);

impl Serialize for Raw<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(self.0)
    }
}

impl<'a> From<&'a Packet> for Wire<'a> {
    fn from(packet: &'a Packet) -> Self {
        match packet {
            Packet::Clear(bytes) => Self::Clear(Raw(bytes)),
            Packet::Outer(datagram) => Self::Outer(WireDatagram {
                kind: match datagram.kind {
                    DatagramKind::Ike => Kind::Ike,
                    DatagramKind::EspInUdp => Kind::EspInUdp,
                    DatagramKind::Esp => Kind::Esp,
                    DatagramKind::IkeInTcp(end) => Kind::IkeInTcp(end.into()),
                    DatagramKind::EspInTcp(end) => Kind::EspInTcp(end.into()),
                },
                local: datagram.local,
                remote: datagram.remote,
                traffic_class: datagram.traffic_class,
                bytes: Raw(&datagram.bytes),
            }),
        }
    }
}

impl From<Wire<'_>> for Packet {
    fn from(wire: Wire<'_>) -> Self {
        match wire {
            Wire::Clear(Raw(bytes)) => Self::Clear(bytes.to_vec()),
            Wire::Outer(datagram) => Self::Outer(Datagram {
                kind: match datagram.kind {
                    Kind::Ike => DatagramKind::Ike,
                    Kind::EspInUdp => DatagramKind::EspInUdp,
                    Kind::Esp => DatagramKind::Esp,
                    Kind::IkeInTcp(end) => DatagramKind::IkeInTcp(end.into()),
                    Kind::EspInTcp(end) => DatagramKind::EspInTcp(end.into()),
                },
                local: datagram.local,
                remote: datagram.remote,
                traffic_class: datagram.traffic_class,
                bytes: datagram.bytes.0.to_vec(),
            }),
        }
    }
}

fn write(packets: &[Packet]) -> Result<Bytes, String> {
    let wire: Vec<Wire<'_>> = packets.iter().map(Wire::from).collect();
    encode(&wire)
}

fn read(bytes: &[u8]) -> Result<Vec<Packet>, String> {
    match postcard::take_from_bytes::<Vec<Wire<'_>>>(bytes) {
        Ok((wire, [])) => Ok(wire.into_iter().map(Packet::from).collect()),
        Ok(_) => Err("there is something behind the packets".to_owned()),
        Err(e) => Err(e.to_string()),
    }
}

/// The way to the successor.
pub(super) struct Relay {
    head: Head,
    packets: mpsc::Sender<Bytes>,
    /// Over when the successor takes no more.
    end: BoxFuture<'static, ()>,
}

impl Relay {
    /// Opens the way to a member that will have a gateway in an epoch. When this returns, that member has answered.
    ///
    /// # Errors
    /// Why packets cannot go there.
    pub(super) async fn open(
        membership: &Membership,
        to: &str,
        gateway: GatewayId,
        epoch: u32,
    ) -> Result<Self, String> {
        let head = Head { gateway, epoch };
        let (packets, receiver) = mpsc::channel(PORTIONS);
        let opened = membership
            .cluster
            .relay(to, encode(&head)?, receiver, ANSWER);
        let end = opened.await.map_err(|e| e.to_string())?;
        Ok(Self { head, packets, end })
    }

    /// Sends what is held back, until told to stop; then the rest. Whatever does not get there is counted.
    pub(super) async fn run(
        mut self,
        plane: Arc<dyn DataPlane>,
        hold: Arc<Hold>,
        stop: CancellationToken,
    ) {
        let mut relayed = 0;
        let mut goes_on = true;
        while goes_on {
            let packets = tokio::select! {
                () = stop.cancelled() => break,
                () = &mut self.end => { goes_on = false; break }
                packets = hold.next(PORTION) => packets,
            };
            goes_on = self.send(&*plane, &packets, &mut relayed).await;
        }
        while goes_on {
            let packets = hold.take(PORTION);
            if packets.is_empty() {
                break;
            }
            goes_on = self.send(&*plane, &packets, &mut relayed).await;
        }
        hold.close();
        let Head { gateway, epoch } = self.head;
        drop(self.packets);
        if !goes_on || timeout(LAST, self.end).await.is_err() {
            warn!(
                event = "relay-failed",
                gateway = gateway.0,
                epoch,
                "the successor of gateway {} did not take all packets that came here",
                gateway.0
            );
        }
        info!(
            event = "relayed",
            gateway = gateway.0,
            epoch,
            packets = relayed,
            "relayed {relayed} packets of gateway {} to its successor",
            gateway.0
        );
    }

    /// Sends some packets; false if they do not get there.
    async fn send(
        &mut self,
        plane: &dyn DataPlane,
        packets: &[Packet],
        relayed: &mut usize,
    ) -> bool {
        let sent = match write(packets) {
            Ok(bytes) => tokio::select! {
                () = &mut self.end => false,
                sent = self.packets.send(bytes) => sent.is_ok(),
            },
            Err(_) => false,
        };
        if sent {
            *relayed += packets.len();
        } else {
            plane.lost_in_handover(packets.len());
        }
        sent
    }
}

/// Takes packets of gateways that were handed over to this process from now on.
pub(super) fn answer(node: &Arc<Node>, membership: &Membership) {
    // The cluster outlives the node: it must not keep it alive.
    let node = Arc::downgrade(node);
    let handler =
        move |from: String, head: Bytes, packets| take(node.clone(), &from, &head, packets);
    membership.cluster.on_relay(Arc::new(handler));
}

fn take(
    node: Weak<Node>,
    from: &str,
    head: &[u8],
    mut packets: BoxStream<'static, Bytes>,
) -> Result<BoxFuture<'static, ()>, String> {
    let head: Head = decode(head)?;
    let Head { gateway, epoch } = head;
    {
        let node = node.upgrade().ok_or("the member is stopping")?;
        if node.handovers.is_past(gateway, epoch) || node.failed.is_cancelled() {
            return Err(format!("epoch {epoch} of gateway {} is over", gateway.0));
        }
    }
    let from = from.to_owned();
    let taken = async move {
        while let Some(bytes) = packets.next().await {
            let packets = match read(&bytes) {
                Ok(packets) => packets,
                Err(e) => {
                    return warn!(
                        event = "relay-failed",
                        gateway = gateway.0,
                        epoch,
                        "{from:?} relays what cannot be understood: {e}"
                    );
                }
            };
            if !deliver(&node, head, packets).await {
                return;
            }
        }
    };
    Ok(taken.boxed())
}

/// Brings packets to where they wait or go through; false if that cannot be.
async fn deliver(node: &Weak<Node>, head: Head, mut packets: Vec<Packet>) -> bool {
    let until = Instant::now() + PATIENCE;
    loop {
        let Some(node) = node.upgrade() else {
            return false;
        };
        let mut changed = node.handovers.changed();
        let feed = |packets| node.plane.feed(packets);
        let relayed = node
            .handovers
            .relayed(head.gateway, head.epoch, packets, feed);
        match relayed {
            Relayed::Taken => return true,
            Relayed::Late(late) => {
                node.plane.lost_in_handover(late.len());
                return false;
            }
            Relayed::Early(early) => packets = early,
        }
        if !matches!(timeout_at(until, changed.changed()).await, Ok(Ok(()))) {
            node.plane.lost_in_handover(packets.len());
            return false;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_are_read_as_they_were_written() {
        let datagram = |kind| {
            Packet::Outer(Datagram {
                kind,
                local: "192.0.2.2:4500".parse().unwrap(),
                remote: "[2001:db8::1]:0".parse().unwrap(),
                traffic_class: 0xb9,
                bytes: (0..=255).collect(),
            })
        };
        let packets = [
            Packet::Clear(vec![0x45; 1400]),
            datagram(DatagramKind::Ike),
            datagram(DatagramKind::EspInUdp),
            datagram(DatagramKind::Esp),
            Packet::Clear(Vec::new()),
        ];
        let bytes = write(&packets).unwrap();
        assert_eq!(read(&bytes).unwrap(), packets);
        for len in 0..bytes.len() {
            assert!(read(&bytes[..len]).is_err(), "{len}");
        }
        assert!(read(&[&bytes[..], &[0]].concat()).is_err());
    }
}
