use super::*;
use std::{collections::HashSet, thread};

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

/// Several threads take while one extends, with jumps: no number comes twice, and none from outside the ranges.
#[test]
fn no_number_twice_among_threads() {
    const RANGES: u64 = 400;
    let allocator = Allocator::new(true);
    let taken: Vec<u64> = thread::scope(|scope| {
        let takers: Vec<_> = (0..4)
            .map(|_| {
                scope.spawn(|| {
                    let mut taken = Vec::new();
                    while allocator.next() < RANGES * 100 {
                        taken.extend(allocator.take().map(|number| number.get()));
                    }
                    taken
                })
            })
            .collect();
        for n in 1..=RANGES {
            let start = n * 100;
            let len = [7, 100, 1][usize::try_from(n % 3).unwrap()];
            while allocator.extend(start..start + len).is_err() {
                thread::yield_now();
            }
        }
        takers
            .into_iter()
            .flat_map(|taker| taker.join().unwrap())
            .collect()
    });
    let distinct: HashSet<u64> = taken.iter().copied().collect();
    assert_eq!(distinct.len(), taken.len());
    assert!(
        taken
            .iter()
            .all(|n| n % 100 < [7, 100, 1][usize::try_from(n / 100 % 3).unwrap()])
    );
    let all_but_last = (1..RANGES)
        .map(|n| [7, 100, 1][usize::try_from(n % 3).unwrap()])
        .sum::<usize>();
    assert!(taken.len() >= all_but_last);
}
