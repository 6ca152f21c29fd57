//! The load against a responder on loopback: the core's own, on a thread.

use super::handshake::{Options, measure};
use crate::clock::{Clock, SystemEntropy};
use clap::Parser;
use evergate_ike::{
    config::{
        ChildConfig, Childless, Connection, EnableTcp, FRAGMENT_SIZE, Fragmentation, HeaderCopy,
        HwOffload, IkeVolume, Marks, Mode, Policy, SharedSecret, StartAction, Unique, Volume,
    },
    env::Entropy,
    proposal::{default_esp, default_ike},
    record::{GatewayId, SaId, Transport},
    sa::{
        Change, CookieSecrets, Effect, Env, IkeSa, InitAnswer, Input, IvCounter, SpiSource,
        answer_init,
    },
    secret::Secret,
    wire::Header,
};
use serde_json::Value;
use std::{
    collections::HashMap,
    net::{SocketAddr, UdpSocket},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

const MARKER: [u8; 4] = [0; 4];

#[derive(Debug, Parser)]
#[command(args_override_self = true)]
struct Line {
    #[command(flatten)]
    options: Options,
}

struct Spis(u32);

impl SpiSource for Spis {
    fn ike(&mut self, rng: &mut dyn Entropy) -> SaId {
        SaId(rng.next_u64() | 1)
    }
    fn child(&mut self, _: &mut dyn Entropy) -> u32 {
        self.0 += 1;
        self.0
    }
}

/// What is special about a responder.
#[derive(Clone, Copy, Default)]
struct Quirks {
    encap: bool,
    cookies: bool,
    /// The first of each so many datagrams is not heard; zero hears everything.
    deaf: usize,
    /// Its Child SAs have another cipher than the clients offer.
    other_esp: bool,
}

struct Responder {
    ike: UdpSocket,
    nat: UdpSocket,
    quirks: Quirks,
    policy: Policy,
    ivs: IvCounter,
    spis: Spis,
    clock: Clock,
    sas: HashMap<SaId, IkeSa>,
}

impl Responder {
    fn new(quirks: Quirks) -> Self {
        let bind = || {
            let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
            socket
                .set_read_timeout(Some(Duration::from_millis(2)))
                .unwrap();
            socket
        };
        let child = ChildConfig {
            name: "net".into(),
            local_ts: vec!["10.1.0.0/16".parse().unwrap()],
            remote_ts: vec!["10.9.0.0/16".parse().unwrap()],
            mode: Mode::Tunnel,
            esp_proposals: match quirks.other_esp {
                true => vec!["chacha20poly1305".parse().unwrap()],
                false => default_esp(),
            },
            rekey_time: Duration::ZERO,
            life_time: Duration::ZERO,
            rand_time: Duration::ZERO,
            bytes: Volume::default(),
            packets: Volume::default(),
            start_action: StartAction::None,
            close_action: StartAction::None,
            dpd_action: StartAction::None,
            replay_window: 1024,
            headers: HeaderCopy::default(),
            marks: Marks::default(),
            hw_offload: HwOffload::No,
            updown: None,
        };
        let connection = Connection {
            name: "all".into(),
            local_addrs: vec![],
            remote_addrs: vec![],
            remote_names: vec![],
            remote_port: 500,
            proposals: default_ike(),
            local_id: Some("b.test".parse().unwrap()),
            remote_id: "*.test".parse().unwrap(),
            auth: evergate_ike::config::Authentication::default(),
            encap: quirks.encap,
            vips: vec![],
            pools: vec![],
            rekey_time: Duration::ZERO,
            reauth_time: Duration::ZERO,
            over_time: Duration::ZERO,
            rand_time: Duration::ZERO,
            bytes: IkeVolume::default(),
            packets: IkeVolume::default(),
            dpd_delay: Duration::ZERO,
            message_id_sync: false,
            window_size: 1,
            keyingtries: 0,
            enable_tcp: EnableTcp::No,
            tcp_remote_port: 4500,
            mobike: false,
            return_routability: true,
            childless: Childless::Allow,
            unique: Unique::Never,
            fragmentation: Fragmentation::Yes,
            fragment_size: FRAGMENT_SIZE,
            children: vec![child],
        };
        Self {
            ike: bind(),
            nat: bind(),
            quirks,
            policy: Policy {
                connections: vec![connection],
                secrets: vec![SharedSecret {
                    name: "s".into(),
                    ids: vec![],
                    secret: Secret::new(b"known to both".to_vec()),
                }],
                ..Policy::default()
            },
            ivs: IvCounter::new(1),
            spis: Spis(1000),
            clock: Clock::new(),
            sas: HashMap::new(),
        }
    }

    fn ports(&self) -> [String; 2] {
        [&self.ike, &self.nat].map(|s| s.local_addr().unwrap().port().to_string())
    }

    /// Serves until told to stop; returns how many SAs there are then.
    fn serve(mut self, stop: &AtomicBool) -> usize {
        let mut buffer = [0; 4096];
        let mut count = 0_usize;
        while !stop.load(Ordering::Relaxed) {
            for nat in [false, true] {
                let socket = if nat { &self.nat } else { &self.ike };
                let local = socket.local_addr().unwrap();
                let Ok((n, from)) = socket.recv_from(&mut buffer) else {
                    continue;
                };
                count += 1;
                if self.quirks.deaf > 0 && count % self.quirks.deaf == 1 {
                    continue;
                }
                let bytes = match nat {
                    true => buffer[..n].strip_prefix(&MARKER).expect("marked").to_vec(),
                    false => buffer[..n].to_vec(),
                };
                for answer in self.answer(&bytes, (local, from)) {
                    let socket = if nat { &self.nat } else { &self.ike };
                    let marked = [if nat { &MARKER[..] } else { &[] }, &answer].concat();
                    socket.send_to(&marked, from).unwrap();
                }
            }
        }
        self.sas.len()
    }

    /// What a first message was answered that comes once more: the answer was late.
    fn answered_before(&self, header: &Header) -> Option<Vec<Vec<u8>>> {
        if header.responder_spi != 0 {
            return None;
        }
        let mut known = self.sas.values().map(IkeSa::record);
        let record = known.find(|r| r.remote_spi == header.initiator_spi)?;
        record.inbound.response(0).cloned()
    }

    fn answer(&mut self, bytes: &[u8], path: (SocketAddr, SocketAddr)) -> Vec<Vec<u8>> {
        let header = Header::parse(bytes).unwrap();
        if let Some(answer) = self.answered_before(&header) {
            return answer;
        }
        let now = self.clock.now();
        let mut env = Env {
            now,
            ivs: &self.ivs,
            policy: &self.policy,
            rng: &mut SystemEntropy,
            spis: &mut self.spis,
            nat_port: self.nat.local_addr().unwrap().port(),
            addresses: &[],
        };
        if header.responder_spi == 0 {
            let secrets = CookieSecrets {
                current: Secret::new(vec![1; 32]),
                previous: Secret::new(vec![2; 32]),
            };
            let cookies = self.quirks.cookies;
            return match answer_init(
                bytes,
                (path.0, path.1, Transport::Udp),
                GatewayId(0),
                cookies,
                Duration::from_secs(30),
                &secrets,
                &mut env,
            ) {
                InitAnswer::Stateless { datagram, .. } => vec![datagram],
                InitAnswer::HalfOpen(record) => {
                    let response = record.inbound.response(0).cloned();
                    self.sas.insert(record.id, IkeSa::created(*record, now));
                    response.unwrap_or_default()
                }
                InitAnswer::Silent(_) => vec![],
            };
        }
        let Some(sa) = self.sas.get_mut(&SaId(header.responder_spi)) else {
            return vec![];
        };
        let (local, remote) = path;
        let input = Input::Datagram {
            bytes,
            local,
            remote,
            transport: Transport::Udp,
        };
        let step = sa.step(input, &mut env);
        match step.change {
            Change::None => {}
            Change::Lazy(record) => sa.adopt(*record),
            Change::Barrier(mut records) => sa.adopt(records.remove(0)),
        }
        if sa.record().children().is_empty() && sa.record().inbound.next > 2 {
            self.sas.remove(&SaId(header.responder_spi)); // deleted
        }
        let sent = |e| match e {
            Effect::Send { datagram, .. } => Some(datagram),
            _ => None,
        };
        step.effects.into_iter().filter_map(sent).collect()
    }
}

/// The report as JSON, and how many SAs the responder has in the end.
fn load(quirks: Quirks, more: &[&str]) -> (Value, usize) {
    let responder = Responder::new(quirks);
    let [port, nat_port] = responder.ports();
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let serving = scope.spawn(|| responder.serve(&stop));
        let basic = [
            "bench",
            "--against",
            "127.0.0.1",
            "--port",
            &port,
            "--nat-port",
            &nat_port,
            "--psk",
            "known to both",
            "--remote-id",
            "b.test",
            "--local-net",
            "10.9.0.0/16",
            "--remote-ts",
            "10.1.0.0/16",
            "--count",
            "20",
            "--concurrency",
            "6",
            "--timeout",
            "30",
        ];
        let report = Line::try_parse_from(basic.iter().chain(more))
            .map_err(anyhow::Error::from)
            .and_then(|line| measure(&line.options));
        stop.store(true, Ordering::Relaxed);
        let left = serving.join().unwrap();
        (serde_json::to_value(report.unwrap()).unwrap(), left)
    })
}

