//! A server: a desktop host with an agent.

use std::ops::Deref;
use std::sync::{Arc, OnceLock};

use serde::{Deserialize, Serialize};

use super::host::{Health, HostFacts, HostLoad};
use super::ids::{AgentInstance, ClientId, Epoch, ReplicaId, ServerId};
use super::requirements::{Property, Subject, Value};
use super::time::{Millis, Timestamp};

/// Shortest time between two events that tell of a server that it is contested:
/// agents on copied hosts try for ever, and must not fill the journal.
pub const CONTEST_INTERVAL: Millis = Millis::from_secs(60);

/// A server as the log knows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Server {
    /// Id, kept by the agent.
    pub id: ServerId,
    /// Facts that seldom change.
    pub facts: Arc<Facts>,
    /// Load as last reported.
    pub load: HostLoad,
    /// Whether it can give desktops.
    pub health: Health,
    /// The connection to its agent.
    pub link: Link,
    /// How often the agent reports.
    pub report_interval: Millis,
    /// When something was last heard of it.
    pub heard_at: Timestamp,
    /// When it first connected.
    pub first_seen_at: Timestamp,
    /// It failed to create a session: until then, others are asked first.
    pub avoided_until: Option<Timestamp>,
    /// When another agent last came with its id while its own was connected,
    /// to within [`CONTEST_INTERVAL`]; a copied host as a rule.
    pub contested_at: Option<Timestamp>,
}

impl Server {
    /// Whether an agent is connected that is another one than this.
    pub fn is_held_by_other(&self, instance: &AgentInstance) -> bool {
        matches!(&self.link, Link::Up { instance: holder, .. } if holder != instance)
    }

    /// Whether it was told that the server is contested so shortly before a
    /// time that it is not told again.
    pub fn is_contest_told(&self, at: Timestamp) -> bool {
        self.contested_at.is_some_and(|told| at < told + CONTEST_INTERVAL)
    }
}

/// A server that an operator closed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Closed {
    /// By whom.
    pub client: ClientId,
    /// Since when.
    pub since: Timestamp,
    /// What becomes of its sessions; they go on without it.
    pub drain: Option<Drain>,
}

/// Sessions of a closed server that end by a deadline.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Drain {
    /// When those that are left are deleted.
    pub deadline: Timestamp,
    /// Whether that was done.
    pub is_over: bool,
}

/// Facts of a host, with room beside them for a form in which they are often
/// read. That form is worked out of the facts by whoever needs it first; it is
/// no part of the state.
#[derive(Serialize, Deserialize)]
#[serde(transparent)]
pub struct Facts {
    host: HostFacts,
    #[serde(skip)]
    form: OnceLock<Box<[u8]>>,
}

impl Facts {
    /// The form that `make` gives, which must depend on the facts alone: it is
    /// asked once.
    pub fn form(&self, make: impl FnOnce(&HostFacts) -> Vec<u8>) -> &[u8] {
        self.form.get_or_init(|| make(&self.host).into_boxed_slice())
    }
}

impl From<HostFacts> for Facts {
    fn from(host: HostFacts) -> Self {
        Self { host, form: OnceLock::new() }
    }
}

impl Deref for Facts {
    type Target = HostFacts;

    fn deref(&self) -> &HostFacts {
        &self.host
    }
}

impl PartialEq for Facts {
    fn eq(&self, other: &Self) -> bool {
        self.host == other.host
    }
}

impl Eq for Facts {}

impl std::fmt::Debug for Facts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.host.fmt(f)
    }
}

/// The connection to an agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Link {
    /// Connected.
    Up {
        /// Number of the connection.
        epoch: Epoch,
        /// Replica that holds it.
        via: ReplicaId,
        /// The run of the agent at its other end.
        instance: AgentInstance,
    },
    /// The connection broke a moment ago: nothing new is placed there, its
    /// sessions still count as reachable.
    Interrupted {
        /// Number of the connection that broke.
        epoch: Epoch,
    },
    /// Silent for longer than three reports: its sessions are UNKNOWN.
    Lost {
        /// Number of the last connection.
        epoch: Epoch,
        /// Since when.
        since: Timestamp,
        /// The replica that held the connection and the agent's run, if it did
        /// not break: a word from the agent brings the server back.
        via: Option<(ReplicaId, AgentInstance)>,
    },
}

