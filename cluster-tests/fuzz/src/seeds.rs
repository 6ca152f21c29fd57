//! Real inputs, to begin with: what two ends say to each other in every setup, the documents of the manual, a chain of certificates.

mod chain;

use crate::sa::{Pair, SETUPS, document, op, policies};
use evergate_ike::{
    crypto::open_content,
    record::{GatewayId, Phase, Record, Role},
    sa::{Command, IkeSa},
    wire::Message,
};
use evergate_state::{Command as Change, Entry, State};
use std::{fs, io, path::Path, sync::Arc, time::Duration};

/// Writes all seeds below a directory.
///
/// # Errors
/// If they cannot be written.
pub fn write(root: &Path) -> io::Result<()> {
    let (messages, contents, records) = conversations();
    put(root, "message", messages)?;
    put(root, "payloads", contents)?;
    put(root, "certificates", chain::write(&root.join("trust"))?)?;
    put(root, "configuration", documents(root)?)?;
    put(root, "sa", scripts())?;
    put(root, "esp", packets())?;
    put(root, "replicated", replicated(records))
}

fn put(root: &Path, target: &str, inputs: impl IntoIterator<Item = Vec<u8>>) -> io::Result<()> {
    let directory = root.join("../../target/fuzz/work/seeds").join(target);
    fs::create_dir_all(&directory)?;
    for (number, input) in inputs.into_iter().enumerate() {
        fs::write(directory.join(format!("{number:04}")), input)?;
    }
    Ok(())
}

/// What the ends say in every setup: messages, what they protect, and the records at the end.
fn conversations() -> (Vec<Vec<u8>>, Vec<Vec<u8>>, Vec<Record>) {
    let (mut messages, mut contents, mut records) = (Vec::new(), Vec::new(), Vec::new());
    for policies in policies() {
        let mut pair = Pair::new(policies);
        let mut talk = |pair: &mut Pair, work: &dyn Fn(&mut Pair)| {
            let first = pair.heard.len();
            work(pair);
            // Before the keys change.
            while let Some(packet) = pair.wire.pop_front() {
                contents.extend(content(pair, &packet.bytes));
                pair.deliver(&packet);
            }
            messages.extend_from_slice(&pair.heard[first..]);
            records.extend(
                pair.a
                    .sas
                    .values()
                    .chain(pair.b.sas.values())
                    .map(|sa| sa.record().clone()),
            );
        };
        talk(&mut pair, &|pair| pair.initiate(false, 0));
        talk(&mut pair, &|pair| pair.pass(Duration::from_secs(40), true));
        for b in [true, false] {
            talk(&mut pair, &|pair| {
                pair.command(b, Command::CreateChild("other".to_owned()))
            });
            talk(&mut pair, &|pair| {
                let child = pair.sa_of(b).map(|sa| sa.record().children()[0].spi_in);
                pair.command(b, Command::RekeyChild(child.unwrap_or_default()));
            });
            talk(&mut pair, &|pair| pair.command(b, Command::RekeyIke));
        }
        talk(&mut pair, &|pair| {
            let now = pair.now;
            pair.b.take_over(now);
            pair.pass(Duration::from_secs(60), false);
        });
        talk(&mut pair, &|pair| pair.command(true, Command::Delete));
    }
    (messages, contents, records)
}

/// What a message protects, as an input of `payloads`.
fn content(pair: &Pair, bytes: &[u8]) -> Option<Vec<u8>> {
    let message = Message::parse(bytes).ok()?;
    let protected = message.protected?;
    let all = pair
        .a
        .sas
        .values()
        .chain(pair.b.sas.values())
        .map(IkeSa::record);
    let opened = all.filter_map(|record| {
        let (suite, keys) = match &record.phase {
            Phase::HalfOpen(h) => (h.negotiated.suite, &h.negotiated.keys),
            Phase::Intermediate(i) => (i.negotiated.suite, &i.negotiated.keys),
            Phase::AuthSent(a) => (a.negotiated.suite, &a.negotiated.keys),
            Phase::Established(e) => (e.suite, &e.keys),
            _ => return None,
        };
        let from_initiator = record.role == Role::Responder;
        let key = if from_initiator { &keys.ei } else { &keys.er };
        let opened = open_content(suite.cipher(), key, &protected).ok();
        opened.filter(|_| message.header.from_initiator == from_initiator)
    });
    let content = opened.into_iter().next()?;
    let exchange = match message.header.exchange.0 {
        35 => 1,
        36 => 2,
        37 => 3,
        43 => 4,
        _ => 5,
    };
    let response = if message.header.is_response { 0x80 } else { 0 };
    // Any state: the fuzzer tries others.
    let state = u8::try_from(bytes.len() % 251).unwrap_or_default();
    Some(
        [
            &[state, exchange, response, protected.first.0],
            &content[..],
        ]
        .concat(),
    )
}

/// The documents of the manual, and those of the setups.
fn documents(root: &Path) -> io::Result<Vec<Vec<u8>>> {
    let manual = fs::read_to_string(root.join("../../docs/configuration.md"))?;
    let blocks = manual
        .split("```toml\n")
        .skip(1)
        .filter_map(|rest| rest.split_once("```"));
    // Their files are those that the target makes.
    let names = [
        ("company-ca.pem", "ca.pem"),
        ("gw.pem", "own.pem"),
        ("gw.key", "own.key"),
        (".psk", ""),
        ("branch\"", "psk\""),
    ];
    let renamed = blocks.map(|(block, _)| {
        let mut text = block.to_owned();
        for (from, to) in names {
            text = text.replace(from, to);
        }
        text.into_bytes()
    });
    let setups = SETUPS.iter().map(|setup| document(*setup, 1).into_bytes());
    Ok(renamed.chain(setups).collect())
}

