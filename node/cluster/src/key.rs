//! The key of a cluster, from which all keys come that seal what leaves memory.

use aws_lc_rs::rand::{SecureRandom, SystemRandom};
use evergate_state::MAX_KEYS;
use std::{
    fmt, fs, io,
    io::{Read, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};
use zeroize::{Zeroize, Zeroizing};

/// Length in bytes.
const LEN: usize = 32;

/// A file that is longer than this holds something else.
const MAX_FILE: usize = 1024;

/// The key of a cluster. Wiped when dropped, never shown.
#[derive(Clone)]
pub struct ClusterKey(Zeroizing<[u8; LEN]>);

/// Why there is no cluster key.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The file cannot be read or written.
    #[error("cluster key {path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Others than its owner may read it.
    #[error(
        "cluster key {path} has mode {mode:04o}: others than its owner can get at it; chmod 0600 it"
    )]
    TooOpen {
        /// The file.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// It holds something else than keys.
    #[error(
        "cluster key {path}: not 32 bytes in hex or base64 on a line, and up to {MAX_KEYS} of them"
    )]
    Malformed {
        /// The file.
        path: PathBuf,
    },
    /// The system gives no random bytes.
    #[error("no random bytes for a cluster key")]
    NoEntropy,
}

impl ClusterKey {
    /// A new key.
    ///
    /// # Errors
    /// If the system has no randomness.
    pub fn generate() -> Result<Self, KeyError> {
        let mut bytes = Zeroizing::new([0; LEN]);
        SystemRandom::new()
            .fill(&mut *bytes)
            .map_err(|_| KeyError::NoEntropy)?;
        Ok(Self(bytes))
    }

    /// This key.
    pub fn from_bytes(bytes: [u8; LEN]) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// The key that a file holds, in hex or base64; only the file's owner may have access to it. If it holds several, the first.
    ///
    /// # Errors
    /// If the file cannot be read, is open to others, or holds something else.
    pub fn from_file(path: &Path) -> Result<Self, KeyError> {
        let first = Self::all_from_file(path)?.into_iter().next();
        first.ok_or_else(|| KeyError::Malformed {
            path: path.to_owned(),
        })
    }

    /// The keys that a file holds, one to a line; there is at least one, and no more than [`MAX_KEYS`].
    ///
    /// # Errors
    /// As for [`ClusterKey::from_file`].
    pub fn all_from_file(path: &Path) -> Result<Vec<Self>, KeyError> {
        let io = |source| KeyError::Io {
            path: path.to_owned(),
            source,
        };
        let file = fs::File::open(path).map_err(io)?;
        let mode = file.metadata().map_err(io)?.mode() & 0o7777;
        if mode & 0o077 != 0 {
            return Err(KeyError::TooOpen {
                path: path.to_owned(),
                mode,
            });
        }
        let mut text = Zeroizing::new(Vec::with_capacity(MAX_FILE));
        file.take(MAX_FILE as u64)
            .read_to_end(&mut text)
            .map_err(io)?;
        let lines = text.split(|c| *c == b'\n').map(<[u8]>::trim_ascii);
        let lines = lines.filter(|line| !line.is_empty());
        let keys: Option<Vec<Self>> = lines.map(|line| parse(line).map(Self)).collect();
        keys.filter(|keys| (1..=MAX_KEYS).contains(&keys.len()))
            .ok_or_else(|| KeyError::Malformed {
                path: path.to_owned(),
            })
    }

    /// Makes a file with a new key in it. A file that is there is left alone.
    ///
    /// # Errors
    /// If the file exists or cannot be written, or the system has no randomness.
    pub fn create_file(path: &Path) -> Result<Self, KeyError> {
        let key = Self::generate()?;
        write_new(path, std::slice::from_ref(&key))?;
        Ok(key)
    }

    /// Puts a new key before those that a file has, and leaves out what is older than the one that was the first: the first step of a rotation. The file is
    /// replaced whole.
    ///
    /// # Errors
    /// As for [`ClusterKey::from_file`]; or if the file cannot be replaced.
    pub fn add_to_file(path: &Path) -> Result<Self, KeyError> {
        let former = Self::from_file(path)?;
        let key = Self::generate()?;
        replace_file(path, &[key.clone(), former])?;
        Ok(key)
    }

    /// Leaves in a file its first key alone: the last step of a rotation. The file is replaced whole.
    ///
    /// # Errors
    /// As for [`ClusterKey::from_file`]; or if the file cannot be replaced.
    pub fn prune_file(path: &Path) -> Result<Self, KeyError> {
        let key = Self::from_file(path)?;
        replace_file(path, std::slice::from_ref(&key))?;
        Ok(key)
    }

    /// The key itself.
    pub(crate) fn expose(&self) -> &[u8; LEN] {
        &self.0
    }
}

impl fmt::Debug for ClusterKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ClusterKey")
    }
}

