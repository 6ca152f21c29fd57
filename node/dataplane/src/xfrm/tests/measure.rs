//! What a takeover costs in the kernel, and what it would cost if standby members had the states already. `cluster-tests/measure-states` runs it.

use super::*;
use crate::{
    ChildSa, Cipher, Encapsulation, Encryption, Gate, HeaderPolicy, Mark, Marks, Mode, Offload,
    Outer, Selector,
    xfrm::{children::Children, leftovers::Leftovers},
};
use netlink_packet_core::NLM_F_REPLACE;
use netlink_packet_xfrm as xfrm;
use nix::sched::{CloneFlags, unshare};
use std::{
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
    time::{Duration, Instant},
};

const TAG: Tag = Tag {
    if_id: 0xe6,
    mark: Mark {
        value: 0xe6,
        mask: u32::MAX,
    },
};
const OURS: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);

fn child(n: u32, gate: &Arc<Gate>) -> ChildSa {
    let cipher = Cipher::from(Encryption::AesGcm16 { key_bits: 256 });
    let inner = Ipv4Addr::from_bits(0x0a80_0000 + n).into();
    let protected = [[10, 2, 0, 0].into(), [10, 2, 255, 255].into()];
    let peer = IpAddr::from(Ipv4Addr::from_bits(0xac10_0000 + n));
    ChildSa {
        spi_in: 0x1000_0000 + n,
        spi_out: 0x2000_0000 + n,
        cipher,
        key_in: Zeroizing::new(vec![1; cipher.material_len()]),
        key_out: Zeroizing::new(vec![2; cipher.material_len()]),
        esn: false,
        replay_window: 32,
        replay_edge: Some(1000),
        mode: Mode::Tunnel,
        outer: Outer {
            local: (OURS, 500).into(),
            remote: (peer, 500).into(),
            encapsulation: Encapsulation::None,
        },
        local_ts: vec![Selector::addresses(protected[0], protected[1])],
        remote_ts: vec![Selector::addresses(inner, inner)],
        outbound_active: true,
        gives_way: Duration::ZERO,
        reservation: 1 << 16..1 << 17,
        headers: HeaderPolicy::default(),
        marks: Marks::default(),
        offload: Offload::No,
        source_hint: None,
        gate: Arc::clone(gate),
    }
}

impl Kernel {
    /// Tells a state that is there of other numbers, as a standby's would have to be told at a takeover: one for each state, no key in it.
    fn renumber(&mut self, id: StateId, source: IpAddr, window: u32) -> io::Result<()> {
        let message = xfrm::NewAsyncEventMessage {
            id: xfrm::AsyncEventId {
                sa_id: id.request().user_sa_id,
                saddr: xfrm::Address::from_ip(&source),
                flags: 0,
                reqid: 0,
            },
            nlas: vec![
                XfrmAttrs::ReplayStateEsn(xfrm::ReplayEsn {
                    bmp_len: window.div_ceil(32),
                    replay_window: window,
                    bmp: vec![0; window.div_ceil(32) as usize],
                    seq: 2000,
                    oseq: 1 << 17,
                    ..xfrm::ReplayEsn::default()
                }),
                XfrmAttrs::LifetimeBytes(xfrm::Lifetime::default()),
            ],
        };
        self.requests
            .ask(XfrmMessage::NewAsyncEvent(message), NLM_F_REPLACE)
    }
}

/// What the kernel has in its own memory, in KiB.
fn slab() -> i64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap();
    let line = text.lines().find_map(|l| l.strip_prefix("Slab:")).unwrap();
    line.split_whitespace().next().unwrap().parse().unwrap()
}

fn say(what: &str, n: u32, since: Instant) {
    let took = since.elapsed();
    eprintln!("{n:>6} {what:<42} {took:>12.3?} {:>10.1?} each", took / n);
}

fn measure(n: u32) {
    let mut kernel = Kernel::open(TAG).unwrap();
    thresholds::choose(&mut kernel).unwrap();
    let mut children = Children::new(kernel, TAG, 4500, Leftovers::default());
    let gate = Arc::new(Gate::closed());
    let (before, start) = (slab(), Instant::now());
    for i in 0..n {
        children.install(child(i, &gate), Instant::now()).unwrap();
    }
    say("states and policies are made", n, start);
    eprintln!("{n:>6} take {} KiB of the kernel", slab() - before);
    gate.open_until(Duration::MAX);
    let start = Instant::now();
    children.look_at_gates(crate::boot_time());
    say("policies let them send, with the lease", n, start);
    let start = Instant::now();
    for i in 0..n {
        let sa = child(i, &gate);
        let (ours, peer) = (sa.outer.local.ip(), sa.outer.remote.ip());
        let kernel = &mut children.kernel;
        kernel.renumber(StateId::outbound(&sa), ours, 1).unwrap();
        kernel.renumber(StateId::inbound(&sa), peer, 32).unwrap();
    }
    say("(states that were there get other numbers)", n, start);
    let start = Instant::now();
    children.hold(&[OURS.into()]);
    say("states end, for a handover", n, start);
    children.clear().unwrap();
}

#[test]
#[ignore = "measures, and needs a kernel with ESP: cluster-tests/measure-states runs it"]
fn takeover() {
    let sizes = std::env::var("EVERGATE_STATES").unwrap_or_else(|_| "100".into());
    let measured = std::thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace");
        for size in sizes.split_whitespace() {
            measure(size.parse().expect("a number"));
        }
    });
    measured.join().expect("it measures");
}
