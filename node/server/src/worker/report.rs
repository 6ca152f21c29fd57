//! Events of SAs as log lines: one each, with fields.

use crate::{counters::IkeDrop, shared::Shared};
use evergate_ike::{
    record::{CloseReason, Record},
    sa::Event,
};
use std::time::Instant;
use tracing::{debug, info, warn};

/// Writes an event to the log.
pub(super) fn report(shared: &Shared, record: &Record, event: &Event) {
    let (sa, connection, peer) = (record.id, record.connection.as_str(), record.path.remote);
    match event {
        Event::IkeEstablished {
            connection,
            remote_id,
        } => {
            info!(event = "ike-established", %sa, connection, %peer, %remote_id, "IKE SA established with {remote_id}");
        }
        Event::ChildEstablished {
            name,
            spi_in,
            spi_out,
            replaces,
        } => {
            let (spi_in, spi_out) = (format_args!("{spi_in:08x}"), format_args!("{spi_out:08x}"));
            match replaces {
                None => {
                    info!(event = "child-established", %sa, connection, %peer, child = name, spi_in, spi_out, "Child SA established")
                }
                Some(old) => {
                    let replaces = format_args!("{old:08x}");
                    info!(event = "child-rekeyed", %sa, connection, %peer, child = name, spi_in, spi_out, replaces, "Child SA rekeyed");
                }
            }
        }
        Event::ChildClosed {
            name,
            spi_in,
            reason,
        } => {
            let reason = reason_name(*reason);
            let spi_in = format_args!("{spi_in:08x}");
            info!(event = "child-closed", %sa, connection, %peer, child = name, spi_in, reason, "Child SA closed");
        }
        Event::IkeRekeyed { by } => {
            info!(event = "ike-rekeyed", %sa, connection, %peer, %by, "IKE SA rekeyed")
        }
        Event::Reauthenticating { by } => {
            info!(event = "ike-reauthenticating", %sa, connection, %peer, %by, "authenticating again")
        }
        Event::AskedToReauthenticate => {
            info!(event = "ike-reauthentication-asked", %sa, connection, %peer, "the peer, who began the IKE SA, is asked to authenticate again")
        }
        // Where something failed, a warning has said what.
        Event::IkeClosed { reason } => {
            let reason = reason_name(*reason);
            info!(event = "ike-closed", %sa, connection, %peer, reason, "IKE SA closed");
        }
        Event::Displaced => {
            info!(event = "ike-displaced", %sa, connection, %peer, "the peer has authenticated anew; this IKE SA goes")
        }
        Event::PeerMoved { to } => {
            info!(event = "peer-moved", %sa, connection, %peer, %to, "the peer's address changed")
        }
        Event::NextAddress { from, to, why } => {
            info!(event = "next-address", %sa, connection, %from, %to, "trying the peer at {to}: {why}")
        }
        Event::OverTcp { by } => {
            info!(event = "over-tcp", %sa, connection, %peer, %by, "the peer does not answer by UDP; trying TCP")
        }
        Event::Moved {
            local,
            remote,
            transport,
        } => {
            let tcp = transport.is_tcp();
            info!(event = "moved", %sa, connection, %local, %remote, tcp, "we use other addresses for this IKE SA")
        }
        Event::Ignored { what } => {
            shared.drops.count(IkeDrop::Ignored);
            if let Some(suppressed) = shared.stranger_lines.pass(Instant::now()) {
                debug!(event = "ignored", %sa, connection, %peer, suppressed, "ignored a message: {what}");
            }
        }
        Event::Failed { what } => warn!(event = "failed", %sa, connection, %peer, "{what}"),
    }
}

/// The name of a reason in logs.
pub(crate) fn reason_name(reason: CloseReason) -> &'static str {
    match reason {
        CloseReason::DeletedByPeer => "deleted-by-peer",
        CloseReason::DeletedByUs => "deleted-by-us",
        CloseReason::PeerSilent => "peer-silent",
        CloseReason::Rekeyed => "rekeyed",
        CloseReason::Displaced => "displaced",
        CloseReason::Reauthenticated => "reauthenticated",
        CloseReason::Expired => "expired",
        CloseReason::SetupFailed => "setup-failed",
    }
}
