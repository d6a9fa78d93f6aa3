//! Secrets: values that never show in logs or errors, and the files that hold
//! them.

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use aws_lc_rs::hkdf;
use aws_lc_rs::rand::{SecureRandom, SystemRandom};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use crate::files;

/// Longest secret file in bytes.
const FILE_BYTES_MAX: u64 = 64 * 1024;

/// A secret text. It shows as `[secret]`, is compared in constant time and is
/// wiped from memory when dropped.
#[derive(Clone)]
pub struct Secret(Zeroizing<String>);

/// A cluster's secret, from which its keys are derived (HKDF, RFC 5869): one
/// for each purpose, none of which tells another one or the secret.
pub struct Root(hkdf::Prk);

struct Length(usize);

impl hkdf::KeyType for Length {
    fn len(&self) -> usize {
        self.0
    }
}

impl Root {
    /// The key for a purpose.
    pub fn key<const N: usize>(&self, purpose: &str) -> Zeroizing<[u8; N]> {
        let mut bytes = Zeroizing::new([0; N]);
        self.0
            .expand(&[purpose.as_bytes()], Length(N))
            .and_then(|expanded| expanded.fill(&mut *bytes))
            .expect("a few dozen bytes are within what the function gives");
        bytes
    }
}

/// Why a secret cannot be had from a file, or put into one.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// The file cannot be read or written.
    #[error("cannot {what} the secret file {}", path.display())]
    Io {
        /// What was attempted.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Others than its owner may read it.
    #[error("the secret file {} can be read by others (mode {mode:03o}); run: chmod 600 {}", path.display(), path.display())]
    Exposed {
        /// The file.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// It holds nothing, or too much.
    #[error("the secret file {} must hold 1 to {FILE_BYTES_MAX} bytes of text", path.display())]
    Content {
        /// The file.
        path: PathBuf,
    },
}

impl Secret {
    /// Takes a text as a secret.
    pub fn new(text: String) -> Self {
        Self(Zeroizing::new(text))
    }

    /// 256 random bits as text.
    pub fn random() -> Self {
        let mut bytes = Zeroizing::new([0; 32]);
        SystemRandom::new().fill(&mut *bytes).expect("the operating system's random generator works once it is up");
        Self::new(URL_SAFE_NO_PAD.encode(*bytes))
    }

    /// The text. Keep it away from logs, errors and the log of commands.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// The 256 bits that the text stands for in base64 of either alphabet,
    /// padded or not.
    pub fn bytes_256(&self) -> Option<Zeroizing<[u8; 32]>> {
        let text = Zeroizing::new(self.0.trim_end_matches('=').replace('+', "-").replace('/', "_"));
        let bytes = Zeroizing::new(URL_SAFE_NO_PAD.decode(text.as_bytes()).ok()?);
        let bytes: [u8; 32] = bytes.as_slice().try_into().ok()?;
        Some(Zeroizing::new(bytes))
    }

    /// What keys are derived from, if the text stands for 256 bits.
    pub fn root(&self) -> Option<Root> {
        let bytes = self.bytes_256()?;
        Some(Root(hkdf::Salt::new(hkdf::HKDF_SHA256, b"berth cluster 1").extract(&*bytes)))
    }

    /// Whether a given text is the secret; takes the same time wherever they differ.
    pub fn matches(&self, given: &str) -> bool {
        self.0.as_bytes().ct_eq(given.as_bytes()).into()
    }

    /// Reads a secret file: the text without white space around it. A file
    /// that others can read is refused.
    pub fn read(path: &Path) -> Result<Self, SecretError> {
        let io = |what| move |source| SecretError::Io { what, path: path.to_owned(), source };
        let mut file = File::open(path).map_err(io("open"))?;
        let mode = file.metadata().map_err(io("inspect"))?.permissions().mode() & 0o777;
        if mode & 0o077 != 0 {
            return Err(SecretError::Exposed { path: path.to_owned(), mode });
        }
        let mut text = Zeroizing::new(String::new());
        Read::take(&mut file, FILE_BYTES_MAX + 1).read_to_string(&mut text).map_err(io("read"))?;
        let trimmed = text.trim();
        if trimmed.is_empty() || text.len() as u64 > FILE_BYTES_MAX {
            return Err(SecretError::Content { path: path.to_owned() });
        }
        Ok(Self::new(trimmed.to_owned()))
    }

    /// Reads a secret file, or makes it with a random secret when there is none.
    pub fn read_or_create(path: &Path) -> Result<Self, SecretError> {
        if path.exists() {
            return Self::read(path);
        }
        let secret = Self::random();
        secret.write(path)?;
        Ok(secret)
    }

    /// Writes a secret file that only its owner can read.
    pub fn write(&self, path: &Path) -> Result<(), SecretError> {
        let io =
            |error: files::FileError| SecretError::Io { what: "write", path: path.to_owned(), source: error.source };
        files::replace(path, format!("{}\n", self.expose()).as_bytes(), 0o600).map_err(io)
    }
}

impl PartialEq for Secret {
    fn eq(&self, other: &Self) -> bool {
        self.matches(other.expose())
    }
}

impl Eq for Secret {}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[secret]")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_does_not_show() {
        let secret = Secret::new("hunter2".to_owned());
        assert_eq!(format!("{secret:?}"), "[secret]");
        assert!(secret.matches("hunter2") && !secret.matches("hunter3") && !secret.matches(""));
    }

    #[test]
    fn a_file_that_others_can_read_is_refused() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("secret");
        let made = Secret::read_or_create(&path).expect("made");
        assert!(Secret::read(&path).expect("read").matches(made.expose()));
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).expect("chmod");
        let error = Secret::read_or_create(&path).expect_err("exposed").to_string();
        assert!(error.contains("chmod 600"), "{error}");
        assert!(!error.contains(made.expose()));
    }
}
