use super::*;
use crate::{Cipher, Encryption, Gate, HeaderPolicy, Marks, Offload, Outer, Selector};
use std::{sync::Arc, time::Duration};

const OURS: Mark = Mark {
    value: 0xe6,
    mask: 0xff,
};
const TAG: Tag = Tag {
    if_id: 0xe6,
    mark: OURS,
};

fn child(encapsulation: Encapsulation) -> ChildSa {
    let cipher = Cipher::from(Encryption::AesGcm16 { key_bits: 256 });
    let any = Selector::addresses([10, 1, 0, 0].into(), [10, 1, 255, 255].into());
    ChildSa {
        spi_in: 0x1111,
        spi_out: 0x2222,
        cipher,
        key_in: Zeroizing::new(vec![1; cipher.material_len()]),
        key_out: Zeroizing::new(vec![2; cipher.material_len()]),
        esn: true,
        replay_window: 1000,
        replay_edge: None,
        mode: Mode::Tunnel,
        outer: Outer {
            local: "192.0.2.1:500".parse().unwrap(),
            remote: "192.0.2.2:4711".parse().unwrap(),
            encapsulation,
        },
        local_ts: vec![any],
        remote_ts: vec![any],
        outbound_active: true,
        gives_way: Duration::ZERO,
        reservation: 1..2,
        headers: HeaderPolicy::default(),
        marks: Marks::default(),
        offload: Offload::No,
        source_hint: None,
        gate: Arc::new(Gate::default()),
    }
}

fn described(sa: &ChildSa) -> Description<'_> {
    Description {
        sa,
        reqid: 7,
        tag: TAG,
        nat_port: 4500,
    }
}

fn replay_of(message: &state::ModifyMessage) -> &xfrm::ReplayEsn {
    let found = message.nlas.iter().find_map(|a| match a {
        XfrmAttrs::ReplayStateEsn(r) => Some(r),
        _ => None,
    });
    found.expect("it has a replay state")
}

fn ports_of(message: &state::ModifyMessage) -> Option<(u16, u16)> {
    message.nlas.iter().find_map(|a| match a {
        XfrmAttrs::EncapsulationTemplate(e) => Some((e.encap_sport, e.encap_dport)),
        _ => None,
    })
}

#[test]
fn a_sending_state_begins_behind_the_number_before_and_has_hard_limits() {
    let sa = child(Encapsulation::None);
    let limits = Limits {
        before: (5 << 32) + 9,
        soft: 10,
        hard: 20,
    };
    let message = described(&sa).outbound(limits).unwrap();
    let info = &message.user_sa_info;
    assert_eq!((info.id.spi, info.reqid), (0x2222, 7));
    assert_eq!(info.lifetime_cfg.soft_packet_limit, 10);
    assert_eq!(info.lifetime_cfg.hard_packet_limit, 20);
    assert_eq!(info.flags & xfrm::XFRM_STATE_ESN, xfrm::XFRM_STATE_ESN);
    assert_eq!(
        (replay_of(&message).oseq_hi, replay_of(&message).oseq),
        (5, 9)
    );
    assert!(message.nlas.contains(&XfrmAttrs::IfId(0xe6)));
    assert!(message.nlas.contains(&XfrmAttrs::MarkVal(0xe6)));
    assert_eq!(ports_of(&message), None);
    assert_eq!(algorithms::material(&message.nlas), *sa.key_out);
}

#[test]
fn a_receiving_state_refuses_all_up_to_the_edge() {
    let sa = child(Encapsulation::None);
    let message = described(&sa).inbound((1 << 32) + 77).unwrap();
    let replay = replay_of(&message);
    assert_eq!((replay.seq_hi, replay.seq), (1, 77));
    assert_eq!((replay.replay_window, replay.bmp_len), (1000, 32));
    assert_eq!(replay.bmp, [u32::MAX; 32]);
    assert_eq!(algorithms::material(&message.nlas), *sa.key_in);
    let fresh = described(&sa).inbound(0).unwrap();
    assert_eq!(replay_of(&fresh).bmp, [0; 32]);
    let huge = ChildSa {
        replay_window: 100_000,
        ..sa
    };
    let message = described(&huge).inbound(0).unwrap();
    assert_eq!(replay_of(&message).replay_window, MAX_WINDOW);
    assert_eq!(replay_of(&message).bmp.len(), 128);
}

