use super::*;
use std::net::IpAddr;

fn subjects(child: u32) -> Subjects {
    Subjects {
        children: HashSet::from([child]),
        ike: HashSet::from([7]),
    }
}

fn take(capture: &mut Capture) -> Option<Frame> {
    let frame = capture.frames.try_recv().ok()?;
    let len = frame.bytes.len();
    capture.tap.waiting_bytes.fetch_sub(len, Ordering::Relaxed);
    Some(frame)
}

fn ends() -> (SocketAddr, SocketAddr) {
    (
        "192.0.2.1:4500".parse().unwrap(),
        "192.0.2.2:1024".parse().unwrap(),
    )
}

#[test]
fn a_capture_has_the_packets_of_its_sas_and_ends_when_it_is_dropped() {
    let taps = Arc::new(Taps::default());
    assert!(taps.now().is_none());
    let mut capture = taps.begin(subjects(0x1000), 3).unwrap();
    let now = taps.now();
    now.clear(0x1001, true, b"other", None);
    now.clear(0x1000, true, b"packet", None);
    let frame = take(&mut capture).unwrap();
    assert_eq!((frame.side, frame.outbound), (Side::Clear, true));
    assert_eq!((&frame.bytes[..], frame.len), (&b"pac"[..], 6));
    assert!(take(&mut capture).is_none());
    capture.follow(subjects(0x1001));
    now.clear(0x1001, false, b"other", None);
    assert_eq!(take(&mut capture).unwrap().bytes, b"oth");
    drop(capture);
    assert!(taps.now().is_none());
}

#[test]
fn what_is_not_read_is_missing_and_counted() {
    let taps = Arc::new(Taps::default());
    let mut capture = taps.begin(subjects(1), 65_535).unwrap();
    let now = taps.now();
    for _ in 0..CAPTURE_QUEUE + 10 {
        now.clear(1, true, &[0; 100], None);
    }
    assert_eq!(capture.lost(), 10);
    while take(&mut capture).is_some() {}
    for _ in 0..CAPTURE_QUEUE_BYTES / 60_000 + 5 {
        now.clear(1, true, &[0; 60_000], None);
    }
    assert_eq!(capture.lost(), 15, "bytes are bounded, too");
    while take(&mut capture).is_some() {}
    now.clear(1, true, &[0; 100], None);
    assert!(take(&mut capture).is_some());
}

#[test]
fn there_are_so_many_captures_and_no_more() {
    let taps = Arc::new(Taps::default());
    let mut all: Vec<_> = (0..MAX_CAPTURES)
        .map(|_| taps.begin(subjects(1), 100).unwrap())
        .collect();
    let more = taps.begin(subjects(1), 100);
    assert!(matches!(more, Err(PlaneError::Limit(_))));
    all.pop();
    assert!(taps.begin(subjects(1), 100).is_ok());
}

#[test]
fn an_esp_packet_says_what_became_of_it() {
    let taps = Arc::new(Taps::default());
    let mut capture = taps.begin(subjects(5), 65_535).unwrap();
    let now = taps.now();
    assert!(now.before_opening(6, ends(), 0, None, b"esp").is_none());
    let closed = now.before_opening(5, ends(), 0x48, Some(Transport::Udp), b"esp!");
    closed
        .unwrap()
        .opened(now.as_ref(), Some(DropReason::Replay));
    let frame = take(&mut capture).unwrap();
    assert_eq!(frame.note, Some(Note::Dropped(DropReason::Replay)));
    assert_eq!(frame.bytes.len(), 20 + 8 + 4);
    assert_eq!(frame.bytes[1], 0x48);
    assert_eq!(frame.bytes[12..20], [192, 0, 2, 2, 192, 0, 2, 1]);
    assert_eq!(frame.bytes[20..24], [4, 0, 4500_u16.to_be_bytes()[0], 0x94]);
}

#[test]
fn ike_is_known_by_either_spi_and_has_its_marker_at_the_nat_port() {
    let taps = Arc::new(Taps::default());
    let mut capture = taps.begin(subjects(5), 65_535).unwrap();
    let now = taps.now();
    let message = [[0; 7].as_slice(), &[8], &[0; 7], &[7], &[1; 12]].concat();
    now.ike(true, ends(), 4500, Transport::Udp, &message);
    let frame = take(&mut capture).unwrap();
    assert_eq!(frame.bytes[28..32], [0; 4]);
    assert_eq!(frame.bytes[32..], message);
    let other = [[0; 7].as_slice(), &[8], &[0; 7], &[9], &[1; 12]].concat();
    now.ike(true, ends(), 4500, Transport::Udp, &other);
    now.ike(true, ends(), 4500, Transport::Udp, &[7; 15]);
    assert!(take(&mut capture).is_none());
}

#[test]
fn outer_headers_have_good_checksums_in_both_families() {
    let v6 = |text: &str| text.parse::<IpAddr>().unwrap();
    let ends = (v6("2001:db8::1"), v6("2001:db8::2"));
    let packet = outer::wrap(ends, Some((4500, 4501)), 0xb8, &[0; 4], b"odd").unwrap();
    assert_eq!(packet.len(), 40 + 8 + 4 + 3);
    assert_eq!((packet[0], packet[1]), (0x6b, 0x80));
    let udp: u32 = [&packet[8..], &[0, 15, 0, 17, 0][..]]
        .iter()
        .flat_map(|part| {
            let (words, odd) = part.as_chunks::<2>();
            let odd = odd.first().map(|b| u16::from_be_bytes([*b, 0]));
            let words = words.iter().map(|w| u16::from_be_bytes(*w));
            words.chain(odd).collect::<Vec<_>>()
        })
        .map(u32::from)
        .sum();
    assert_eq!((udp & 0xffff) + (udp >> 16), 0xffff);
    let mixed = (v6("2001:db8::1"), "192.0.2.1".parse().unwrap());
    assert_eq!(outer::wrap(mixed, None, 0, &[], b""), None);
    assert_eq!(outer::wrap(ends, None, 0, &[], &[0; 65_536]), None);
}
