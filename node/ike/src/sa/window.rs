//! How many requests may be under way (RFC 7296 §2.3): what we let the peer have, and the peer us.

use super::{
    Failure,
    turn::{Turn, find_notify, notify},
};
use crate::{
    config::Connection,
    wire::{NotifyType, Payload},
};

/// Says how many requests the peer may have under way, unless it is the usual one.
pub(super) fn window_size(connection: &Connection) -> Option<Payload> {
    let size = u32::from(connection.window_size).to_be_bytes();
    (connection.window_size > 1).then(|| notify(NotifyType::SET_WINDOW_SIZE, size.to_vec()))
}

impl Turn<'_, '_> {
    /// Follows what the peer says of its window, if it says something.
    pub(super) fn note_window_size(&mut self, payloads: &[Payload]) {
        let Some(said) = find_notify(payloads, NotifyType::SET_WINDOW_SIZE) else {
            return;
        };
        match <[u8; 4]>::try_from(&said.data[..]).map(u32::from_be_bytes) {
            Ok(size) if size > 0 => self.record.outbound.widen(size),
            _ => self.fail(Failure::Invalid("a SET_WINDOW_SIZE that is no number")),
        }
    }

    /// What an exchange about a Child SA says of our window, if the peer may have more under way than it knows: an IKE SA that came of a rekey begins with one
    /// request. The caller commits.
    pub(super) fn widen_window(&mut self) -> Option<Payload> {
        let connection = self.env.policy.connection(&self.record.connection)?;
        if connection.window_size <= self.record.inbound.size {
            return None;
        }
        self.record.inbound.size = connection.window_size;
        window_size(connection)
    }
}