#[test]
fn in_udp_we_speak_from_the_nat_port() {
    let sa = child(Encapsulation::Udp);
    let limits = Limits {
        before: 0,
        soft: 1,
        hard: 1,
    };
    let out = described(&sa).outbound(limits).unwrap();
    assert_eq!(ports_of(&out), Some((4500, 4711)));
    let inward = described(&sa).inbound(0).unwrap();
    assert_eq!(ports_of(&inward), Some((4711, 4500)));
}

#[test]
fn dscp_is_copied_unless_it_is_not_to_be() {
    let mut sa = child(Encapsulation::None);
    let limits = Limits {
        before: 0,
        soft: 1,
        hard: 1,
    };
    let dont = XfrmAttrs::ExtraFlags(xfrm::XFRM_SA_XFLAG_DONT_ENCAP_DSCP);
    assert!(
        !described(&sa)
            .outbound(limits)
            .unwrap()
            .nlas
            .contains(&dont)
    );
    sa.headers.dscp_out = false;
    assert!(
        described(&sa)
            .outbound(limits)
            .unwrap()
            .nlas
            .contains(&dont)
    );
}

#[test]
fn what_the_kernel_tells_has_its_keys_apart() {
    let sa = child(Encapsulation::None);
    let mut message = described(&sa).inbound(41).unwrap();
    message.user_sa_info.stats.replay = 2;
    message.user_sa_info.stats.replay_window = 3;
    let told = Told::of(&message.user_sa_info, &mut message.nlas);
    assert_eq!((told.edge, told.if_id, told.replayed), (41, 0xe6, 5));
    assert_eq!(*told.key, *sa.key_in);
    assert!(algorithms::material(&message.nlas).is_empty(), "wiped");
}

const LIMITS: Limits = Limits {
    before: 0,
    soft: 1,
    hard: 1,
};

#[test]
fn what_headers_are_to_have_alike_is_what_the_kernel_is_told() {
    let mut sa = child(Encapsulation::None);
    let flags = |sa: &ChildSa| {
        let told = [
            described(sa).inbound(0).unwrap(),
            described(sa).outbound(LIMITS).unwrap(),
        ];
        let headers =
            xfrm::XFRM_STATE_NOECN | xfrm::XFRM_STATE_DECAP_DSCP | xfrm::XFRM_STATE_NOPMTUDISC;
        told.map(|m| m.user_sa_info.flags & headers)
    };
    assert_eq!(flags(&sa), [0, 0]);
    sa.headers.dscp_in = true;
    assert_eq!(flags(&sa), [xfrm::XFRM_STATE_DECAP_DSCP, 0]);
    (sa.headers.dscp_in, sa.headers.df) = (false, false);
    assert_eq!(flags(&sa), [0, xfrm::XFRM_STATE_NOPMTUDISC]);
    (sa.headers.df, sa.headers.ecn) = (true, false);
    assert_eq!(flags(&sa), [xfrm::XFRM_STATE_NOECN; 2]);
}

#[test]
fn outer_packets_keep_the_mark_by_which_routes_know_them() {
    let mut sa = child(Encapsulation::None);
    let set = |message: state::ModifyMessage| {
        let value = message.nlas.iter().find_map(|a| match a {
            XfrmAttrs::MarkVal(value) => Some(*value),
            _ => None,
        });
        let mask = message.nlas.iter().find_map(|a| match a {
            XfrmAttrs::MarkMask(mask) => Some(*mask),
            _ => None,
        });
        value.zip(mask)
    };
    let out = |sa: &ChildSa| set(described(sa).outbound(LIMITS).unwrap());
    let inward = |sa: &ChildSa| set(described(sa).inbound(0).unwrap());
    assert_eq!((out(&sa), inward(&sa)), (Some((0xe6, u32::MAX)), None));
    let mark = |value, mask| Mark { value, mask };
    sa.marks.set_outbound = mark(0x3000, 0xf000);
    sa.marks.set_inbound = mark(0x500, 0xf00);
    assert_eq!(out(&sa), Some((0x30e6, 0xf0ff)));
    assert_eq!(inward(&sa), Some((0x500, 0xf00)));
    assert!(sa.marks.within(Some(OURS)).is_ok());
    sa.marks.set_outbound = mark(1, 0xf001);
    assert!(sa.marks.within(Some(OURS)).is_err());
    assert!(sa.marks.within(None).is_err());
}
