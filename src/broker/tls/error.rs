//! What can be wrong with certificates, keys and the files that hold them.

use std::path::PathBuf;

use super::store::StoreError;
use crate::files::FileError;
use crate::secret::SecretError;

/// Why there is no certificate, or no TLS with it.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be replaced.
    #[error(transparent)]
    File(#[from] FileError),
    /// A file cannot be read or written.
    #[error("cannot read or write {}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// Everybody on the host may read or change a private key.
    #[error("everybody may read or change {} (mode {mode:04o}); run chmod o-rwx on it", path.display())]
    Exposed {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// More than a certificate, a key or a key store can have.
    #[error("{} is larger than {bytes_max} bytes; name the file with the certificate or key itself", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// The limit.
        bytes_max: u64,
    },
    /// Certificate or key cannot be made.
    #[error("cannot make a certificate from {}; restore the file, or remove ca.pem and ca.key together to begin with a new authority", path.display())]
    Make {
        /// File that takes part.
        path: PathBuf,
        /// Why.
        #[source]
        source: rcgen::Error,
    },
    /// A PEM file holds no certificate or no key.
    #[error("{} holds no usable PEM", path.display())]
    Pem {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: rustls::pki_types::pem::Error,
    },
    /// A key store cannot be used.
    #[error("the key store {} cannot be used", path.display())]
    Store {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: StoreError,
    },
    /// The password of a key store cannot be had.
    #[error("the password of the key store {} cannot be had", path.display())]
    Password {
        /// The key store.
        path: PathBuf,
        /// Why.
        #[source]
        source: SecretError,
    },
    /// What is in the place of a certificate is none.
    #[error("{} holds something that is no X.509 certificate", path.display())]
    NoCertificate {
        /// The file.
        path: PathBuf,
    },
    /// A certificate whose time is over.
    #[error("the certificate in {} expired on {not_after}; put a new one in its place", path.display())]
    Expired {
        /// The file.
        path: PathBuf,
        /// Its last moment.
        not_after: jiff::Timestamp,
    },
    /// A certificate whose time has not come.
    #[error("the certificate in {} is not valid before {not_before}; check the clock of this host", path.display())]
    NotYetValid {
        /// The file.
        path: PathBuf,
        /// Its first moment.
        not_before: jiff::Timestamp,
    },
    /// Certificate and key do not work together.
    #[error("certificate and key of {} do not work together; the key must be that of the first certificate", path.display())]
    Unfit {
        /// The certificate's file.
        path: PathBuf,
        /// Why.
        #[source]
        source: rustls::Error,
    },
    /// A certificate cannot be trusted, for a reason of its form.
    #[error("a certificate in {} cannot be trusted", path.display())]
    Root {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: rustls::Error,
    },
    /// Clients must have certificates of an authority, and none is named.
    #[error("certificates are asked of clients, but no authority is trusted to sign them")]
    NoRoots,
    /// Certificates of clients cannot be checked.
    #[error("cannot set up the verification of clients' certificates")]
    Verifier(#[from] rustls::server::VerifierBuilderError),
    /// TLS cannot be set up.
    #[error("cannot set up TLS")]
    Setup(#[from] rustls::Error),
    /// A configured name cannot stand in a certificate.
    #[error("`{name}` cannot stand in a certificate; `names` must hold DNS names and addresses")]
    Name {
        /// The name.
        name: String,
    },
    /// A thread of the system's did not do its work.
    #[error("the thread that makes certificates failed")]
    Thread(#[from] tokio::task::JoinError),
}
