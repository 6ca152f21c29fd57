//! Members as wholes, with real logs, over a wire in memory.

mod lab;

use crate::admin::operations::{initiate, rekey, terminate};
use evergate_ike::{
    record::{Phase, SaId},
    sa,
    wire::{ExchangeType, Header, Message, NotifyType, Payload},
};
use evergate_proto::admin::{
    InitiateRequest, RekeyRequest, TerminateRequest, rekey_request, terminate_request,
};
use lab::{A, B, Host, Net, config, limits, until};
use std::{
    collections::BTreeSet,
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::sync::oneshot;

async fn pair(more_a: &str, more_b: &str) -> (Arc<Net>, Host, Host) {
    let net = Arc::new(Net::default());
    let a = Host::start(&net, A, &config(A, B, more_a)).await;
    let b = Host::start(&net, B, &config(B, A, more_b)).await;
    (net, a, b)
}

fn child_of_c() -> InitiateRequest {
    InitiateRequest {
        connection: "c".into(),
        child: None,
    }
}

/// A pair with a Child SA that `a` initiated.
async fn tunnel() -> (Arc<Net>, Host, Host) {
    let (net, a, b) = pair("", "").await;
    initiate(a.shared.node(), child_of_c()).await.unwrap();
    agree(&a, &b).await;
    (net, a, b)
}

/// Both ends come to send on the same pair of SPIs, and on no other.
async fn agree(a: &Host, b: &Host) {
    until("both ends send on the same Child SA", || {
        let (of_a, of_b) = (a.sending(), b.sending());
        let turned: Vec<(u32, u32)> = of_b.iter().map(|(i, o)| (*o, *i)).collect();
        of_a.len() == 1 && of_a == turned && a.plane.children.lock().unwrap().len() == 1
    })
    .await;
}

async fn rekey_child(host: &Host, spi: u32) -> u32 {
    let target = Some(rekey_request::Target::Child(spi));
    u32::try_from(
        rekey(
            host.shared.node(),
            RekeyRequest {
                target,
                reauth: false,
            },
        )
        .await
        .unwrap()
        .spi,
    )
    .unwrap()
}

#[tokio::test]
async fn a_child_is_up_when_initiate_says_so() {
    let (_net, a, b) = pair("", "").await;
    let up = initiate(a.shared.node(), child_of_c()).await.unwrap();
    assert_eq!((a.only().0.0, a.only().1), (up.ike, up.child));
    agree(&a, &b).await;
    let (of_a, of_b) = (
        a.plane.children.lock().unwrap(),
        b.plane.children.lock().unwrap(),
    );
    let (of_a, of_b) = (of_a.values().next().unwrap(), of_b.values().next().unwrap());
    assert_eq!((&of_a.key_in, &of_a.key_out), (&of_b.key_out, &of_b.key_in));
}

#[tokio::test]
async fn a_second_child_uses_the_ike_sa_that_is_there() {
    let (_net, a, b) = tunnel().await;
    let (ike, first) = a.only();
    let up = initiate(a.shared.node(), child_of_c()).await.unwrap();
    assert_eq!(up.ike, ike.0);
    assert_ne!(up.child, first);
    until("the peer has both", || b.sending().len() == 2).await;
}

#[tokio::test]
async fn rekeys_from_either_side_leave_one_pair() {
    let (_net, a, b) = tunnel().await;
    for _ in 0..3 {
        let (_, old) = a.only();
        let new = rekey_child(&a, old).await;
        agree(&a, &b).await;
        assert_eq!(a.sending()[0].0, new);
        let target = Some(rekey_request::Target::Ike(b.only().0.0));
        let new = rekey(
            b.shared.node(),
            RekeyRequest {
                target,
                reauth: false,
            },
        )
        .await
        .unwrap()
        .spi;
        until("only the new IKE SA is left", || {
            b.established().len() == 1 && a.established().len() == 1
        })
        .await;
        assert_eq!(b.only().0.0, new);
        agree(&a, &b).await;
    }
}

/// An answer to a Delete waits for what is under way (RFC 7296 §1.4.1). It is not sent when nobody may ask for it any more (RFC 6311 §5.1).
#[tokio::test]
async fn an_answer_that_comes_too_late_is_known() {
    let (net, _a, b) = tunnel().await;
    let (id, _) = b.only();
    let answers = net.sent_by(B);
    let to = |exchange| {
        let is_meant = |m: &&Vec<u8>| Header::parse(m).unwrap().exchange == exchange;
        answers.iter().find(is_meant).unwrap()
    };
    let last = to(ExchangeType::IKE_AUTH);
    assert!(b.shared.still_answers(id, last));
    assert!(!b.shared.still_answers(id, to(ExchangeType::IKE_SA_INIT)));
    assert!(!b.shared.still_answers(SaId(id.0 ^ 1), last));
    let mut other = last.clone();
    *other.last_mut().unwrap() ^= 1;
    assert!(!b.shared.still_answers(id, &other));
    assert!(!b.shared.still_answers(id, &last[..5]));
}

/// Commit before reply: whatever tells the peer that state changed leaves after the change is in the log.
#[tokio::test]
async fn nothing_leaves_before_it_is_committed() {
    let (net, a, b) = pair("", "").await;
    // A slow machine sends again what is not answered in time: the same bytes.
    let seen = Arc::new(Mutex::new(BTreeSet::new()));
    for (address, host) in [(A, &a), (B, &b)] {
        let (replica, seen) = (host.shared.replica.clone(), Arc::clone(&seen));
        net.check(address, move |message| {
            let header = Header::parse(message).unwrap();
            let ours = match (header.from_initiator, header.responder_spi) {
                (true, _) => header.initiator_spi,
                (false, spi) => spi,
            };
            if header.exchange == ExchangeType::IKE_SA_INIT && header.is_response {
                return; // half-open SAs are replicated lazily
            }
            let known = replica.read(|s| {
                s.sa(sa_id(ours)).is_some_and(|r| match header.is_response {
                    true => r
                        .inbound
                        .answered
                        .iter()
                        .flat_map(|a| &a.response)
                        .any(|d| d == message),
                    false => r
                        .outbound
                        .pending
                        .iter()
                        .flat_map(|p| &p.datagrams)
                        .any(|d| d == message),
                })
            });
            assert!(known, "{header:?} left before its commit");
            seen.lock().unwrap().insert(message.to_vec());
        });
    }
    initiate(a.shared.node(), child_of_c()).await.unwrap();
    let (_, spi) = b.only();
    rekey_child(&b, spi).await;
    agree(&a, &b).await;
    let target = Some(terminate_request::Target::Connection("c".into()));
    assert_eq!(
        terminate(a.shared.node(), TerminateRequest { target })
            .await
            .unwrap()
            .count,
        1
    );
    until("nothing is installed", || {
        [&a, &b]
            .iter()
            .all(|h| h.plane.children.lock().unwrap().is_empty())
    })
    .await;
    // IKE_SA_INIT, IKE_AUTH and its response, a rekey and a delete with their responses, and the last delete with its own.
    assert_eq!(seen.lock().unwrap().len(), 1 + 2 + 4 + 2);
}

fn sa_id(spi: u64) -> SaId {
    SaId(spi)
}

#[tokio::test]
async fn a_killed_member_goes_on_with_the_same_sas_and_other_sequence_numbers() {
    let (net, a, b) = tunnel().await;
    let (before, old) = (b.only(), b.plane.reservations.lock().unwrap()[0].clone());
    let b = b.killed_and_started(&net).await;
    assert_eq!(b.only(), before);
    agree(&a, &b).await;
    let new = b.plane.reservations.lock().unwrap()[0].clone();
    assert_eq!(new.0, old.0);
    assert!(
        new.1.start >= old.1.end && !new.1.is_empty(),
        "{old:?} {new:?}"
    );
    // Not only the records are there: both ends can still talk, in both directions.
    let spi = rekey_child(&b, before.1).await;
    agree(&a, &b).await;
    assert_eq!(b.sending()[0].0, spi);
    let (_, spi) = a.only();
    rekey_child(&a, spi).await;
    agree(&a, &b).await;
}

#[tokio::test]
async fn virtual_addresses_are_leased_and_taken_again_after_a_restart() {
    let net = Arc::new(Net::default());
    let text = config(A, B, "vips = ['0.0.0.0']").replace(&format!("local_ts = ['{A}']"), "");
    let a = Host::start(&net, A, &text).await;
    let pool = "[pools.p]\naddrs = '10.9.0.1-10.9.0.1'\n";
    let text = config(B, A, "pools = ['p']").replace(&format!("remote_ts = ['{A}']"), "");
    let b = Host::start(&net, B, &(text + pool)).await;
    initiate(a.shared.node(), child_of_c()).await.unwrap();
    let ours = |host: &Host| -> Vec<String> {
        let addresses = host.plane.addresses.lock().unwrap();
        addresses.iter().map(ToString::to_string).collect()
    };
    assert_eq!(ours(&a), ["10.9.0.1"]);
    let a = a.killed_and_started(&net).await;
    assert_eq!(ours(&a), ["10.9.0.1"]);
    let target = Some(terminate_request::Target::Connection("c".into()));
    terminate(a.shared.node(), TerminateRequest { target })
        .await
        .unwrap();
    until("the address is free again", || {
        ours(&a).is_empty() && b.shared.read(|s| s.leases().count()) == 0
    })
    .await;
}

#[tokio::test]
async fn who_lost_the_gateway_sends_nothing_any_more() {
    let (net, a, b) = tunnel().await;
    let (_, spi) = b.only();
    // Somebody else takes the gateway.
    gateway_taken(&b).await;
    let before = net.sent_by(B).len();
    let target = Some(rekey_request::Target::Child(spi));
    assert!(
        rekey(
            b.shared.node(),
            RekeyRequest {
                target,
                reauth: false
            }
        )
        .await
        .is_err()
    );
    until("the member is passive", || b.shared.passive.is_cancelled()).await;
    until("its data plane is empty", || {
        b.plane.children.lock().unwrap().is_empty()
    })
    .await;
    // The peer's requests stay unanswered.
    let (reply, done) = oneshot::channel();
    let command = super::Message::Command {
        sa: a.only().0,
        command: sa::Command::RekeyIke,
        watcher: None,
        reply: Some(reply),
    };
    a.shared
        .worker(a.only().0)
        .unwrap()
        .send(command)
        .await
        .unwrap();
    assert!(done.await.unwrap());
    until("the peer asks", || {
        net.sent_by(A)
            .last()
            .is_some_and(|m| Header::parse(m).unwrap().exchange == ExchangeType::CREATE_CHILD_SA)
    })
    .await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(net.sent_by(B).len(), before);
}

async fn gateway_taken(host: &Host) {
    let taken = crate::gateway::take_all(&host.shared.replica, "other").await;
    taken.unwrap();
    let epoch = host.shared.read(|s| s.epoch(host.shared.gateway));
    assert_eq!(epoch, host.shared.epoch + 1);
}

#[tokio::test]
async fn a_member_whose_disk_fails_becomes_passive() {
    let (net, a, b) = tunnel().await;
    b.disk.set_full(true);
    let before = net.sent_by(B).len();
    let target = Some(rekey_request::Target::Child(a.only().1));
    let asked = tokio::time::timeout(
        Duration::from_millis(500),
        rekey(
            a.shared.node(),
            RekeyRequest {
                target,
                reauth: false,
            },
        ),
    )
    .await;
    assert!(asked.is_err(), "answered without a log: {asked:?}");
    until("the member is passive", || b.shared.passive.is_cancelled()).await;
    assert_eq!(net.sent_by(B).len(), before);
}

/// The first message of a member that is then left alone, and where it came from.
async fn first_message(net: &Arc<Net>, remote: &'static str) -> (SocketAddr, SocketAddr, Vec<u8>) {
    let text = config(A, B, "").replace(
        &format!("local_addrs = ['{A}']"),
        &format!("local_addrs = ['{remote}']"),
    );
    let host = Host::start(net, remote, &text).await;
    let (reply, done) = oneshot::channel();
    let message = super::Message::Initiate {
        connection: "c".into(),
        child: "x".into(),
        pairs: vec![(remote.parse().unwrap(), B.parse().unwrap())],
        watcher: None,
        reply,
    };
    crate::starter::worker_for(&host.shared, "c")
        .unwrap()
        .send(message)
        .await
        .unwrap();
    done.await.unwrap().unwrap();
    until("the first message is sent", || {
        !net.sent_by(remote).is_empty()
    })
    .await;
    // It would send it again.
    host.kill(net).await;
    let sent = net.sent.lock().unwrap();
    sent.iter()
        .find(|(from, ..)| from.ip().to_string() == remote)
        .unwrap()
        .clone()
}

#[tokio::test]
async fn a_repeated_first_message_gets_the_same_bytes_and_no_second_sa() {
    let net = Arc::new(Net::default());
    // The peer that asks is cut off: nobody is at its address when B answers.
    let (from, to, message) = first_message(&net, "192.0.2.77").await;
    let from = SocketAddr::new("192.0.2.78".parse().unwrap(), from.port());
    let b = Host::start(&net, B, &config(B, "0.0.0.0/0", "")).await;
    for n in 1..4 {
        net.send(from, to, &message);
        until("an answer", || net.sent_by(B).len() == n).await;
    }
    let answers = net.sent_by(B);
    assert!(answers.iter().all(|a| *a == answers[0]));
    until("the half-open SA is in the log", || {
        b.shared.read(|s| s.sas().len()) == 1
    })
    .await;
    let half_open = b
        .shared
        .read(|s| s.sas().all(|r| matches!(r.phase, Phase::HalfOpen(_))));
    assert!(half_open);
    // The same SPI with another content is not the same message.
    let mut other = message.clone();
    *other.last_mut().unwrap() ^= 1;
    net.send(from, to, &other);
    until("it is counted", || {
        b.shared.drops.nonzero().any(|d| d == ("late_init", 1))
    })
    .await;
    assert_eq!(net.sent_by(B).len(), 3);
}

#[tokio::test]
async fn cookies_are_demanded_under_load_and_sources_are_limited() {
    let net = Arc::new(Net::default());
    let (from, to, message) = first_message(&net, "192.0.2.77").await;
    let text = limits(3, 2) + &config(B, "0.0.0.0/0", "");
    let b = Host::start(&net, B, &text).await;
    let flood = |host: u8, spi: u8| {
        let mut message = message.clone();
        message[0] = host;
        message[1] = spi;
        net.send(
            SocketAddr::new([198, 51, 100, host].into(), from.port()),
            to,
            &message,
        );
    };
    flood(1, 1);
    until("an SA", || net.sent_by(B).len() == 1).await;
    flood(1, 2);
    until("another", || net.sent_by(B).len() == 2).await;
    flood(1, 3);
    until("too many of one source", || {
        b.shared
            .drops
            .nonzero()
            .any(|d| d == ("half_open_limit", 1))
    })
    .await;
    flood(2, 1);
    until("the last without cookie", || net.sent_by(B).len() == 3).await;
    flood(3, 1);
    until("a cookie", || net.sent_by(B).len() == 4).await;
    let answers = net.sent_by(B);
    let responder = |m: &[u8]| Header::parse(m).unwrap().responder_spi;
    assert!(answers[..3].iter().all(|m| responder(m) != 0));
    assert_eq!(responder(&answers[3]), 0);
    until("three half-open SAs", || {
        b.shared.read(|s| s.sas().len()) == 3
    })
    .await;
}

#[tokio::test]
async fn a_cookie_that_comes_back_is_accepted() {
    let net = Arc::new(Net::default());
    let a = Host::start(&net, A, &config(A, B, "")).await;
    let (from, to, message) = first_message(&net, "192.0.2.77").await;
    let b = Host::start(&net, B, &(limits(1, 0) + &config(B, "0.0.0.0/0", ""))).await;
    net.send(
        SocketAddr::new([198, 51, 100, 1].into(), from.port()),
        to,
        &message,
    );
    until("one half-open SA", || net.sent_by(B).len() == 1).await;
    initiate(a.shared.node(), child_of_c()).await.unwrap();
    agree(&a, &b).await;
    let sent = net.sent_by(A).into_iter();
    // On a slow machine one may be sent again as it is.
    let inits: BTreeSet<_> = sent
        .filter(|m| Header::parse(m).unwrap().exchange == ExchangeType::IKE_SA_INIT)
        .collect();
    assert_eq!(
        inits.len(),
        2,
        "the first message was not sent again with a cookie"
    );
}

#[tokio::test]
async fn strays_are_counted_and_answered_sparingly() {
    let (net, a, b) = tunnel().await;
    let before = net.sent_by(B).len();
    let (from, to) = (
        SocketAddr::new(A.parse().unwrap(), 500),
        SocketAddr::new(B.parse().unwrap(), 500),
    );
    let mut stray = net.sent_by(A).last().unwrap().clone();
    stray[8..16].copy_from_slice(&[9; 8]);
    for _ in 0..20 {
        net.send(from, to, &stray);
    }
    net.send(from, to, &stray[..27]);
    until("they are counted", || {
        let drops: Vec<_> = b.shared.drops.nonzero().collect();
        drops == [("malformed", 1), ("unknown_spi", 20)]
    })
    .await;
    let answers = net.sent_by(B)[before..].to_vec();
    assert!(
        (1..=10).contains(&answers.len()),
        "{} answers",
        answers.len()
    );
    let answer = Message::parse(&answers[0]).unwrap();
    let kinds = answer.payloads.iter().map(|p| match p {
        Payload::Notify(n) => Some(n.kind),
        _ => None,
    });
    assert!(kinds.eq([Some(NotifyType::INVALID_IKE_SPI)]));
    agree(&a, &b).await;
}

#[tokio::test]
async fn another_version_is_answered_with_ours() {
    let (net, _a, b) = tunnel().await;
    let (from, to) = (
        SocketAddr::new(A.parse().unwrap(), 500),
        SocketAddr::new(B.parse().unwrap(), 500),
    );
    let before = net.sent_by(B).len();
    let mut future = net.sent_by(A)[0].clone();
    future[17] = 0x30;
    for _ in 0..20 {
        net.send(from, to, &future);
    }
    until("it is counted", || {
        b.shared
            .drops
            .nonzero()
            .any(|(why, n)| why == "version" && n == 20)
    })
    .await;
    let answers = net.sent_by(B)[before..].to_vec();
    assert!(
        (1..=10).contains(&answers.len()),
        "{} answers",
        answers.len()
    );
    let header = Header::parse(&answers[0]).unwrap();
    assert!(header.is_response && header.initiator_spi.to_be_bytes() == future[..8]);
}

/// The peer may use the IKE SA of a rekey before we have its response (RFC 7296 §2.8).
#[tokio::test]
async fn a_request_that_overtakes_the_response_which_makes_its_sa_is_answered() {
    let (net, a, b) = tunnel().await;
    let (old, of_b) = (a.only().0, b.only().0);
    net.swap_next(B);
    let target = Some(rekey_request::Target::Ike(old.0));
    let reauth = false;
    let ours = rekey(a.shared.node(), RekeyRequest { target, reauth });
    let theirs = async {
        until("the peer has the new SA", || b.established()[0].id != of_b).await;
        rekey_child(&b, b.only().1).await
    };
    let (ours, _) = tokio::join!(ours, theirs);
    ours.unwrap();
    until("only the new IKE SA is left", || {
        b.established().len() == 1 && a.established().len() == 1
    })
    .await;
    agree(&a, &b).await;
    assert_eq!(a.shared.drops.nonzero().count(), 0);
}

#[tokio::test]
async fn what_should_be_started_is_started_again_when_it_is_down() {
    let net = Arc::new(Net::default());
    let text = config(A, B, "").replace(
        "[connections.c.children.x]",
        "[connections.c.children.x]\nstart_action = 'start'",
    );
    let a = Host::start(&net, A, &text).await;
    let b = Host::start(&net, B, &config(B, A, "")).await;
    until("it comes up", || !a.sending().is_empty()).await;
    let (first, _) = a.only();
    let target = Some(terminate_request::Target::Connection("c".into()));
    terminate(b.shared.node(), TerminateRequest { target })
        .await
        .unwrap();
    until("it comes up again", || {
        a.established().first().is_some_and(|r| r.id != first)
    })
    .await;
    agree(&a, &b).await;
}

#[tokio::test]
async fn failures_reach_who_asked() {
    let net = Arc::new(Net::default());
    let a = Host::start(&net, A, &config(A, B, "")).await;
    let wrong = config(B, A, "").replace("secret = 'secret'", "secret = 'other'");
    let _b = Host::start(&net, B, &wrong).await;
    let failed = initiate(a.shared.node(), child_of_c()).await.unwrap_err();
    assert_eq!(failed.message(), "the peer answered AUTHENTICATION_FAILED");
    let unknown = InitiateRequest {
        connection: "nope".into(),
        child: None,
    };
    assert_eq!(
        initiate(a.shared.node(), unknown).await.unwrap_err().code(),
        tonic::Code::NotFound
    );
}
