//! What operators ask of one member and another does.

use super::lab::{Lab, kill, leader, within};
use crate::{
    Replica,
    raft::{ClusterError, transport::Peers},
};
use evergate_proto::{
    admin::{RekeyRequest, RekeyResponse, rekey_request::Target},
    forward::{CallReply, CallRequest, Refusal, call_reply::Result as Answer, call_request::Call},
};
use futures::FutureExt;
use std::{sync::Arc, time::Duration};
use tonic::Code;

const DEADLINE: Duration = Duration::from_secs(20);

fn rekey(ike: u64) -> CallRequest {
    CallRequest {
        call: Some(Call::Rekey(RekeyRequest {
            target: Some(Target::Ike(ike)),
            reauth: false,
        })),
    }
}

/// Answers with the number that was asked for, or refuses in the name of who asked.
async fn answer(from: String, request: CallRequest) -> CallReply {
    let result = match request.call {
        Some(Call::Rekey(RekeyRequest {
            target: Some(Target::Ike(spi)),
            ..
        })) if spi != 0 => Answer::Rekey(RekeyResponse { spi }),
        _ => Answer::Refusal(Refusal {
            code: 5,
            message: from,
        }),
    };
    CallReply {
        result: Some(result),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_has_another_do_something_and_strangers_cannot() {
    let mut lab = Lab::new(3);
    let mut replicas = lab.start_all().await;
    leader(&replicas.iter().collect::<Vec<_>>()).await;
    let cluster = |r: &Replica| r.cluster().clone();
    let (a, c) = (cluster(&replicas[0]), cluster(&replicas[2]));

    // A connection is waited for no longer than a second, which is not much on a slow machine: then it is tried again.
    let starting = |e: &ClusterError| e.to_string().contains("is starting");
    within(async {
        while !starting(&a.forward("m2", rekey(7), DEADLINE).await.unwrap_err()) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    c.on_forward(Arc::new(|from, request| answer(from, request).boxed()));
    let reply = a.forward("m2", rekey(7), DEADLINE).await.unwrap();
    assert_eq!(reply.result, Some(Answer::Rekey(RekeyResponse { spi: 7 })));
    let reply = a.forward("m2", rekey(0), DEADLINE).await.unwrap();
    let Some(Answer::Refusal(refusal)) = reply.result else {
        panic!("{reply:?}");
    };
    assert_eq!((refusal.code, refusal.message.as_str()), (5, "m0"));

    let nobody = a.forward("m9", rekey(7), DEADLINE).await.unwrap_err();
    assert!(matches!(nobody, ClusterError::NoSuchMember(_)), "{nobody}");
    // Of our authority, but no member.
    let eve = Peers::over_tcp(lab.credentials("eve").tls("eve").unwrap());
    let refused = within(async {
        loop {
            let refused = eve.forward(&lab.members[2], rekey(7), DEADLINE).await;
            let refused = refused.unwrap_err().code();
            if !matches!(refused, Code::Unavailable | Code::DeadlineExceeded) {
                break refused;
            }
        }
    })
    .await;
    assert_eq!(refused, Code::PermissionDenied);

    drop(c);
    kill(replicas.remove(2)).await;
    let gone = within(a.forward("m2", rekey(7), DEADLINE)).await;
    assert!(matches!(gone, Err(ClusterError::Failed(_))), "{gone:?}");
}
