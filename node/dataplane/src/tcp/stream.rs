//! Messages in a stream of bytes (RFC 9329 §3, §4).

/// What the originator's stream begins with (RFC 9329 §4).
pub(super) const PREFIX: &[u8] = b"IKETCP";
/// Length of the length before each message, which counts itself.
const LENGTH: usize = 2;
/// The longest message.
pub(super) const MAX_MESSAGE: usize = u16::MAX as usize - LENGTH;

/// The stream is none of IKE and ESP: nothing more can be found in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Corrupt {
    /// It begins otherwise.
    #[error("it does not begin with \"IKETCP\"")]
    Prefix,
    /// A message is shorter than its own length field.
    #[error("the length of a message is {0}")]
    Length(u16),
}

/// What came by a connection and was not taken out yet. It holds less than one message beyond what was put in last.
#[derive(Debug)]
pub(super) struct Stream {
    prefix_due: bool,
    bytes: Vec<u8>,
    /// What is before this was taken out.
    start: usize,
}

impl Stream {
    /// An empty one, which must begin with the prefix if the other end is the originator.
    pub(super) fn new(prefix_due: bool) -> Self {
        Self {
            prefix_due,
            bytes: Vec::new(),
            start: 0,
        }
    }

    /// Whether the other end has still to say what the stream is.
    pub(super) fn prefix_due(&self) -> bool {
        self.prefix_due
    }

    /// More of it came.
    pub(super) fn put(&mut self, bytes: &[u8]) {
        self.bytes.drain(..self.start);
        self.start = 0;
        self.bytes.extend_from_slice(bytes);
    }

    /// The next message; `None` until more comes. Empty ones are passed over (RFC 9329 §3).
    pub(super) fn next(&mut self) -> Result<Option<&mut [u8]>, Corrupt> {
        if self.prefix_due && !self.take_prefix()? {
            return Ok(None);
        }
        loop {
            let rest = &self.bytes[self.start..];
            let Some(length) = rest.first_chunk().copied().map(u16::from_be_bytes) else {
                break;
            };
            let len = usize::from(length);
            if len < LENGTH {
                return Err(Corrupt::Length(length));
            }
            if rest.len() < len {
                break;
            }
            let message = self.start + LENGTH..self.start + len;
            self.start += len;
            if !message.is_empty() {
                return Ok(Some(&mut self.bytes[message]));
            }
        }
        if self.start == self.bytes.len() {
            // Connections that are idle hold no memory.
            self.bytes = Vec::new();
            self.start = 0;
        }
        Ok(None)
    }

    fn take_prefix(&mut self) -> Result<bool, Corrupt> {
        let len = self.bytes.len().min(PREFIX.len());
        if self.bytes[..len] != PREFIX[..len] {
            return Err(Corrupt::Prefix);
        }
        if len == PREFIX.len() {
            self.start = len;
            self.prefix_due = false;
        }
        Ok(!self.prefix_due)
    }
}

/// Puts a message at the end of what is to be sent: the non-ESP marker, if there is one, and the rest. False if it is too long.
pub(super) fn frame(out: &mut Vec<u8>, marker: &[u8], message: &[u8]) -> bool {
    let len = framed(marker, message);
    let Ok(length) = u16::try_from(len) else {
        return false;
    };
    out.extend(length.to_be_bytes());
    out.extend(marker);
    out.extend(message);
    true
}

/// How many bytes it takes.
pub(super) fn framed(marker: &[u8], message: &[u8]) -> usize {
    LENGTH + marker.len() + message.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(stream: &mut Stream) -> Result<Vec<Vec<u8>>, Corrupt> {
        let mut found = Vec::new();
        while let Some(message) = stream.next()? {
            found.push(message.to_vec());
        }
        Ok(found)
    }

    #[test]
    fn messages_come_out_however_the_stream_is_cut() {
        let messages: [&[u8]; 4] = [&[1], &[2; 1500], &[], &[3; MAX_MESSAGE]];
        let mut whole = PREFIX.to_vec();
        for message in messages {
            assert!(frame(&mut whole, &[], message));
        }
        for cut in [1, 2, 3, 5, 7, 1499, 70_000] {
            let mut stream = Stream::new(true);
            let mut found = Vec::new();
            for piece in whole.chunks(cut) {
                stream.put(piece);
                found.extend(all(&mut stream).unwrap());
                assert!(
                    stream.bytes.len() < MAX_MESSAGE + LENGTH + cut,
                    "it holds one message at most"
                );
            }
            let expected = [messages[0], messages[1], messages[3]];
            assert_eq!(found, expected, "empty ones are ignored: {cut}");
            assert_eq!(stream.bytes.capacity(), 0);
        }
    }

    #[test]
    fn a_stream_that_begins_otherwise_is_known_by_its_first_wrong_byte() {
        for wrong in [&b"X"[..], b"IKEX", b"GET / HTTP/1.1\r\n", b"IKETCQ"] {
            let mut stream = Stream::new(true);
            stream.put(wrong);
            assert_eq!(all(&mut stream), Err(Corrupt::Prefix));
        }
        let mut stream = Stream::new(true);
        stream.put(b"IKET");
        assert_eq!(all(&mut stream), Ok(vec![]));
        assert!(stream.prefix_due());
        stream.put(b"CP");
        assert_eq!(all(&mut stream), Ok(vec![]));
        assert!(!stream.prefix_due());
    }

    #[test]
    fn lengths_that_cannot_be_end_it() {
        for length in [0_u16, 1] {
            let mut stream = Stream::new(false);
            stream.put(&[0, 3, 0xff]);
            stream.put(&length.to_be_bytes());
            assert_eq!(stream.next(), Ok(Some(&mut [0xff][..])));
            assert_eq!(stream.next(), Err(Corrupt::Length(length)));
        }
    }

    #[test]
    fn what_is_too_long_is_not_written() {
        let mut out = Vec::new();
        assert!(!frame(&mut out, &[0; 4], &[0; MAX_MESSAGE - 3]));
        assert!(out.is_empty());
        assert!(frame(&mut out, &[0; 4], &[7; 28]));
        assert_eq!(out[..7], [0, 34, 0, 0, 0, 0, 7]);
    }
}
