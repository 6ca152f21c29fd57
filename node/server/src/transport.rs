//! What the data plane calls transports, and what records call them.

use evergate_dataplane::{DataPlane, Encapsulation, TcpEnd, Transport};
use evergate_ike::record::{self, Path, Phase, Record};

fn end_of_plane(end: record::TcpEnd) -> TcpEnd {
    match end {
        record::TcpEnd::Originator => TcpEnd::Originator,
        record::TcpEnd::Responder => TcpEnd::Responder,
    }
}

/// As the plane has it.
pub(crate) fn of_plane(transport: record::Transport) -> Transport {
    match transport {
        record::Transport::Udp => Transport::Udp,
        record::Transport::Tcp(end) => Transport::Tcp(end_of_plane(end)),
    }
}

/// As records have it.
pub(crate) fn of_record(transport: Transport) -> record::Transport {
    match transport {
        Transport::Udp => record::Transport::Udp,
        Transport::Tcp(TcpEnd::Originator) => record::Transport::Tcp(record::TcpEnd::Originator),
        Transport::Tcp(TcpEnd::Responder) => record::Transport::Tcp(record::TcpEnd::Responder),
    }
}

/// What is around the ESP packets of an SA.
pub(crate) fn encapsulation(path: &Path) -> Encapsulation {
    match path.transport {
        record::Transport::Tcp(end) => Encapsulation::Tcp(end_of_plane(end)),
        record::Transport::Udp if path.encapsulated() => Encapsulation::Udp,
        record::Transport::Udp => Encapsulation::None,
    }
}

/// Lets an IKE SA have the TCP connection that its record names, or none. One that a peer has not authenticated yet has no claim on its connection, and so neither
/// has a stranger.
pub(crate) fn claim(plane: &dyn DataPlane, record: &Record) {
    let Path { local, remote, .. } = record.path;
    match (record.path.transport, &record.phase) {
        (_, Phase::Closed(_)) | (record::Transport::Udp, _) => plane.disclaim(record.id.0),
        (record::Transport::Tcp(record::TcpEnd::Responder), Phase::HalfOpen(_)) => {}
        (record::Transport::Tcp(end), _) => {
            plane.claim(record.id.0, local, remote, end_of_plane(end))
        }
    }
}
