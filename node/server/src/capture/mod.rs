//! Packet captures of one SA, on request.

mod pcapng;

use crate::{admin::operations, node::Node, wireshark};
use evergate_dataplane::{Capture, PlaneError, Subjects};
use evergate_ike::record::{Child, GatewayId, Phase, Record, SaId};
use evergate_proto::admin::{
    CaptureChunk, CaptureEnd, CaptureEndReason, CaptureRequest, capture_request::Target,
};
use std::{
    collections::HashSet,
    sync::Arc,
    time::{Duration, SystemTime},
};
use tokio::{
    sync::mpsc,
    time::{MissedTickBehavior, interval, sleep},
};
use tonic::Status;
use tracing::{info, warn};

/// Packets of a capture at most.
const MAX_PACKETS: u64 = 1_000_000;
/// Bytes of a capture at most.
const MAX_BYTES: u64 = 1 << 30;
/// Seconds of a capture at most: one that was forgotten ends.
const MAX_SECONDS: u32 = 3600;
/// Seconds of a capture for which none are given.
const SECONDS: u32 = 60;
/// No packet is longer.
const MAX_SNAPLEN: u32 = 65_575;
/// Bytes in a message, about.
const CHUNK: usize = 65_536;
/// Messages that wait for a reader; the rest waits in the data plane.
const CHUNKS: usize = 4;
/// IKE SAs that replaced each other are followed so far at once.
const MAX_SUCCESSORS: usize = 8;
/// How often SAs are looked for that have come or gone.
const LOOK: Duration = Duration::from_millis(200);
/// A slow reader gets so long for the end.
const FAREWELL: Duration = Duration::from_secs(10);

type Chunks = mpsc::Sender<Result<CaptureChunk, Status>>;

/// Begins a capture.
///
/// # Errors
/// As `Capture` in admin.proto.
pub(crate) fn begin(
    node: &Arc<Node>,
    request: &CaptureRequest,
) -> Result<mpsc::Receiver<Result<CaptureChunk, Status>>, Status> {
    let target = request
        .target
        .ok_or_else(|| Status::invalid_argument("no SA is named"))?;
    let mut before = Before::default();
    let subject = match target {
        Target::Ike(id) => {
            before.ids.push(SaId(id));
            format!("IKE SA 0x{id:016x}")
        }
        Target::Child(spi) => format!("Child SA 0x{spi:08x}"),
    };
    let scene = look(node, target, &before);
    let scene = scene.ok_or_else(|| Status::not_found(format!("there is no {subject}")))?;
    served_here(node, scene.gateway)?;
    let bounds = Bounds::of(request);
    let capture = node
        .plane
        .capture(scene.subjects(), bounds.snaplen as usize);
    let capture = capture.map_err(|e| match e {
        PlaneError::Limit(_) => Status::resource_exhausted(e.to_string()),
        _ => Status::failed_precondition(e.to_string()),
    })?;
    if request.keys {
        warn!(
            event = "capture-keys",
            subject, "a capture of {subject} begins, which yields its keys"
        );
    } else {
        info!(
            event = "capture-begun",
            subject, "a capture of {subject} begins"
        );
    }
    let (sender, receiver) = mpsc::channel(CHUNKS);
    let task = Task {
        node: Arc::clone(node),
        target,
        before: scene.remembered(),
        writer: pcapng::Writer::begin(bounds.snaplen),
        keys: request.keys.then(Keys::default),
        bounds,
        bytes: 0,
    };
    tokio::spawn(async move {
        let ended = task.run(scene, capture, sender).await;
        info!(
            event = "capture-ended",
            subject, "the capture of {subject} ended: {ended}"
        );
    });
    Ok(receiver)
}

/// Fails if another member has the gateway, or none.
fn served_here(node: &Node, gateway: GatewayId) -> Result<(), Status> {
    if node.service(gateway).is_some() {
        return Ok(());
    }
    let owner = node.read(|s| Some(s.gateway(gateway)?.owner.as_ref()?.member.clone()));
    Err(match owner {
        Some(member) if member != node.member => Status::failed_precondition(format!(
            "member {member} serves this SA, and its packets are there: ask it"
        )),
        _ => operations::not_served(node, gateway),
    })
}

