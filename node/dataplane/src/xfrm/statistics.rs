//! What the kernel counts for all of a network namespace.

use crate::DropReason;
use std::{
    fs::File,
    io::{self, Read, Seek},
};

/// `/proc/net/xfrm_stat`, and what it said at the start.
///
/// It counts for whoever uses the kernel's IPsec in this network namespace: what other programs drop is among it.
pub(super) struct Statistics {
    file: File,
    start: [u64; DropReason::ALL.len()],
}

impl Statistics {
    /// Those of the network namespace of the calling thread. The kernel may have none.
    pub(super) fn open() -> io::Result<Self> {
        let mut opened = Self {
            file: File::open("/proc/thread-self/net/xfrm_stat")?,
            start: [0; DropReason::ALL.len()],
        };
        opened.start = opened.read();
        Ok(opened)
    }

    /// Drops since the start, by reason.
    pub(super) fn drops(&mut self) -> [u64; DropReason::ALL.len()] {
        let mut now = self.read();
        for (count, start) in now.iter_mut().zip(self.start) {
            *count = count.saturating_sub(start);
        }
        now
    }

    fn read(&mut self) -> [u64; DropReason::ALL.len()] {
        let mut text = String::new();
        let read = self
            .file
            .rewind()
            .and_then(|()| self.file.read_to_string(&mut text));
        match read {
            Ok(_) => counts(&text),
            Err(_) => [0; DropReason::ALL.len()],
        }
    }
}

fn counts(text: &str) -> [u64; DropReason::ALL.len()] {
    let mut counts = [0; DropReason::ALL.len()];
    for line in text.lines() {
        let mut words = line.split_whitespace();
        if let (Some(name), Some(Ok(count))) = (words.next(), words.next().map(str::parse::<u64>))
            && let Some(reason) = reason(name)
        {
            counts[reason as usize] += count;
        }
    }
    counts
}

/// What the kernel's counter is in our words. What is counted elsewhere, or is no packet of a tunnel, is left out.
fn reason(name: &str) -> Option<DropReason> {
    Some(match name {
        "XfrmInHdrError" | "XfrmInBufferError" => DropReason::MalformedOuter,
        "XfrmInNoStates" => DropReason::UnknownSpi,
        "XfrmInStateSeqError" => DropReason::Replay,
        "XfrmInStateProtoError" => DropReason::NotAuthentic,
        "XfrmInStateModeError" => DropReason::MalformedPayload,
        "XfrmInStateMismatch" | "XfrmInTmplMismatch" | "XfrmInNoPols" | "XfrmInPolBlock" => {
            DropReason::SelectorMismatch
        }
        "XfrmOutPolBlock" => DropReason::NoLease,
        "XfrmOutStateExpired" | "XfrmOutStateSeqError" => DropReason::Exhausted,
        "XfrmOutError" | "XfrmOutBundleGenError" | "XfrmOutStateProtoError" => {
            DropReason::SendFailed
        }
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_of_the_kernel_become_reasons() {
        let text = "XfrmInError             \t1\nXfrmInNoStates          \t5\n\
                    XfrmInTmplMismatch      \t2\nXfrmInPolBlock \t3\nXfrmOutNoStates \t9\nXfrmOutPolBlock \t4\nnonsense\n";
        let counts = counts(text);
        assert_eq!(counts[DropReason::UnknownSpi as usize], 5);
        assert_eq!(counts[DropReason::SelectorMismatch as usize], 5);
        assert_eq!(counts[DropReason::NoLease as usize], 4);
        assert_eq!(counts.iter().sum::<u64>(), 14);
    }
}
