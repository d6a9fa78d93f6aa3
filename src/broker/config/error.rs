//! What can be wrong with a configuration. All of it is found before it is
//! told, so that nobody starts five times to learn of five mistakes.

use std::error::Error;
use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;

use super::sources::Origin;
use crate::secret::SecretError;

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A file cannot be read.
    #[error("cannot read the configuration {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// A file is not of the form that it should have.
    #[error("{}:{line}: {reason}", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What is wrong there.
        reason: String,
    },
    /// The original's file holds secrets, and others may read or change it.
    #[error(
        "{} holds secrets, and everybody may read or change it (mode {mode:04o}); run: chmod o-rwx {}",
        path.display(), path.display()
    )]
    Exposed {
        /// The file.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// There is no such key.
    #[error("there is no key `{key}`{}", closest.map(|closest| format!("; did you mean `{closest}`?")).unwrap_or_default())]
    Unknown {
        /// The key.
        key: String,
        /// One that is written alike.
        closest: Option<&'static str>,
    },
    /// A key of the original's file that is none of the original's.
    #[error(
        "there is no key `{key}`{}",
        closest.map_or_else(
            || "; delete the line if a newer version of the original has it".to_owned(),
            |closest| format!("; did you mean `{closest}`?"),
        )
    )]
    UnknownOriginal {
        /// The key.
        key: String,
        /// One that is written alike.
        closest: Option<&'static str>,
    },
    /// A value is of the wrong kind, or none that is known.
    #[error("`{key}`: {reason}")]
    Value {
        /// The key, of ours or of the original.
        key: String,
        /// What is wrong.
        reason: String,
    },
    /// A value is outside its bounds.
    #[error("`{key}` is {value}, but must be {must}")]
    Bounds {
        /// The key.
        key: &'static str,
        /// Its value.
        value: u64,
        /// What it must be.
        must: &'static str,
    },
    /// The cluster cannot be as it is described.
    #[error("`{key}`: {reason}")]
    Cluster {
        /// The key.
        key: &'static str,
        /// Why.
        reason: String,
    },
    /// Two listeners want the same port.
    #[error("`{key}` and `{other}` are the same port: {address}")]
    SamePort {
        /// The key of one.
        key: &'static str,
        /// The key of the other one.
        other: &'static str,
        /// The address of the one.
        address: SocketAddr,
    },
    /// A certificate without a key, or the reverse.
    #[error("`{listener}` needs certificate_file and key_file together, or neither")]
    HalfCertificate {
        /// Which listener.
        listener: &'static str,
    },
    /// A certificate in PEM and one in a key store.
    #[error("`{listener}` has key_store_file beside certificate_file and key_file; keep one or the other")]
    TwoCertificates {
        /// Which listener.
        listener: &'static str,
    },
    /// Authorities in PEM and in a trust store.
    #[error("`gateway` has trust_file beside trust_store_file; keep one or the other")]
    TwoTrusts,
    /// The password of no store.
    #[error("`{listener}` has a password for {store}_file, but no {store}_file")]
    PasswordAlone {
        /// Which listener.
        listener: &'static str,
        /// Which store.
        store: &'static str,
    },
    /// A file that the configuration names is of no use.
    #[error("`{key}` names {}, which {reason}", path.display())]
    NamedFile {
        /// The key.
        key: &'static str,
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A secret file that the configuration names is of no use.
    #[error("`{key}`")]
    NamedSecret {
        /// The key.
        key: &'static str,
        /// What is wrong with it.
        #[source]
        source: SecretError,
    },
}

impl ConfigError {
    /// The key that it is about, if it is one of ours and about its value.
    pub const fn key(&self) -> Option<&'static str> {
        match self {
            Self::Bounds { key, .. }
            | Self::Cluster { key, .. }
            | Self::SamePort { key, .. }
            | Self::NamedFile { key, .. }
            | Self::NamedSecret { key, .. } => Some(key),
            _ => None,
        }
    }
}

/// An error, and where what it is about was written.
#[derive(Debug)]
pub struct Problem {
    /// What is wrong.
    pub error: ConfigError,
    /// Where.
    pub origin: Option<Origin>,
}

impl From<ConfigError> for Problem {
    fn from(error: ConfigError) -> Self {
        Self { error, origin: None }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.error.fmt(f)?;
        let mut cause = self.error.source();
        while let Some(error) = cause {
            write!(f, ": {error}")?;
            cause = error.source();
        }
        match &self.origin {
            None | Some(Origin::Default) => Ok(()),
            Some(origin) => write!(f, " ({origin})"),
        }
    }
}

/// Everything that is wrong with a configuration; at least one thing.
#[derive(Debug)]
pub struct Problems(pub Vec<Problem>);

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the configuration cannot be used:")?;
        self.0.iter().try_for_each(|problem| write!(f, "\n  {problem}"))
    }
}

impl Error for Problems {}