/// How much there may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Bounds {
    packets: u64,
    time: Duration,
    snaplen: u32,
}

impl Bounds {
    fn of(request: &CaptureRequest) -> Self {
        let seconds = match request.seconds {
            0 => SECONDS,
            given => given.min(MAX_SECONDS),
        };
        Self {
            packets: match request.packets {
                0 => MAX_PACKETS,
                given => given.min(MAX_PACKETS),
            },
            time: Duration::from_secs(seconds.into()),
            snaplen: match request.snaplen {
                0 => MAX_SNAPLEN,
                given => given.min(MAX_SNAPLEN),
            },
        }
    }
}

/// What a capture is of, at the moment.
struct Scene {
    gateway: GatewayId,
    /// The IKE SA, and those that have replaced it.
    records: Vec<Arc<Record>>,
    /// Only this Child SA.
    child: Option<u32>,
}

impl Scene {
    fn subjects(&self) -> Subjects {
        let children = self.children().map(|c| c.spi_in).collect();
        let ike = match self.child {
            Some(_) => HashSet::new(),
            None => self.records.iter().map(|r| r.id.0).collect(),
        };
        Subjects { children, ike }
    }

    fn children(&self) -> impl Iterator<Item = &Child> {
        let all = self.records.iter().flat_map(|r| r.children());
        all.filter(|c| self.child.is_none_or(|spi| spi == c.spi_in))
    }

    /// By this what there is next will be found.
    fn remembered(&self) -> Before {
        let newest = self.records.len().saturating_sub(MAX_SUCCESSORS);
        Before {
            ids: self.records[newest..].iter().map(|r| r.id).collect(),
            children: self.children().map(|c| c.spi_in).collect(),
        }
    }
}

/// What a capture was of.
#[derive(Default)]
struct Before {
    /// The IKE SAs, the oldest first.
    ids: Vec<SaId>,
    children: Vec<u32>,
}

/// Looks for what a capture is of, which was this so far. `None` if nothing of it is left.
fn look(node: &Node, target: Target, before: &Before) -> Option<Scene> {
    node.read(|state| {
        if let Target::Child(spi) = target {
            let record = state.sa(state.spi_owner(spi)?)?;
            let scene = Scene {
                gateway: record.gateway,
                records: vec![Arc::clone(record)],
                child: Some(spi),
            };
            // One that is only offered is not there yet.
            let is_there = scene.children().next().is_some();
            return is_there.then_some(scene);
        }
        let known = before.ids.iter().filter_map(|id| state.sa(*id));
        let mut records: Vec<_> = known.cloned().collect();
        // An IKE SA names its successor as long as it is not deleted. Then its Child SAs tell: they have gone over.
        let mut heirs = before
            .children
            .iter()
            .filter_map(|spi| state.spi_owner(*spi));
        while records.len() < before.ids.len() + MAX_SUCCESSORS {
            let is_news = |id: &SaId| records.iter().all(|r| r.id != *id);
            let named = records.last().and_then(|newest| newest.replaced_by());
            let next = named.filter(is_news).or_else(|| heirs.find(is_news));
            let Some(next) = next.and_then(|id| state.sa(id)) else {
                break;
            };
            records.push(Arc::clone(next));
        }
        let newest = records.last()?;
        let (gateway, is_there) = (newest.gateway, !matches!(newest.phase, Phase::Closed(_)));
        is_there.then_some(Scene {
            gateway,
            records,
            child: None,
        })
    })
}

/// Keys that were told already, by SPIs.
#[derive(Default)]
struct Keys {
    ike: HashSet<SaId>,
    children: HashSet<u32>,
}

impl Keys {
    /// Lines for those SAs whose keys were not told.
    fn news(&mut self, scene: &Scene) -> CaptureChunk {
        let mut chunk = CaptureChunk::default();
        for record in &scene.records {
            if scene.child.is_none() && self.ike.insert(record.id) {
                chunk.ikev2_decryption_table += &wireshark::ike(record).unwrap_or_default();
            }
            let path = record.children_path();
            for child in record.children() {
                let wanted = scene.child.is_none_or(|spi| spi == child.spi_in);
                if wanted && self.children.insert(child.spi_in) {
                    chunk.esp_sa += &wireshark::child(child, &path).unwrap_or_default();
                }
            }
        }
        chunk
    }
}