impl Link {
    /// Number of the current or last connection.
    pub const fn epoch(&self) -> Epoch {
        match self {
            Self::Up { epoch, .. } | Self::Interrupted { epoch } | Self::Lost { epoch, .. } => *epoch,
        }
    }

    /// The replica whose connection to the agent did not break, heard or not.
    pub const fn held_by(&self) -> Option<ReplicaId> {
        match self {
            Self::Up { via, .. } | Self::Lost { via: Some((via, _)), .. } => Some(*via),
            Self::Interrupted { .. } | Self::Lost { via: None, .. } => None,
        }
    }

    /// Whether an agent is connected.
    pub const fn is_up(&self) -> bool {
        matches!(self, Self::Up { .. })
    }

    /// Whether the agent counts as gone.
    pub const fn is_lost(&self) -> bool {
        matches!(self, Self::Lost { .. })
    }
}

/// Why no session is placed on a server. The names are those of the API.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Unavailability {
    /// No further session fits.
    ServerFull,
    /// An operator closed it.
    ServerClosed,
    /// Its agent is not connected.
    UnreachableAgent,
    /// Its desktop server does not work.
    UnhealthyDcvServer,
    /// Somebody works at it outside the broker.
    ExistingLoggedInUser,
    /// The connection to its agent broke a moment ago; how it fares is not
    /// known until the agent is back, or counts as gone.
    Unknown,
}

impl Subject for Server {
    fn tag(&self, key: &str) -> Option<&str> {
        self.facts.tags.get(key).map(String::as_str)
    }

    fn property(&self, property: Property) -> Option<Value<'_>> {
        let facts = &*self.facts;
        let aws = facts.aws.as_ref();
        match property {
            Property::Id => Some(Value::Text(self.id.as_str())),
            Property::Hostname => text(&facts.hostname),
            Property::Version => text(&facts.desktop_version),
            Property::SessionManagerAgentVersion => text(&facts.agent_version),
            Property::OsBuildNumber => facts.os.build_number.as_deref().map(Value::Text),
            Property::OsFamily => Some(Value::Text(facts.os.family.as_str())),
            Property::OsKernelVersion => facts.os.kernel_version.as_deref().map(Value::Text),
            Property::OsName => text(&facts.os.name),
            Property::OsVersion => text(&facts.os.version),
            Property::MemoryTotalBytes => Some(Value::Integer(self.load.memory.total_bytes)),
            Property::MemoryUsedBytes => Some(Value::Integer(self.load.memory.used_bytes)),
            Property::SwapTotalBytes => Some(Value::Integer(self.load.swap.total_bytes)),
            Property::SwapUsedBytes => Some(Value::Integer(self.load.swap.used_bytes)),
            Property::CpuLoadAverageOneMinute => Some(load(self.load.load_average.one_minute_hundredths)),
            Property::CpuLoadAverageFiveMinutes => Some(load(self.load.load_average.five_minutes_hundredths)),
            Property::CpuLoadAverageFifteenMinutes => Some(load(self.load.load_average.fifteen_minutes_hundredths)),
            Property::AwsEc2InstanceId => aws.and_then(|aws| text(&aws.instance_id)),
            Property::AwsEc2InstanceType => aws.and_then(|aws| text(&aws.instance_type)),
            Property::AwsRegion => aws.and_then(|aws| text(&aws.region)),
            Property::AwsEc2ImageId => aws.and_then(|aws| text(&aws.image_id)),
            Property::CpuArchitecture => text(&facts.cpu.architecture),
            Property::CpuModelName => text(&facts.cpu.model_name),
            Property::CpuNumberOfCpus => Some(Value::Integer(u64::from(facts.cpu.logical_count))),
            Property::CpuPhysicalCoresPerCpu => Some(Value::Integer(u64::from(facts.cpu.physical_cores_per_cpu))),
            Property::CpuVendor => text(&facts.cpu.vendor),
        }
    }
}

/// An agent that does not know a text leaves it empty.
fn text(text: &str) -> Option<Value<'_>> {
    (!text.is_empty()).then_some(Value::Text(text))
}

fn load(hundredths: u32) -> Value<'static> {
    Value::Real(f64::from(hundredths) / 100.0)
}
