//! Tokens with which members join.

use aws_lc_rs::{
    digest,
    rand::{SecureRandom, SystemRandom},
};
use std::{
    fmt, fs, io,
    io::Read,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};
use zeroize::Zeroizing;

/// Length in bytes: nobody guesses it.
const LEN: usize = 32;

/// What the text of a token begins with, so that it is not taken for something else.
const PREFIX: &str = "evergate-join-";

/// A file that is longer than this holds something else.
const MAX_FILE: u64 = 1024;

/// A token: whoever bears it, and a certificate of the member that it was made for, joins the cluster with it, once. Wiped when dropped, never shown but by
/// [`JoinToken::reveal`].
#[derive(Clone)]
pub struct JoinToken(Zeroizing<[u8; LEN]>);

/// Why there is no token.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// The file cannot be read.
    #[error("join token {path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Others than its owner may read it.
    #[error(
        "join token {path} has mode {mode:04o}: others than its owner can get at it; chmod 0600 it"
    )]
    TooOpen {
        /// The file.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// It holds something else.
    #[error(
        "join token {0}: not what `evergate ctl member add` printed, which begins with \"{PREFIX}\""
    )]
    Malformed(PathBuf),
    /// The system gives no random bytes.
    #[error("no random bytes for a token")]
    NoEntropy,
}

impl JoinToken {
    /// A new one.
    ///
    /// # Errors
    /// If the system has no randomness.
    pub fn generate() -> Result<Self, TokenError> {
        let mut bytes = Zeroizing::new([0; LEN]);
        SystemRandom::new()
            .fill(&mut *bytes)
            .map_err(|_| TokenError::NoEntropy)?;
        Ok(Self(bytes))
    }

    /// One that another member was sent.
    pub(crate) fn from_slice(bytes: &[u8]) -> Option<Self> {
        let bytes = Zeroizing::new(<[u8; LEN]>::try_from(bytes).ok()?);
        Some(Self(bytes))
    }

    /// Reads the text of one.
    pub fn parse(text: &str) -> Option<Self> {
        let digits = text.trim().strip_prefix(PREFIX)?.as_bytes();
        let mut bytes = Zeroizing::new([0; LEN]);
        let (pairs, []) = digits.as_chunks::<2>() else {
            return None;
        };
        if pairs.len() != LEN {
            return None;
        }
        for (byte, [high, low]) in bytes.iter_mut().zip(pairs) {
            let digit = |d: u8| u8::try_from(char::from(d).to_digit(16)?).ok();
            *byte = digit(*high)? << 4 | digit(*low)?;
        }
        Some(Self(bytes))
    }

    /// Reads one from a file of mode 0600 or stricter.
    ///
    /// # Errors
    /// If it cannot be read, others may read it, or it holds something else.
    pub fn from_file(path: &Path) -> Result<Self, TokenError> {
        let failed = |source| TokenError::Io {
            path: path.to_owned(),
            source,
        };
        let file = fs::File::open(path).map_err(failed)?;
        let mode = file.metadata().map_err(failed)?.mode() & 0o7777;
        if mode & 0o077 != 0 {
            let path = path.to_owned();
            return Err(TokenError::TooOpen { path, mode });
        }
        let mut text = Zeroizing::new(String::with_capacity(128));
        file.take(MAX_FILE)
            .read_to_string(&mut text)
            .map_err(failed)?;
        Self::parse(&text).ok_or_else(|| TokenError::Malformed(path.to_owned()))
    }

    /// Its text, for who joins.
    pub fn reveal(&self) -> Zeroizing<String> {
        let mut text = Zeroizing::new(String::with_capacity(PREFIX.len() + 2 * LEN));
        text.push_str(PREFIX);
        for byte in self.0.iter() {
            for digit in [byte >> 4, byte & 15] {
                text.extend(char::from_digit(digit.into(), 16));
            }
        }
        text
    }

    pub(crate) fn expose(&self) -> &[u8] {
        &*self.0
    }

    /// What is kept of it: its SHA-256.
    pub fn digest(&self) -> [u8; 32] {
        let hash = digest::digest(&digest::SHA256, &*self.0);
        let mut out = [0; 32];
        out.copy_from_slice(hash.as_ref());
        out
    }
}

impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JoinToken")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_token_is_read_as_it_was_shown_and_nothing_else_is_one() {
        let token = JoinToken::generate().unwrap();
        let text = token.reveal();
        let read = JoinToken::parse(&format!("{}\n", *text)).unwrap();
        assert_eq!(read.digest(), token.digest());
        assert_ne!(JoinToken::generate().unwrap().digest(), token.digest());
        assert_eq!(format!("{token:?}"), "JoinToken");
        let short = &text[..text.len() - 1];
        let with_sign = text.replacen('-', "+", 1);
        for wrong in ["", PREFIX, short, &text[PREFIX.len()..], &with_sign] {
            assert!(JoinToken::parse(wrong).is_none(), "{wrong}");
        }
        assert!(JoinToken::parse(&format!("{}00", *text)).is_none());
    }

    #[test]
    fn a_file_that_others_can_read_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        fs::write(&path, &*JoinToken::generate().unwrap().reveal()).unwrap();
        let mode = |bits| fs::set_permissions(&path, fs::Permissions::from_mode(bits)).unwrap();
        mode(0o640);
        let refused = JoinToken::from_file(&path);
        assert!(matches!(
            refused,
            Err(TokenError::TooOpen { mode: 0o640, .. })
        ));
        mode(0o600);
        JoinToken::from_file(&path).unwrap();
        fs::write(&path, "something else").unwrap();
        let refused = JoinToken::from_file(&path);
        assert!(matches!(refused, Err(TokenError::Malformed(_))));
    }
}