#[test]
fn everyone_connects_and_is_deleted_afterwards() {
    let (report, left) = load(Quirks::default(), &["--threads", "2", "--sockets", "2"]);
    assert_eq!(report["established"], 20, "{report}");
    assert_eq!(report["failed"], 0);
    assert_eq!(report["encapsulated"], 0);
    assert_eq!(report["deleted"], 20);
    assert_eq!(left, 0);
    assert!(report["handshakes_per_second"].as_f64().unwrap() > 0.0);
    assert!(report["latency_ms"]["p99"].as_f64() >= report["latency_ms"]["median"].as_f64());
    assert_eq!(report["responder"], Value::Null);
}

#[test]
fn with_a_nat_everything_after_the_first_exchange_goes_through_the_other_port() {
    let quirks = Quirks {
        encap: true,
        ..Quirks::default()
    };
    let pid = std::process::id().to_string();
    let (report, left) = load(quirks, &["--keep", "--responder-pid", &pid]);
    assert_eq!(report["established"], 20, "{report}");
    assert_eq!(report["encapsulated"], 20);
    assert_eq!((left, &report["deleted"]), (20, &Value::from(0)));
    assert!(report["responder"]["rss_kib_after"].as_u64().unwrap() > 0);
}

#[test]
fn cookies_are_returned_and_counted() {
    let quirks = Quirks {
        cookies: true,
        ..Quirks::default()
    };
    let (report, _) = load(quirks, &[]);
    assert_eq!(report["established"], 20, "{report}");
    assert!(report["restarts"].as_u64().unwrap() >= 20, "{report}");
}

