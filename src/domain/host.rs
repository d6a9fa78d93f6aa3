//! What a desktop host is and how it fares, as its agent reports it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Facts that seldom change. An agent sends them when it connects and again
/// whenever one of them changed.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct HostFacts {
    /// Name of the host, without a domain or with it, as the host says.
    pub hostname: String,
    /// Address at which clients reach the host.
    pub ip: String,
    /// Full DNS name, when the host knows one.
    pub dns_name: Option<String>,
    /// Where the desktop server listens.
    pub endpoints: Vec<Endpoint>,
    /// Path prefix of the web client, when set.
    pub web_url_path: Option<String>,
    /// Version of the desktop server.
    pub desktop_version: String,
    /// Version of the agent.
    pub agent_version: String,
    /// Operating system.
    pub os: Os,
    /// Processors.
    pub cpu: Cpu,
    /// Graphics processors.
    pub gpus: Vec<Gpu>,
    /// Cloud instance, when it is one.
    pub aws: Option<Aws>,
    /// Tags: those of the operator and the built-in `dcv:` ones.
    pub tags: BTreeMap<String, String>,
    /// What the host accepts.
    pub limits: Limits,
}

/// How many sessions of which kind a host accepts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Limits {
    /// Virtual sessions at a time; 0 refuses them, `None` sets no limit.
    pub virtual_sessions_max: Option<u32>,
    /// Virtual sessions of one owner at a time; `None` sets no limit.
    pub sessions_per_owner_max: Option<u32>,
    /// Whether a console session can be made here (one at a time).
    pub console_sessions: bool,
}

impl Default for Limits {
    fn default() -> Self {
        Self { virtual_sessions_max: None, sessions_per_owner_max: Some(1), console_sessions: false }
    }
}

/// A listening place of the desktop server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoint {
    /// Address it listens on, when it is not all of them.
    #[serde(default)]
    pub ip: Option<String>,
    /// Port.
    pub port: u16,
    /// Path prefix; HTTP only.
    #[serde(default)]
    pub web_url_path: Option<String>,
    /// Transport.
    pub protocol: EndpointProtocol,
}

/// Transport of an [`Endpoint`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EndpointProtocol {
    /// WebSocket over TLS.
    Http,
    /// QUIC.
    Quic,
}

/// Family of operating systems; placement rules depend on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OsFamily {
    /// Linux.
    #[default]
    Linux,
    /// Windows.
    Windows,
    /// macOS.
    Macos,
}

impl OsFamily {
    /// The name that the API shows and requirements compare with.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Linux => "linux",
            Self::Windows => "windows",
            Self::Macos => "macos",
        }
    }
}

/// Operating system.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Os {
    /// Family.
    pub family: OsFamily,
    /// Name of the distribution or product.
    pub name: String,
    /// Its version.
    pub version: String,
    /// Kernel version; Linux.
    pub kernel_version: Option<String>,
    /// Build number; Windows.
    pub build_number: Option<String>,
}

/// Processors.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Cpu {
    /// Vendor, as the processor says (`GenuineIntel`).
    pub vendor: String,
    /// Model.
    pub model_name: String,
    /// Architecture (`x86_64`).
    pub architecture: String,
    /// Logical processors.
    pub logical_count: u32,
    /// Physical cores of each processor package.
    pub physical_cores_per_cpu: u32,
}

/// A graphics processor.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Gpu {
    /// Vendor.
    pub vendor: String,
    /// Model.
    pub model_name: String,
}

/// The cloud instance that the host is.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Aws {
    /// Region.
    pub region: String,
    /// Instance type.
    pub instance_type: String,
    /// Instance id.
    pub instance_id: String,
    /// Image id.
    pub image_id: String,
}

/// Figures that change all the time.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct HostLoad {
    /// Memory.
    pub memory: Usage,
    /// Swap.
    pub swap: Usage,
    /// Load averages.
    pub load_average: LoadAverage,
    /// Users logged in outside the broker's sessions.
    pub logged_in_users: Vec<String>,
}

/// Use of a memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Usage {
    /// Size in bytes.
    pub total_bytes: u64,
    /// Used bytes.
    pub used_bytes: u64,
}

/// Load averages in hundredths, as exact as kernels tell them; whole numbers
/// keep the replicated state free of floating point.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct LoadAverage {
    /// Over one minute, in hundredths.
    pub one_minute_hundredths: u32,
    /// Over five minutes, in hundredths.
    pub five_minutes_hundredths: u32,
    /// Over fifteen minutes, in hundredths.
    pub fifteen_minutes_hundredths: u32,
}

/// Whether the host can give desktops at all.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Health {
    /// It can.
    #[default]
    Healthy,
    /// The desktop server does not work; the text says why.
    Unhealthy(String),
    /// Somebody works at the host outside the broker (Windows only).
    InUse,
}