/// A capture under way.
struct Task {
    node: Arc<Node>,
    target: Target,
    before: Before,
    writer: pcapng::Writer,
    keys: Option<Keys>,
    bounds: Bounds,
    /// Bytes so far.
    bytes: u64,
}

impl Task {
    /// Captures until the end; yields why it ended.
    async fn run(mut self, scene: Scene, mut capture: Capture, out: Chunks) -> &'static str {
        let mut told = self.keys.as_mut().map(|keys| keys.news(&scene));
        let deadline = sleep(self.bounds.time);
        tokio::pin!(deadline);
        let mut ticks = interval(LOOK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let reason = loop {
            let waits = self.writer.len() > 0 || told.is_some();
            tokio::select! {
                () = &mut deadline => break CaptureEndReason::Time,
                () = out.closed() => return "its reader has gone",
                _ = ticks.tick() => match self.follow(&capture) {
                    Ok(news) => told = merged(told, news),
                    Err(reason) => break reason,
                },
                room = out.reserve(), if waits => match room {
                    Ok(room) => room.send(Ok(self.chunk(told.take(), None))),
                    Err(_) => return "its reader has gone",
                },
                frame = capture.next(), if self.writer.len() < CHUNK => {
                    if let Some(frame) = frame {
                        self.writer.packet(&frame);
                        self.bytes += frame.bytes.len() as u64;
                    }
                    if self.writer.count() >= self.bounds.packets || self.bytes >= MAX_BYTES {
                        break CaptureEndReason::Full;
                    }
                }
            }
        };
        let lost = capture.lost();
        drop(capture);
        self.writer.end(SystemTime::now(), lost);
        let end = CaptureEnd {
            reason: reason.into(),
            packets: self.writer.count(),
            lost,
        };
        let last = self.chunk(told, Some(end));
        match out.send_timeout(Ok(last), FAREWELL).await {
            Ok(()) => "it is complete",
            Err(_) => "its reader takes nothing",
        }
    }

    /// Goes on with the SAs that there are now.
    fn follow(&mut self, capture: &Capture) -> Result<Option<CaptureChunk>, CaptureEndReason> {
        let scene = look(&self.node, self.target, &self.before).ok_or(CaptureEndReason::Gone)?;
        if served_here(&self.node, scene.gateway).is_err() {
            return Err(CaptureEndReason::Elsewhere);
        }
        self.before = scene.remembered();
        capture.follow(scene.subjects());
        let news = self.keys.as_mut().map(|keys| keys.news(&scene));
        Ok(news.filter(|n| *n != CaptureChunk::default()))
    }

    fn chunk(&mut self, told: Option<CaptureChunk>, end: Option<CaptureEnd>) -> CaptureChunk {
        CaptureChunk {
            pcapng: self.writer.take(),
            end,
            ..told.unwrap_or_default()
        }
    }
}

/// What is told, and what is told besides.
fn merged(told: Option<CaptureChunk>, news: Option<CaptureChunk>) -> Option<CaptureChunk> {
    match (told, news) {
        (Some(mut told), Some(news)) => {
            told.esp_sa += &news.esp_sa;
            told.ikev2_decryption_table += &news.ikev2_decryption_table;
            Some(told)
        }
        (told, news) => told.or(news),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_for_is_bounded() {
        let all = Bounds::of(&CaptureRequest::default());
        assert_eq!((all.packets, all.snaplen), (MAX_PACKETS, MAX_SNAPLEN));
        assert_eq!(all.time, Duration::from_secs(60));
        let greedy = Bounds::of(&CaptureRequest {
            packets: u64::MAX,
            seconds: u32::MAX,
            snaplen: u32::MAX,
            ..CaptureRequest::default()
        });
        assert_eq!((greedy.packets, greedy.snaplen), (MAX_PACKETS, MAX_SNAPLEN));
        assert_eq!(greedy.time, Duration::from_secs(3600));
    }
}