#[test]
fn what_is_lost_is_sent_again_and_counted() {
    let quirks = Quirks {
        deaf: 20, // of the 40 requests of the handshakes, and their repetitions, a few
        ..Quirks::default()
    };
    let (report, _) = load(quirks, &["--keep"]);
    assert_eq!(report["established"], 20, "{report}");
    let again = report["retransmits"].as_u64().unwrap();
    assert!((2..40).contains(&again), "{report}");
}

#[test]
fn failures_are_told_apart() {
    let (report, _) = load(Quirks::default(), &["--psk", "something else"]);
    assert_eq!(report["failed"], 20, "{report}");
    assert_eq!(report["failures"]["refused:AUTHENTICATION_FAILED"], 20);
    let other_esp = Quirks {
        other_esp: true,
        ..Quirks::default()
    };
    let (report, _) = load(other_esp, &[]);
    assert_eq!(report["established"], 0, "{report}");
    assert_eq!(report["failures"]["refused:NO_PROPOSAL_CHOSEN"], 20);
}

#[test]
fn silence_ends_with_the_time() {
    // Sockets that nobody reads.
    let (ike, nat) = (
        UdpSocket::bind("127.0.0.1:0").unwrap(),
        UdpSocket::bind("127.0.0.1:0").unwrap(),
    );
    let port = |s: &UdpSocket| s.local_addr().unwrap().port().to_string();
    let line = Line::try_parse_from([
        "bench",
        "--against",
        "127.0.0.1",
        "--port",
        &port(&ike),
        "--nat-port",
        &port(&nat),
        "--psk",
        "x",
        "--count",
        "20",
        "--concurrency",
        "6",
        "--timeout",
        "5",
    ])
    .unwrap();
    let report = serde_json::to_value(measure(&line.options).unwrap()).unwrap();
    assert_eq!(report["established"], 0);
    assert_eq!(report["failures"]["timeout"], 6, "{report}");
    assert_eq!(report["not_started"], 14);
    // How often depends on the machine, but it is counted.
    let arrived = waiting(&ike) + waiting(&nat);
    assert!(arrived > 6, "{report}");
    assert_eq!(report["retransmits"], arrived - 6);
}

/// How many datagrams nobody has read.
fn waiting(socket: &UdpSocket) -> usize {
    socket.set_nonblocking(true).unwrap();
    std::iter::from_fn(|| socket.recv(&mut [0; 4096]).ok()).count()
}
