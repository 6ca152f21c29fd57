//! Echo requests on every SA at its own pace, and what became of them.

use super::window::{Gaps, Window};
use crate::bench::{
    echo::Tunnel,
    ivs::{IkeIvs, Numbers},
    load::Load,
};
use evergate_esp::{OpenError, spi_of};
use std::{
    collections::HashMap,
    net::Ipv4Addr,
    ops::Range,
    time::{Duration, Instant},
};

/// Requests of a cycle in one turn at most: answers must not wait for long.
const BURST: usize = 32;

/// An SA with its traffic.
struct Stream {
    tunnel: Tunnel,
    /// Sequence numbers that came.
    numbers: Numbers,
    /// Requests that were sent: the number of the next one.
    sent: u32,
    /// When the newest answer came.
    last: Instant,
    /// What follows is about the present window: its first request and the one behind its last, and how many of them were answered.
    window: Range<u32>,
    answered: u32,
    /// The longest time between two answers.
    longest: Duration,
    /// When the first of these answers came.
    first: Option<Instant>,
}

/// SAs that are asked in turn, each once in an interval.
#[derive(Debug)]
struct Cycle {
    streams: Range<usize>,
    next: usize,
    /// Requests in a second, and how many were due since.
    rate: f64,
    began: Instant,
    sent: f64,
}

impl Cycle {
    fn new(streams: Range<usize>, interval: Duration) -> Self {
        Self {
            next: streams.start,
            rate: streams.len() as f64 / interval.as_secs_f64(),
            streams,
            began: Instant::now(),
            sent: 0.0,
        }
    }

    /// Who is to ask now. What could not be sent in time is not made up for.
    fn due(&mut self, now: Instant) -> Option<usize> {
        let due = (now - self.began).as_secs_f64() * self.rate;
        self.sent = self.sent.max(due - BURST as f64);
        if self.streams.is_empty() || self.sent >= due {
            return None;
        }
        self.sent += 1.0;
        let this = self.next;
        self.next += 1;
        if self.next >= self.streams.end {
            self.next = self.streams.start;
        }
        Some(this)
    }
}

/// The traffic of all.
pub(super) struct Flow {
    streams: Vec<Stream>,
    by_spi: HashMap<u32, usize>,
    to: Ipv4Addr,
    /// The first is that of the SAs that are looked at closely.
    cycles: [Cycle; 2],
    /// Sequence numbers that came twice.
    twice: u64,
    /// What was not authentic, and what came too late to be judged by the replay window.
    forged: u64,
    late: u64,
}

impl Flow {
    /// Traffic on all SAs that are up: so many, `close`, are asked at the first interval, and the others at the second.
    ///
    /// # Errors
    /// If an SA is not for IPv4.
    pub(super) fn new(
        load: &Load<'_>,
        to: Ipv4Addr,
        close: usize,
        intervals: [Duration; 2],
    ) -> anyhow::Result<Self> {
        let (now, mut streams, mut by_spi) = (Instant::now(), Vec::new(), HashMap::new());
        for (link, child) in load.children() {
            let tunnel = Tunnel::new(link, child)?;
            by_spi.insert(tunnel.spi(), streams.len());
            streams.push(Stream {
                tunnel,
                numbers: Numbers::default(),
                sent: 0,
                last: now,
                window: 0..u32::MAX,
                answered: 0,
                longest: Duration::ZERO,
                first: None,
            });
        }
        let (close, all) = (close.min(streams.len()), streams.len());
        Ok(Self {
            streams,
            by_spi,
            to,
            cycles: [
                Cycle::new(0..close, intervals[0]),
                Cycle::new(close..all, intervals[1]),
            ],
            twice: 0,
            forged: 0,
            late: 0,
        })
    }

    /// How many SAs there are.
    pub(super) fn len(&self) -> usize {
        self.streams.len()
    }

    /// Asks who is due, and takes the answers that are there.
    ///
    /// # Errors
    /// If an SA has no more sequence numbers, or the sockets fail.
    pub(super) fn turn(&mut self, load: &mut Load<'_>) -> anyhow::Result<()> {
        let now = Instant::now();
        for cycle in 0..self.cycles.len() {
            for _ in 0..BURST {
                let Some(i) = self.cycles[cycle].due(now) else {
                    break;
                };
                let stream = &mut self.streams[i];
                let packet = stream.tunnel.request(self.to, stream.sent)?;
                stream.sent += 1;
                load.send_esp(stream.tunnel.link, &packet);
            }
        }
        load.serve(&mut |packet| self.take(packet))
    }

