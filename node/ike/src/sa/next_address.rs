//! An initiator that tries several addresses of its peer, one after the other (RFC 7296 §2.1, RFC 4555 §3.1).

use super::{Event, Failure, init_client::make_request, tcp, turn::Turn};
use crate::record::Phase;
use std::net::SocketAddr;

/// An address that does not answer so many sendings is left for the next; the last one is asked as often as any request.
pub(super) const SENDINGS: u32 = 3;

impl Turn<'_, '_> {
    /// Goes to the next address, if nothing has been agreed on yet and there is one: with a new first message, since it depends on the addresses.
    pub(super) fn try_next_address(&mut self, failed: Failure) -> Result<(), Failure> {
        let policy = self.env.policy;
        let config = policy.connection(&self.record.connection);
        let (Some(config), Phase::InitSent(init)) = (config, &mut self.record.phase) else {
            return Err(failed);
        };
        if init.others.is_empty() {
            return self.fall_back_to_tcp(failed);
        }
        let (local, remote) = init.others.remove(0);
        init.cookie = None;
        init.restarts = 0;
        let path = &mut self.record.path;
        let from = path.remote.ip();
        if failed == Failure::Silent {
            init.silent.push((path.local.ip(), from));
        }
        if path.transport.is_tcp() {
            (path.local, path.remote) = tcp::ends(config, local, remote, self.env.rng);
        } else {
            path.local.set_ip(local);
            path.remote = SocketAddr::new(remote, config.remote_port);
        }
        make_request(&mut self.record, config, self.env.rng);
        self.commit();
        self.repeat_from_now();
        self.report(Event::NextAddress {
            from,
            to: remote,
            why: failed,
        });
        if let Some(pending) = self.record.outbound.get(0) {
            let datagrams = pending.datagrams.clone();
            self.send(&datagrams);
        }
        Ok(())
    }
}
