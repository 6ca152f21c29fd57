//! Capture files in the format pcapng (draft-ietf-opsawg-pcapng): one section, an interface for each side of the encryption, packets, and at the end how many there
//! were.

use evergate_dataplane::{Frame, FrameSide, Note};
use std::time::{Duration, SystemTime};

/// Packets that begin with an IP header of either version.
const LINKTYPE_RAW: u16 = 101;

const SECTION_HEADER: u32 = 0x0a0d_0d0a;
const INTERFACE_DESCRIPTION: u32 = 1;
const INTERFACE_STATISTICS: u32 = 5;
const ENHANCED_PACKET: u32 = 6;

const OPT_COMMENT: u16 = 1;
const SHB_USERAPPL: u16 = 4;
const IF_NAME: u16 = 2;
const IF_DESCRIPTION: u16 = 3;
const IF_TSRESOL: u16 = 9;
const EPB_FLAGS: u16 = 2;
const ISB_IFRECV: u16 = 4;
const ISB_IFDROP: u16 = 5;

/// What both sides are called, in the order of their interfaces.
const INTERFACES: [(&str, &str); 2] = [
    ("clear", "packets of the protected networks"),
    ("encrypted", "ESP and IKE, with outer headers made again"),
];

/// Writes a capture file into memory, from where it is taken in parts.
#[derive(Debug, Default)]
pub(super) struct Writer {
    out: Vec<u8>,
    /// Packets of each interface.
    packets: [u64; INTERFACES.len()],
}

impl Writer {
    /// Begins a file. Of each packet there are at most `snaplen` bytes.
    pub(super) fn begin(snaplen: u32) -> Self {
        let mut writer = Self::default();
        writer.block(SECTION_HEADER, |out| {
            out.extend(0x1a2b_3c4d_u32.to_le_bytes());
            out.extend([1, 0, 0, 0]);
            // Its length is not known.
            out.extend((-1_i64).to_le_bytes());
            let name = concat!("evergate ", env!("CARGO_PKG_VERSION"));
            option(out, SHB_USERAPPL, name.as_bytes());
            end_of_options(out);
        });
        for (name, description) in INTERFACES {
            writer.block(INTERFACE_DESCRIPTION, |out| {
                out.extend(LINKTYPE_RAW.to_le_bytes());
                out.extend([0, 0]);
                out.extend(snaplen.to_le_bytes());
                option(out, IF_NAME, name.as_bytes());
                option(out, IF_DESCRIPTION, description.as_bytes());
                // Nanoseconds.
                option(out, IF_TSRESOL, &[9]);
                end_of_options(out);
            });
        }
        writer
    }

    /// Adds a packet.
    pub(super) fn packet(&mut self, frame: &Frame) {
        let interface: u32 = match frame.side {
            FrameSide::Clear => 0,
            FrameSide::Encrypted => 1,
        };
        self.packets[interface as usize] += 1;
        self.block(ENHANCED_PACKET, |out| {
            out.extend(interface.to_le_bytes());
            timestamp(out, frame.at);
            for len in [frame.bytes.len(), frame.len] {
                out.extend(u32::try_from(len).unwrap_or(u32::MAX).to_le_bytes());
            }
            padded(out, &frame.bytes);
            let direction: u32 = if frame.outbound { 2 } else { 1 };
            option(out, EPB_FLAGS, &direction.to_le_bytes());
            match frame.note {
                Some(Note::Dropped(reason)) => {
                    option(
                        out,
                        OPT_COMMENT,
                        format!("dropped: {}", reason.label()).as_bytes(),
                    );
                }
                Some(Note::InTcp) => option(out, OPT_COMMENT, b"in TCP, shown as in UDP"),
                None => {}
            }
            end_of_options(out);
        });
    }

    /// How many packets there are.
    pub(super) fn count(&self) -> u64 {
        self.packets.iter().sum()
    }

