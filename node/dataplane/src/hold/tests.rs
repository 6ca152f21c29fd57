use super::*;

fn clear(size: usize) -> Packet {
    Packet::Clear(vec![0; size])
}

fn hold() -> (Arc<Traffic>, Arc<Room>, Hold) {
    let traffic = Arc::<Traffic>::default();
    let room = Room::new(Arc::clone(&traffic));
    let hold = Hold::new(Arc::clone(&room));
    (traffic, room, hold)
}

#[test]
fn packets_wait_in_their_order_and_are_taken_in_portions() {
    let (_, _, hold) = hold();
    for size in [10, 20, 30] {
        hold.push(clear(size));
    }
    assert_eq!(hold.take(5), [clear(10)], "one is taken in any case");
    assert_eq!(hold.take(50), [clear(20), clear(30)]);
    assert_eq!(hold.take(50), []);
}

#[test]
fn all_holds_of_a_plane_share_its_bounds() {
    let (traffic, room, one) = hold();
    let other = Hold::new(room);
    for _ in 0..MAX_HELD {
        one.push(clear(1));
    }
    other.push(clear(1));
    assert_eq!(traffic.drops().get(DropReason::HoldFull), 1);
    assert_eq!(one.take(1).len(), 1);
    other.push(clear(1));
    other.push(clear(1));
    assert_eq!(traffic.drops().get(DropReason::HoldFull), 2);
    drop(one);
    for _ in 0..3 {
        other.push(clear(MAX_HELD_BYTES / 2));
    }
    let drops = traffic.drops();
    assert_eq!(drops.get(DropReason::HoldFull), 4, "bytes are bounded too");
    assert_eq!(
        drops.get(DropReason::HandoverFailed),
        MAX_HELD as u64 - 1,
        "what nobody took was counted"
    );
}

#[test]
fn a_closed_hold_drops_and_counts() {
    let (traffic, room, hold) = hold();
    hold.push(clear(7));
    hold.close();
    hold.push(clear(7));
    assert_eq!(hold.take(usize::MAX), []);
    assert_eq!(traffic.drops().get(DropReason::HandoverFailed), 2);
    assert_eq!(room.packets.load(Ordering::Relaxed), 0);
    assert_eq!(room.bytes.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn whoever_waits_is_woken_by_the_next_packet() {
    let (_, _, hold) = hold();
    let (taken, ()) = tokio::join!(hold.next(100), async {
        tokio::task::yield_now().await;
        hold.push(clear(3));
    });
    assert_eq!(taken, [clear(3)]);
}

#[test]
fn an_inbox_is_readable_from_its_first_packet_until_it_is_calmed() {
    let room = Room::new(Arc::default());
    let inbox = Inbox::new(room).unwrap();
    for _ in 0..3 {
        inbox.push(clear(1));
    }
    let readable = || {
        let mut fds = [nix::poll::PollFd::new(
            inbox.as_fd(),
            nix::poll::PollFlags::POLLIN,
        )];
        nix::poll::poll(&mut fds, nix::poll::PollTimeout::ZERO).unwrap() == 1
    };
    assert!(readable());
    inbox.calm();
    assert!(!readable());
    let mut portions = Vec::new();
    inbox.empty(2, |packets| portions.push(packets.len()));
    assert_eq!(portions, [2, 1]);
    inbox.empty(2, |_| panic!("there is nothing"));
    inbox.push(clear(1));
    assert!(readable());
}

#[test]
fn a_hold_that_was_replaced_takes_nothing_away() {
    let (_, room, first) = hold();
    let (first, second) = (Arc::new(first), Arc::new(Hold::new(room)));
    let address: IpAddr = "192.0.2.2".parse().unwrap();
    let mut holds = Holds::default();
    holds.insert(&[address], &first);
    holds.insert(&[address], &second);
    holds.remove(&[address], &first);
    assert!(holds.of(address).is_some());
    holds.remove(&[address], &second);
    assert!(holds.of(address).is_none());
}

#[test]
fn debug_output_does_not_show_what_is_inside() {
    let datagram = Datagram {
        kind: DatagramKind::EspInUdp,
        local: "192.0.2.2:4500".parse().unwrap(),
        remote: "192.0.2.1:4500".parse().unwrap(),
        traffic_class: 0,
        bytes: vec![0x5a; 9],
    };
    assert_eq!(
        format!("{:?} {:?}", clear(4), Packet::Outer(datagram)),
        "Clear(4 bytes) EspInUdp(192.0.2.1:4500 to 192.0.2.2:4500, 9 bytes)"
    );
}