/// Sequences of events.
fn scripts() -> Vec<Vec<u8>> {
    let mut all = Vec::new();
    for setup in 0..u8::try_from(SETUPS.len()).unwrap_or_default() {
        // 126 is a multiple of the number of setups.
        let connected = 0x80 + (setup + 4) % 6;
        let hour = [op::PASS, 0xff, 0xff];
        all.push([&[setup, op::INITIATE, 0, 0, op::SETTLE], &hour[..]].concat());
        for b in [0, 1] {
            for what in (0..9).chain([u8::MAX]) {
                let command = [connected, op::COMMAND, b, what, 0];
                all.push([&command[..], &[op::SETTLE], &hour].concat());
                for event in [op::DROP, op::DUPLICATE, op::DELIVER] {
                    all.push(
                        [
                            &command[..],
                            &[event, 0, op::TAKE_OVER, 1 - b, op::SETTLE, op::TAKE_OVER, b],
                            &hour,
                        ]
                        .concat(),
                    );
                }
                for committed in [0, 1] {
                    all.push(
                        [
                            &command[..],
                            &[
                                op::CRASH,
                                b,
                                committed,
                                op::CRASH,
                                1 - b,
                                committed,
                                op::SETTLE,
                            ],
                            &hour,
                        ]
                        .concat(),
                    );
                    all.push(
                        [
                            &command[..],
                            &[op::COMMAND, 1 - b, what, 0, op::CRASH, b, committed],
                            &hour,
                        ]
                        .concat(),
                    );
                }
                all.push(
                    [
                        &command[..],
                        &[
                            op::MUTATE,
                            0,
                            40,
                            0,
                            1,
                            op::REFLECT,
                            0,
                            op::TRUNCATE,
                            0,
                            60,
                            0,
                            op::FORGE,
                            0,
                            4,
                            1,
                            2,
                            3,
                            4,
                        ],
                    ]
                    .concat(),
                );
            }
            for (what, which) in [
                (op::ROAM, 1),
                (op::ROAM, 5),
                (op::ROAM, 8),
                (op::NAT, 7),
                (op::ESP_FROM, 7),
            ] {
                all.push(
                    [
                        &[
                            connected,
                            what,
                            b,
                            which,
                            op::SETTLE,
                            op::WAIT,
                            0xff,
                            0x1f,
                            what,
                            b,
                            0,
                        ],
                        &hour[..],
                    ]
                    .concat(),
                );
            }
        }
    }
    all
}

/// IP packets: UDP, TCP with MSS, ICMP, a fragment; and IPv6 with extension headers.
fn packets() -> Vec<Vec<u8>> {
    let v4 = |protocol: u8, rest: &[u8]| {
        let len = u8::try_from(20 + rest.len()).unwrap_or(u8::MAX);
        let head = [
            0x45, 0, 0, len, 0, 1, 0, 0, 64, protocol, 0, 0, 10, 1, 0, 1, 10, 2, 0, 1,
        ];
        [&head[..], rest].concat()
    };
    let v6 = |next: u8, rest: &[u8]| {
        let len = u8::try_from(rest.len()).unwrap_or(u8::MAX);
        let address = |last| [0x20, 1, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, last];
        [
            &[0x60, 0, 0, 0, 0, len, next, 64][..],
            &address(1),
            &address(2),
            rest,
        ]
        .concat()
    };
    let udp = [0x13, 0x88, 0, 53, 0, 12, 0, 0, 1, 2, 3, 4];
    let syn = [
        0, 80, 4, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0x60, 2, 0xff, 0xff, 0, 0, 0, 0, 2, 4, 5, 0xb4,
    ];
    let echo = [8, 0, 0, 0, 0, 1, 0, 1];
    let fragmented = [&[17, 0, 0, 1, 0, 0, 0, 9][..], &udp].concat();
    let options = [&[44, 0, 1, 4, 0, 0, 0, 0][..], &fragmented].concat();
    let inner = [
        v4(17, &udp),
        v4(6, &syn),
        v4(1, &echo),
        v6(17, &udp),
        v6(6, &syn),
        v6(44, &fragmented),
        v6(60, &options),
        [&[0; 4][..], &udp].concat(),
    ];
    let choices = (0..10).flat_map(|choice| {
        inner
            .clone()
            .map(|packet| [&[choice], &packet[..]].concat())
    });
    choices.collect()
}

/// Records, an entry of the log with each of them, and the state that comes of it.
fn replicated(records: Vec<Record>) -> Vec<Vec<u8>> {
    let bytes = |entry: &Entry| postcard::to_stdvec(entry).expect("plain values");
    let mut all: Vec<Vec<u8>> = Vec::new();
    let (member, gateway) = ("m1".to_owned(), GatewayId(0));
    let begin = Entry {
        at: records[0].created,
        commands: vec![
            Change::RegisterMember {
                member: member.clone(),
                incarnation: 1,
            },
            Change::AssignGateway {
                gateway,
                member,
                incarnation: 1,
                expected_epoch: 0,
            },
            Change::SetPolicy {
                expected: 0,
                policy: Arc::new(policies()[5][1].clone()),
            },
        ],
    };
    all.push(bytes(&begin));
    for record in records.iter().step_by(5) {
        let mut record = record.clone();
        record.revision = 1;
        let put = Entry {
            at: record.created,
            commands: vec![Change::PutSas {
                epoch: 1,
                records: vec![Arc::new(record.clone())],
            }],
        };
        let mut state = State::new();
        state.apply(&begin);
        state.apply(&put);
        all.push(postcard::to_stdvec(&record).expect("plain values"));
        all.push(bytes(&put));
        all.push(state.to_snapshot());
    }
    all.sort_by_key(Vec::len);
    all.dedup();
    all
}