    /// Ends the file: says how many packets there are, and how many are missing. Which side they were of is not known.
    pub(super) fn end(&mut self, at: SystemTime, lost: u64) {
        for (interface, packets) in (0_u32..).zip(self.packets) {
            self.block(INTERFACE_STATISTICS, |out| {
                out.extend(interface.to_le_bytes());
                timestamp(out, at);
                option(out, ISB_IFRECV, &packets.to_le_bytes());
                option(out, ISB_IFDROP, &lost.to_le_bytes());
                option(
                    out,
                    OPT_COMMENT,
                    b"what was dropped is counted for both interfaces together",
                );
                end_of_options(out);
            });
        }
    }

    /// How many bytes wait to be taken.
    pub(super) fn len(&self) -> usize {
        self.out.len()
    }

    /// What was written since the last time.
    pub(super) fn take(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.out)
    }

    fn block(&mut self, kind: u32, body: impl FnOnce(&mut Vec<u8>)) {
        let begin = self.out.len();
        self.out.extend(kind.to_le_bytes());
        self.out.extend([0; 4]);
        body(&mut self.out);
        let len = u32::try_from(self.out.len() - begin + 4).unwrap_or(u32::MAX);
        self.out[begin + 4..begin + 8].copy_from_slice(&len.to_le_bytes());
        self.out.extend(len.to_le_bytes());
    }
}

/// Nanoseconds since the Unix epoch, the high half first.
fn timestamp(out: &mut Vec<u8>, at: SystemTime) {
    let since = at.duration_since(SystemTime::UNIX_EPOCH);
    let nanos = since.as_ref().map_or(0, Duration::as_nanos);
    let nanos = u64::try_from(nanos).unwrap_or(u64::MAX).to_le_bytes();
    out.extend(&nanos[4..]);
    out.extend(&nanos[..4]);
}

fn padded(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend(bytes);
    out.extend(std::iter::repeat_n(0, bytes.len().wrapping_neg() % 4));
}

fn option(out: &mut Vec<u8>, code: u16, value: &[u8]) {
    out.extend(code.to_le_bytes());
    out.extend(u16::try_from(value.len()).unwrap_or(u16::MAX).to_le_bytes());
    padded(out, value);
}

fn end_of_options(out: &mut Vec<u8>) {
    option(out, 0, &[]);
}

#[cfg(test)]
mod tests {
    use super::*;
    use evergate_dataplane::DropReason;

    /// The kinds and bodies of all blocks, whose two lengths must agree.
    fn blocks(mut file: &[u8]) -> Vec<(u32, Vec<u8>)> {
        let word = |at: &[u8]| u32::from_le_bytes(*at.first_chunk().unwrap());
        let mut blocks = Vec::new();
        while !file.is_empty() {
            let len = word(&file[4..]) as usize;
            assert_eq!(len % 4, 0);
            assert_eq!(word(&file[len - 4..]) as usize, len);
            blocks.push((word(file), file[8..len - 4].to_vec()));
            file = &file[len..];
        }
        blocks
    }

    #[test]
    fn a_file_has_both_interfaces_its_packets_and_their_count() {
        let mut writer = Writer::begin(65_535);
        let at = SystemTime::UNIX_EPOCH + Duration::from_nanos((3 << 32) + 7);
        writer.packet(&Frame {
            at,
            side: FrameSide::Encrypted,
            outbound: false,
            bytes: vec![0x45, 1, 2, 3, 4],
            len: 1400,
            note: Some(Note::Dropped(DropReason::Replay)),
        });
        writer.end(at, 12);
        assert_eq!(writer.count(), 1);
        let blocks = blocks(&writer.take());
        let kinds: Vec<u32> = blocks.iter().map(|b| b.0).collect();
        assert_eq!(kinds, [SECTION_HEADER, 1, 1, 6, 5, 5]);
        let (_, packet) = &blocks[3];
        let head = [1_u32, 3, 7, 5, 1400].map(u32::to_le_bytes).concat();
        assert_eq!(packet[..20], head);
        assert_eq!(packet[20..28], [0x45, 1, 2, 3, 4, 0, 0, 0]);
        assert_eq!(packet[28..36], [2, 0, 4, 0, 1, 0, 0, 0]);
        let comment = [&[1, 0, 15, 0][..], b"dropped: replay", &[0], &[0; 4]].concat();
        assert_eq!(packet[36..], comment);
        assert_eq!(writer.len(), 0);
    }
}