/// Writes a file that is not there.
fn write_new(path: &Path, keys: &[ClusterKey]) -> Result<(), KeyError> {
    let io = |source| KeyError::Io {
        path: path.to_owned(),
        source,
    };
    let mut text = Zeroizing::new(String::with_capacity(keys.len() * (2 * LEN + 1)));
    for key in keys {
        for byte in key.0.iter() {
            text.push(hex_digit(byte >> 4));
            text.push(hex_digit(byte & 15));
        }
        text.push('\n');
    }
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .map_err(io)?;
    file.write_all(text.as_bytes())
        .and_then(|()| file.sync_all())
        .map_err(io)
}

/// Writes beside the file, and renames: there is always a whole one.
fn replace_file(path: &Path, keys: &[ClusterKey]) -> Result<(), KeyError> {
    let io = |source| KeyError::Io {
        path: path.to_owned(),
        source,
    };
    let mut beside = path.as_os_str().to_owned();
    beside.push(".new");
    let beside = PathBuf::from(beside);
    write_new(&beside, keys)?;
    fs::rename(&beside, path).map_err(io)
}

fn hex_digit(nibble: u8) -> char {
    char::from_digit(u32::from(nibble), 16).unwrap_or('0')
}

fn parse(text: &[u8]) -> Option<Zeroizing<[u8; LEN]>> {
    if text.len() == 2 * LEN {
        unhex(text)
    } else {
        unbase64(text)
    }
}

fn unhex(text: &[u8]) -> Option<Zeroizing<[u8; LEN]>> {
    let mut out = Zeroizing::new([0; LEN]);
    for (byte, pair) in out.iter_mut().zip(text.chunks_exact(2)) {
        let digit = |c: u8| {
            char::from(c)
                .to_digit(16)
                .and_then(|d| u8::try_from(d).ok())
        };
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some(out)
}

/// RFC 4648 §4, with or without padding.
fn unbase64(text: &[u8]) -> Option<Zeroizing<[u8; LEN]>> {
    let text = text.strip_suffix(b"=").unwrap_or(text);
    if text.len() != (LEN * 8).div_ceil(6) {
        return None;
    }
    let mut out = Zeroizing::new([0; LEN]);
    let mut slots = out.iter_mut();
    let (mut bits, mut held) = (0u32, 0u32);
    for &c in text {
        let value = match c {
            b'A'..=b'Z' => c - b'A',
            b'a'..=b'z' => c - b'a' + 26,
            b'0'..=b'9' => c - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        bits = bits << 6 | u32::from(value);
        held += 6;
        if held >= 8 {
            held -= 8;
            *slots.next()? = u8::try_from(bits >> held & 0xff).ok()?;
            bits &= (1 << held) - 1;
        }
    }
    let whole = bits == 0 && slots.next().is_none();
    bits.zeroize();
    whole.then_some(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn file(text: &str, mode: u32) -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        (dir, path)
    }

    #[test]
    fn hex_and_base64_are_the_same_key() {
        let bytes: [u8; 32] = std::array::from_fn(|n| u8::try_from(n * 8 + 3).unwrap());
        let hex: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
        let base64 = "AwsTGyMrMztDS1NbY2tze4OLk5ujq7O7w8vT2+Pr8/s=";
        for text in [
            hex.clone(),
            hex.to_uppercase(),
            format!("{hex}\n"),
            base64.into(),
            base64.replace('=', ""),
        ] {
            let (_dir, path) = file(&text, 0o600);
            assert_eq!(
                *ClusterKey::from_file(&path).unwrap().expose(),
                bytes,
                "{text}"
            );
        }
    }

    #[test]
    fn other_contents_are_refused() {
        let short = "00".repeat(31);
        let long = "00".repeat(33);
        for text in [
            "",
            "x",
            &short,
            &long,
            &"g".repeat(64),
            &"A".repeat(42),
            &format!("{}B", "A".repeat(42)),
        ] {
            let (_dir, path) = file(text, 0o600);
            assert!(
                matches!(
                    ClusterKey::from_file(&path),
                    Err(KeyError::Malformed { .. })
                ),
                "{text}"
            );
        }
    }

    #[test]
    fn a_key_that_others_can_read_is_refused() {
        for mode in [0o640, 0o604, 0o620, 0o601] {
            let (_dir, path) = file(&"00".repeat(32), mode);
            let error = ClusterKey::from_file(&path).unwrap_err();
            assert!(
                matches!(&error, KeyError::TooOpen { mode: m, .. } if *m == mode),
                "{error}"
            );
        }
    }

    #[test]
    fn a_new_key_is_private_and_never_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        let made = ClusterKey::create_file(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o600);
        assert_eq!(
            made.expose(),
            ClusterKey::from_file(&path).unwrap().expose()
        );
        assert!(matches!(
            ClusterKey::create_file(&path),
            Err(KeyError::Io { .. })
        ));
        assert_eq!(format!("{made:?}"), "ClusterKey");
        assert_ne!(made.expose(), ClusterKey::generate().unwrap().expose());
    }
}
