//! Addresses and routes of this host: when they change, IKE SAs may have to go other ways.

use crate::{node::Node, worker::Message};
use evergate_dataplane::{NetworkWatch, host_addresses};
use std::{io, sync::Arc, thread, time::Duration};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

/// What changes at about the same time is looked at once.
const SETTLE: Duration = Duration::from_millis(100);

/// How soon the thread that waits for the kernel notices that the member stops.
const LOOK_UP: Duration = Duration::from_millis(500);

/// Watches until told to stop.
pub(crate) async fn watch(node: Arc<Node>, tun: String, stop: CancellationToken) {
    let (tell, mut changes) = mpsc::channel(1);
    if let Err(e) = spawn(&tun, tell, stop.clone()) {
        warn!(
            event = "network-unwatched",
            "changes of addresses and routes are not noticed: {e}"
        );
        return;
    }
    loop {
        let changed = tokio::select! {
            () = stop.cancelled() => return,
            () = node.failed.cancelled() => return,
            changed = changes.recv() => changed,
        };
        match changed {
            Some(()) => look(&node, &tun).await,
            None => return,
        }
    }
}

/// Starts the thread that waits for the kernel. It ends with the member, or when nobody listens any more.
fn spawn(tun: &str, tell: mpsc::Sender<()>, stop: CancellationToken) -> io::Result<()> {
    let watch = NetworkWatch::open(tun)?;
    let wait = move || {
        while !stop.is_cancelled() && !tell.is_closed() {
            match watch.wait(LOOK_UP) {
                Ok(false) => {}
                Ok(true) => {
                    thread::sleep(SETTLE);
                    // One that was not looked at yet is as good.
                    let _ = tell.try_send(());
                }
                Err(e) => {
                    warn!(
                        event = "network-unwatched",
                        "changes of addresses and routes are not noticed any more: {e}"
                    );
                    return;
                }
            }
        }
    };
    thread::Builder::new()
        .name("evergate-net".to_owned())
        .spawn(wait)
        .map(drop)
}

async fn look(node: &Node, tun: &str) {
    let addresses = host_addresses(tun);
    debug!(
        event = "network-changed",
        ?addresses,
        "addresses or routes of this host changed"
    );
    node.addresses.store(Arc::new(addresses));
    for service in node.services() {
        for worker in service.workers.get().into_iter().flatten() {
            let _ = worker.send(Message::NetworkChanged).await;
        }
    }
}