    fn take(&mut self, packet: &mut [u8]) {
        let found = spi_of(packet).and_then(|spi| self.by_spi.get(&spi));
        let Some(stream) = found.and_then(|i| self.streams.get_mut(*i)) else {
            return; // of an SA that is only being set up
        };
        match stream.tunnel.open(packet) {
            Ok(answer) => {
                let Some(answer) = answer else { return };
                self.twice += u64::from(!stream.numbers.see(answer.seq));
                stream.answer(answer.number);
            }
            Err(OpenError::Replayed(_)) => {
                let seq = packet.get(4..8).and_then(|b| b.try_into().ok());
                match seq.is_some_and(|seq| stream.numbers.has(u32::from_be_bytes(seq))) {
                    true => self.twice += 1,
                    false => self.late += 1,
                }
            }
            Err(_) => self.forged += 1,
        }
    }

    /// A window begins: what was sent before does not count, but the silence that there is already does.
    pub(super) fn begin(&mut self) {
        for stream in &mut self.streams {
            stream.window = stream.sent..u32::MAX;
            (stream.answered, stream.longest, stream.first) = (0, Duration::ZERO, None);
        }
    }

    /// What is sent from now on does not count; answers still do.
    pub(super) fn stop_counting(&mut self) {
        for stream in &mut self.streams {
            stream.window.end = stream.sent;
        }
    }

    /// How many SAs had no answer yet to a request of this window.
    pub(super) fn silent(&self) -> usize {
        self.streams.iter().filter(|s| s.first.is_none()).count()
    }

    /// What became of the requests of this window.
    pub(super) fn found(&self, began: Instant, ivs: Option<&IkeIvs>) -> Window {
        let now = Instant::now();
        let gap = |s: &Stream| s.longest.max(now - s.last);
        let of = |range: &Range<usize>| self.streams[range.clone()].iter();
        let requests = |s: &Stream| u64::from(s.window.end.min(s.sent) - s.window.start);
        let first = |s: &Stream| s.first.map(|at| at - began);
        let soonest = self.streams.iter().filter_map(first).min();
        Window {
            sas: self.streams.len(),
            seconds: began.elapsed().as_secs_f64(),
            gaps: Gaps::of(self.streams.iter().map(gap).collect()),
            close_gaps: Gaps::of(of(&self.cycles[0].streams).map(gap).collect()),
            first_answer: Gaps::of(self.streams.iter().filter_map(first).collect()),
            soonest_ms: soonest.unwrap_or_default().as_secs_f64() * 1000.0,
            missing: self.silent(),
            requests: self.streams.iter().map(requests).sum(),
            unanswered: self
                .streams
                .iter()
                .map(|s| requests(s).saturating_sub(u64::from(s.answered)))
                .sum(),
            unanswered_close: of(&self.cycles[0].streams)
                .map(|s| requests(s).saturating_sub(u64::from(s.answered)))
                .sum(),
            numbers_twice: self.twice,
            ike_ivs_twice: ivs.map_or(0, |ivs| ivs.twice),
            ivs_unchecked: ivs.map_or(0, |ivs| ivs.unchecked),
            forged: self.forged,
            late: self.late,
        }
    }
}

impl Stream {
    fn answer(&mut self, number: u32) {
        let now = Instant::now();
        self.longest = self.longest.max(now - self.last);
        self.last = now;
        if self.window.contains(&number) {
            self.answered += 1;
            self.first.get_or_insert(now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everybody_is_asked_once_in_an_interval_and_nothing_is_made_up_for() {
        let mut cycle = Cycle::new(3..7, Duration::from_millis(100));
        let ms = |n| Duration::from_millis(n);
        let at = cycle.began + ms(101);
        let asked: Vec<_> = std::iter::from_fn(|| cycle.due(at)).collect();
        assert_eq!(asked, [3, 4, 5, 6, 3]);
        let much_later = cycle.began + ms(60_000);
        let count = std::iter::from_fn(|| cycle.due(much_later)).count();
        assert_eq!(count, BURST);
        let mut nobody = Cycle::new(7..7, ms(100));
        assert_eq!(nobody.due(nobody.began + ms(1000)), None);
    }
}
