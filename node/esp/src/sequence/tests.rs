use super::*;
use std::{collections::HashSet, sync::atomic::AtomicBool, thread};

fn drain(allocator: &Allocator) -> Vec<u64> {
    std::iter::from_fn(|| allocator.take().ok())
        .map(|number| number.get())
        .collect()
}

#[test]
fn nothing_without_a_range() {
    let allocator = Allocator::new(false);
    assert_eq!(allocator.take(), Err(Exhausted));
    assert_eq!(allocator.remaining(), 0);
    assert_eq!(allocator.next(), 1);
}

#[test]
fn ranges_are_used_in_order_with_jumps() {
    let allocator = Allocator::new(false);
    allocator.extend(1..4).unwrap();
    assert_eq!(allocator.take().unwrap().get(), 1);
    allocator.extend(4..6).unwrap();
    allocator.extend(100..102).unwrap();
    allocator.extend(102..103).unwrap();
    assert_eq!(allocator.remaining(), 7);
    assert_eq!(drain(&allocator), [2, 3, 4, 5, 100, 101, 102]);
    assert_eq!(allocator.take(), Err(Exhausted));
    allocator.extend(103..104).unwrap();
    assert_eq!(allocator.next(), 103);
    assert_eq!(drain(&allocator), [103]);
}

#[test]
fn several_at_a_time_stay_within_their_range() {
    let allocator = Allocator::new(false);
    allocator.extend(1..4).unwrap();
    allocator.extend(10..12).unwrap();
    let take = |most| -> Vec<u64> {
        let numbers = allocator.take_some(most).into_iter().flatten();
        numbers.map(|number| number.get()).collect()
    };
    assert_eq!(take(2), [1, 2]);
    assert_eq!(take(0), [3], "at least one");
    assert_eq!(take(u64::MAX), [10, 11]);
    assert!(take(1).is_empty());
    allocator.extend(12..20).unwrap();
    assert_eq!(allocator.take_some(5).unwrap().len(), 5);
    assert_eq!(
        allocator.take().unwrap().get(),
        17,
        "what was taken is gone"
    );
}

#[test]
fn overlapping_and_senseless_ranges_are_refused() {
    let allocator = Allocator::new(false);
    assert_eq!(
        allocator.extend(0..5),
        Err(RangeError::Invalid { start: 0, end: 5 })
    );
    #[expect(clippy::reversed_empty_ranges, reason = "what is refused")]
    let reversed = 6..5;
    assert_eq!(
        allocator.extend(reversed),
        Err(RangeError::Invalid { start: 6, end: 5 })
    );
    allocator.extend(10..20).unwrap();
    for start in [1, 9, 10, 19] {
        assert_eq!(
            allocator.extend(start..30),
            Err(RangeError::Overlap { start, floor: 20 })
        );
    }
    assert_eq!(drain(&allocator), (10..20).collect::<Vec<_>>());
    assert_eq!(
        allocator.extend(19..30),
        Err(RangeError::Overlap {
            start: 19,
            floor: 20
        })
    );
}

#[test]
fn thirty_two_bits_end_the_space_without_esn() {
    let allocator = Allocator::new(false);
    assert_eq!(
        allocator.extend((1 << 32) - 1..(1 << 32) + 1),
        Err(RangeError::BeyondSpace)
    );
    allocator.extend((1 << 32) - 2..1 << 32).unwrap();
    assert_eq!(drain(&allocator), [0xffff_fffe, 0xffff_ffff]);
    assert_eq!(
        allocator.extend(1 << 32..(1 << 32) + 1),
        Err(RangeError::BeyondSpace)
    );

    let allocator = Allocator::new(true);
    allocator.extend((1 << 32) - 1..(1 << 32) + 1).unwrap();
    assert_eq!(drain(&allocator), [0xffff_ffff, 0x1_0000_0000]);
    allocator.extend(u64::MAX - 1..u64::MAX).unwrap();
    assert_eq!(drain(&allocator), [u64::MAX - 1]);
}

#[test]
fn revoked_numbers_never_come_back() {
    let allocator = Allocator::new(true);
    allocator.extend(1..10).unwrap();
    allocator.extend(20..30).unwrap();
    assert_eq!(allocator.take().unwrap().get(), 1);
    allocator.revoke();
    assert_eq!(allocator.take(), Err(Exhausted));
    assert_eq!(allocator.remaining(), 0);
    assert!(allocator.extend(2..40).is_err());
    allocator.extend(30..32).unwrap();
    assert_eq!(drain(&allocator), [30, 31]);
}

#[test]
fn waiting_ranges_are_bounded() {
    let allocator = Allocator::new(true);
    for n in 1..=MAX_WAITING as u64 {
        allocator.extend(n * 10..n * 10 + 1).unwrap();
    }
    assert_eq!(allocator.extend(10_000..10_001), Err(RangeError::TooMany));
    assert_eq!(allocator.take().unwrap().get(), 10);
    allocator.extend(10_000..10_001).unwrap();
}

/// Several threads take while one extends, always with a jump: no number comes twice, and none from outside the
/// ranges, however the change from one range to the next falls.
#[test]
fn no_number_twice_among_threads() {
    const RANGES: u64 = 30_000;
    let allocator = Allocator::new(true);
    let done = AtomicBool::new(false);
    let taken: Vec<u64> = thread::scope(|scope| {
        let take_until_done = |most: u64| {
            let mut taken = Vec::new();
            while !done.load(Ordering::Relaxed) {
                let numbers = allocator.take_some(most);
                taken.extend(numbers.into_iter().flatten().map(|number| number.get()));
            }
            taken
        };
        let takers: Vec<_> = (1..4)
            .map(|most| scope.spawn(move || take_until_done(most)))
            .collect();
        for n in 1..=RANGES {
            while allocator.extend(n * 10..n * 10 + n % 3).is_err() {
                thread::yield_now();
            }
        }
        while allocator.remaining() > 0 {
            thread::yield_now();
        }
        done.store(true, Ordering::Relaxed);
        takers
            .into_iter()
            .flat_map(|taker| taker.join().unwrap())
            .collect()
    });
    let distinct: HashSet<u64> = taken.iter().copied().collect();
    assert_eq!(distinct.len(), taken.len());
    assert!(taken.iter().all(|number| number % 10 < number / 10 % 3));
    assert_eq!(taken.len() as u64, (1..=RANGES).map(|n| n % 3).sum::<u64>());
}
