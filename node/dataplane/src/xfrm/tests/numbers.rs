use super::*;

fn numbers(range: Range<u64>) -> Numbers {
    Numbers::new(range, false, Instant::now()).unwrap()
}

#[test]
fn a_state_has_exactly_the_numbers_of_its_range() {
    let numbers = numbers(65_537..131_073);
    let limits = numbers.limits().unwrap();
    assert_eq!((limits.before, limits.hard), (65_536, 65_536));
    assert_eq!(limits.soft, 32_768);
    assert_eq!(numbers.next(0), Some(65_537));
    assert_eq!(numbers.next(65_535), Some(131_072));
    assert_eq!((numbers.next(65_536), numbers.left(65_536)), (None, 0));
}

#[test]
fn number_zero_is_never_used() {
    assert_eq!(numbers(0..10).limits().unwrap().before, 0);
    assert_eq!(numbers(0..10).limits().unwrap().hard, 9);
    assert_eq!(numbers(0..0).limits(), None);
}

#[test]
fn what_follows_raises_the_limit_and_what_does_not_restarts() {
    let mut numbers = numbers(1..101);
    assert_eq!(numbers.extend(101..201, false), Ok(More::Raise));
    let limits = numbers.limits().unwrap();
    assert_eq!((limits.before, limits.hard), (0, 200));
    assert_eq!(limits.soft, 175, "a quarter of what came last is left");
    assert_eq!(numbers.extend(301..401, false), Ok(More::Restart));
    let limits = numbers.limits().unwrap();
    assert_eq!((limits.before, limits.hard), (300, 100));
}

#[test]
fn a_new_state_begins_behind_all_that_the_old_one_may_have_used() {
    let mut known = numbers(1..101);
    known.ended(Some(40));
    assert_eq!(known.limits().unwrap().before, 40);
    assert_eq!(known.limits().unwrap().hard, 60);
    let mut unknown = numbers(1..101);
    unknown.ended(None);
    assert_eq!(unknown.limits(), None);
    assert_eq!(unknown.extend(101..111, false), Ok(More::Restart));
    assert_eq!(unknown.limits().unwrap().before, 100);
    // A state that never sent says the number before its first.
    let mut fresh = numbers(65_537..65_600);
    fresh.ended(Some(65_536));
    assert_eq!(fresh.limits().unwrap().before, 65_536);
    // Whatever is said, nothing goes back.
    fresh.ended(Some(3));
    assert_eq!(fresh.limits().unwrap().before, 65_536);
}

#[test]
fn the_limit_leaves_time_at_the_peak_rate() {
    let start = Instant::now();
    let mut numbers = Numbers::new(1..65_537, false, start).unwrap();
    numbers.measure(20_000, start + Duration::from_secs(1));
    assert_eq!(numbers.peak(), 20_000);
    numbers.measure(20_100, start + Duration::from_secs(2));
    assert_eq!(numbers.peak(), 20_000, "the peak stays");
    numbers.extend(65_537..131_073, false).unwrap();
    let limits = numbers.limits().unwrap();
    assert_eq!(limits.hard - limits.soft, 40_000);
}

#[test]
fn impossible_ranges_change_nothing() {
    let mut numbers = numbers(1..101);
    let before = numbers.clone();
    for range in [50..150, 101..101, 1..2, 101..(1 << 32) + 1] {
        assert_eq!(numbers.extend(range, false), Err(Impossible));
    }
    assert_eq!(numbers, before);
    assert!(Numbers::new(1..(1 << 32) + 1, false, Instant::now()).is_err());
    assert!(Numbers::new(1..(1 << 32) + 1, true, Instant::now()).is_ok());
}

#[test]
fn a_revoked_one_has_no_numbers() {
    let mut numbers = numbers(1..101);
    numbers.revoke();
    assert_eq!(numbers.limits(), None);
}
