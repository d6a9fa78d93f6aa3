//! Certificates and TLS of the ports for clients, agents and gateways. The port
//! for other replicas has its own (`cluster/authority.rs`).
//!
//! - `authority.rs`: the cluster's certificate authority,
//! - `names.rs`: what this host is called,
//! - `host.rs`: the server certificate that the authority signs for it,
//! - `source.rs`, `store/`: certificates of an operator's own, in PEM, JKS or
//!   PKCS #12, and what trusts clients,
//! - `subject.rs`: whom a client's certificate names,
//! - `listener.rs`: TLS of one port, as it is at the moment; `port.rs`: how it
//!   follows its files,
//! - `pki.rs`: all of it together, kept up to date while the broker runs,
//! - `expiry.rs`: what ends when, and who is told,
//! - `admin.rs`: the operators' view.
//!
//! A port's `ServerConfig` is made anew as a whole when a certificate, a key or
//! a trusted authority has changed, and each connection takes the one of its
//! moment. So certificate, key and trust always belong together, a session is
//! never resumed that was begun under others, and connections that stand are
//! not touched.

pub mod admin;
pub mod authority;
pub mod error;
pub mod expiry;
pub mod facts;
pub mod host;
pub mod listener;
pub mod names;
pub mod pki;
pub mod port;
pub mod source;
pub mod store;
pub mod subject;

pub use authority::{Authority, export_authority, import_authority};
pub use error::TlsError;
pub use listener::{ClientAuth, Roots, Tls};
pub use pki::Pki;
pub use port::{gateways_of, source_of};
pub use source::{Password, Source, TrustFile};
pub use subject::{Peer, Shown, Subject};
