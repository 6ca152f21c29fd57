use super::*;
use proptest::prelude::*;
use std::collections::HashSet;

#[test]
fn sizes_are_bounded() {
    for (asked, got) in [
        (0, 64),
        (64, 64),
        (65, 128),
        (1024, 1024),
        (4096, 4096),
        (100_000, 4096),
    ] {
        assert_eq!(ReplayWindow::new(asked).size(), got);
    }
}

#[test]
fn zero_is_refused_and_one_is_not() {
    let window = ReplayWindow::new(64);
    assert_eq!(window.update(0), Err(Replayed::Zero));
    assert_eq!(window.update(1), Ok(()));
    assert_eq!(window.update(1), Err(Replayed::Duplicate));
}

#[test]
fn the_left_edge_is_exact() {
    let window = ReplayWindow::new(1024);
    window.update(5000).unwrap();
    assert_eq!(window.check(5000 - 1024), Err(Replayed::TooOld));
    assert_eq!(window.check(5000 - 1023), Ok(()));
    window.update(5000 - 1023).unwrap();
    assert_eq!(window.check(5000 - 1023), Err(Replayed::Duplicate));
}

#[test]
fn resuming_refuses_what_is_known_and_accepts_what_follows() {
    let window = ReplayWindow::new(128);
    window.update(10).unwrap();
    window.resume_from(1000);
    assert_eq!(window.right_edge(), 1000);
    assert!((0..=1000).all(|seq| window.check(seq).is_err()));
    window.update(1003).unwrap();
    assert_eq!(window.check(1001), Ok(()));
    assert_eq!(window.check(1000), Err(Replayed::Duplicate));
    window.resume_from(1002);
    assert_eq!(window.right_edge(), 1003);
    assert!((0..=1003).all(|seq| window.check(seq).is_err()));
    assert_eq!(window.check(1004), Ok(()));
}

#[test]
fn resuming_far_away_is_no_different() {
    for edge in [1 << 31, 1 << 36, 1 << 37, (1 << 40) + 77, u64::MAX - 200] {
        let window = ReplayWindow::new(64);
        window.update(3).unwrap();
        window.resume_from(edge);
        for seq in edge + 1..edge + 100 {
            assert_eq!(window.update(seq), Ok(()), "{seq}");
            assert_eq!(window.update(seq), Err(Replayed::Duplicate), "{seq}");
        }
    }
}

/// Each of several threads tries every number, roughly in order and with leaps: of all tries for one number one is accepted at most, and most
/// numbers are by somebody.
#[test]
fn no_number_twice_among_threads() {
    const NUMBERS: u64 = 200_000;
    let window = ReplayWindow::new(64);
    let accepted: Vec<u64> = std::thread::scope(|scope| {
        let try_all = |shift: u64| {
            let numbers = (1..NUMBERS).map(move |n| n ^ shift);
            let taken = numbers.filter(|seq| window.update(*seq).is_ok());
            taken.collect::<Vec<_>>()
        };
        let threads: Vec<_> = [0, 5, 31, 32]
            .map(|shift| scope.spawn(move || try_all(shift)))
            .into();
        let taken = threads.into_iter().flat_map(|t| t.join().unwrap());
        taken.collect()
    });
    let distinct: HashSet<u64> = accepted.iter().copied().collect();
    assert_eq!(distinct.len(), accepted.len());
    assert!(distinct.len() as u64 > NUMBERS / 2, "{}", distinct.len());
}

#[test]
fn esn_inference_in_one_subspace() {
    let window = ReplayWindow::new(64);
    window.update(0x5_0000_1000).unwrap();
    assert_eq!(window.infer(0x1000), Ok(0x5_0000_1000));
    assert_eq!(window.infer(0x1001), Ok(0x5_0000_1001));
    assert_eq!(window.infer(0x1000 - 63), Ok(0x5_0000_1000 - 63));
    assert_eq!(window.infer(0x1000 - 64), Ok(0x6_0000_1000 - 64));
    assert_eq!(window.infer(0xffff_ffff), Ok(0x5_ffff_ffff));
}

#[test]
fn esn_inference_across_subspaces() {
    let window = ReplayWindow::new(64);
    window.update(0x5_0000_0010).unwrap();
    assert_eq!(window.infer(0x10), Ok(0x5_0000_0010));
    assert_eq!(window.infer(0), Ok(0x5_0000_0000));
    assert_eq!(window.infer(0xffff_ffff), Ok(0x4_ffff_ffff));
    assert_eq!(window.infer(0x10u32.wrapping_sub(63)), Ok(0x4_ffff_ffd1));
    assert_eq!(window.infer(0x10u32.wrapping_sub(64)), Ok(0x5_ffff_ffd0));
    // Before the beginning there is nothing.
    let window = ReplayWindow::new(64);
    assert_eq!(window.infer(0xffff_ffff), Err(Replayed::TooOld));
    assert_eq!(window.infer(1), Ok(1));
    // And behind the end neither.
    let window = ReplayWindow::new(64);
    window.update(u64::MAX).unwrap();
    assert_eq!(window.infer(0), Err(Replayed::TooOld));
}

/// Remembers everything.
struct Model {
    seen: HashSet<u64>,
    edge: u64,
    floor: u64,
    size: u64,
}

impl Model {
    fn accept(&mut self, seq: u64) -> bool {
        let fresh = seq > self.floor && seq + self.size > self.edge && self.seen.insert(seq);
        if fresh {
            self.edge = self.edge.max(seq);
        }
        fresh
    }
}

#[derive(Clone, Debug)]
enum Op {
    Near(i64),
    Jump(u64),
    Resume(i64),
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        20 => (-300i64..40).prop_map(Op::Near),
        1 => (0u64..1 << 33).prop_map(Op::Jump),
        1 => (-200i64..200).prop_map(Op::Resume),
    ]
}

proptest! {
    #[test]
    fn behaves_like_a_set(
        start in 0u64..1 << 33,
        size in prop_oneof![Just(64usize), Just(128), Just(192)],
        ops in proptest::collection::vec(op(), 1..400),
    ) {
        let window = ReplayWindow::new(size);
        window.resume_from(start);
        let mut model = Model { seen: HashSet::new(), edge: start, floor: start, size: size as u64 };
        for op in ops {
            let seq = match op {
                Op::Near(delta) => model.edge.saturating_add_signed(delta),
                Op::Jump(delta) => model.edge + delta,
                Op::Resume(delta) => {
                    let edge = model.edge.saturating_add_signed(delta);
                    window.resume_from(edge);
                    model.floor = model.floor.max(edge);
                    model.edge = model.edge.max(edge);
                    continue;
                }
            };
            let checked = window.check(seq).is_ok();
            prop_assert_eq!(window.update(seq).is_ok(), checked);
            prop_assert_eq!(checked, model.accept(seq));
            prop_assert_eq!(window.right_edge(), model.edge);
        }
    }

    /// What the sender means is what the receiver infers, as long as they are less than 2^32 - size apart.
    #[test]
    fn esn_is_inferred_as_meant(edge in 2000u64..1 << 40, ahead in -1023i64..4_294_966_000) {
        let window = ReplayWindow::new(1024);
        window.update(edge).unwrap();
        let seq = edge.saturating_add_signed(ahead);
        let low = u32::try_from(seq & 0xffff_ffff).unwrap();
        prop_assert_eq!(window.infer(low), Ok(seq));
    }
}
