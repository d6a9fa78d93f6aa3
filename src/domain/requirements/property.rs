//! The server properties that an expression may name.

use std::fmt;
use std::str::FromStr;

/// A property of a server, written `server:NAME`. The names are those of the compatible API's
/// requirements, which differ from its answers in one spelling: `Ec2InstanceId` here, `EC2InstanceId`
/// there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Property {
    /// `Id`: the server's id, a text.
    Id,
    /// `Hostname`, a text.
    Hostname,
    /// `Version` of the desktop server software, a text.
    Version,
    /// `SessionManagerAgentVersion`, a text.
    SessionManagerAgentVersion,
    /// `Host.Os.BuildNumber`, a text.
    OsBuildNumber,
    /// `Host.Os.Family` such as `linux` or `windows`, a text.
    OsFamily,
    /// `Host.Os.KernelVersion`, a text.
    OsKernelVersion,
    /// `Host.Os.Name`, a text.
    OsName,
    /// `Host.Os.Version`, a text.
    OsVersion,
    /// `Host.Memory.TotalBytes`, an integer.
    MemoryTotalBytes,
    /// `Host.Memory.UsedBytes`, an integer.
    MemoryUsedBytes,
    /// `Host.Swap.TotalBytes`, an integer.
    SwapTotalBytes,
    /// `Host.Swap.UsedBytes`, an integer.
    SwapUsedBytes,
    /// `Host.CpuLoadAverage.OneMinute`, a number.
    CpuLoadAverageOneMinute,
    /// `Host.CpuLoadAverage.FiveMinutes`, a number.
    CpuLoadAverageFiveMinutes,
    /// `Host.CpuLoadAverage.FifteenMinutes`, a number.
    CpuLoadAverageFifteenMinutes,
    /// `Host.Aws.Ec2InstanceId`, a text.
    AwsEc2InstanceId,
    /// `Host.Aws.Ec2InstanceType`, a text.
    AwsEc2InstanceType,
    /// `Host.Aws.Region`, a text.
    AwsRegion,
    /// `Host.Aws.Ec2ImageId`, a text.
    AwsEc2ImageId,
    /// `Host.CpuInfo.Architecture`, a text.
    CpuArchitecture,
    /// `Host.CpuInfo.ModelName`, a text.
    CpuModelName,
    /// `Host.CpuInfo.NumberOfCpus`, an integer.
    CpuNumberOfCpus,
    /// `Host.CpuInfo.PhysicalCoresPerCpu`, an integer.
    CpuPhysicalCoresPerCpu,
    /// `Host.CpuInfo.Vendor`, a text.
    CpuVendor,
}

impl Property {
    /// Every property.
    pub const ALL: [Self; 25] = [
        Self::Id,
        Self::Hostname,
        Self::Version,
        Self::SessionManagerAgentVersion,
        Self::OsBuildNumber,
        Self::OsFamily,
        Self::OsKernelVersion,
        Self::OsName,
        Self::OsVersion,
        Self::MemoryTotalBytes,
        Self::MemoryUsedBytes,
        Self::SwapTotalBytes,
        Self::SwapUsedBytes,
        Self::CpuLoadAverageOneMinute,
        Self::CpuLoadAverageFiveMinutes,
        Self::CpuLoadAverageFifteenMinutes,
        Self::AwsEc2InstanceId,
        Self::AwsEc2InstanceType,
        Self::AwsRegion,
        Self::AwsEc2ImageId,
        Self::CpuArchitecture,
        Self::CpuModelName,
        Self::CpuNumberOfCpus,
        Self::CpuPhysicalCoresPerCpu,
        Self::CpuVendor,
    ];

    /// The name as it is written behind `server:`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Id => "Id",
            Self::Hostname => "Hostname",
            Self::Version => "Version",
            Self::SessionManagerAgentVersion => "SessionManagerAgentVersion",
            Self::OsBuildNumber => "Host.Os.BuildNumber",
            Self::OsFamily => "Host.Os.Family",
            Self::OsKernelVersion => "Host.Os.KernelVersion",
            Self::OsName => "Host.Os.Name",
            Self::OsVersion => "Host.Os.Version",
            Self::MemoryTotalBytes => "Host.Memory.TotalBytes",
            Self::MemoryUsedBytes => "Host.Memory.UsedBytes",
            Self::SwapTotalBytes => "Host.Swap.TotalBytes",
            Self::SwapUsedBytes => "Host.Swap.UsedBytes",
            Self::CpuLoadAverageOneMinute => "Host.CpuLoadAverage.OneMinute",
            Self::CpuLoadAverageFiveMinutes => "Host.CpuLoadAverage.FiveMinutes",
            Self::CpuLoadAverageFifteenMinutes => "Host.CpuLoadAverage.FifteenMinutes",
            Self::AwsEc2InstanceId => "Host.Aws.Ec2InstanceId",
            Self::AwsEc2InstanceType => "Host.Aws.Ec2InstanceType",
            Self::AwsRegion => "Host.Aws.Region",
            Self::AwsEc2ImageId => "Host.Aws.Ec2ImageId",
            Self::CpuArchitecture => "Host.CpuInfo.Architecture",
            Self::CpuModelName => "Host.CpuInfo.ModelName",
            Self::CpuNumberOfCpus => "Host.CpuInfo.NumberOfCpus",
            Self::CpuPhysicalCoresPerCpu => "Host.CpuInfo.PhysicalCoresPerCpu",
            Self::CpuVendor => "Host.CpuInfo.Vendor",
        }
    }

    /// Whether the value is a text. All others are numbers.
    pub const fn is_text(self) -> bool {
        !self.is_load() && !matches!(self, Self::CpuNumberOfCpus | Self::CpuPhysicalCoresPerCpu)
    }

    /// Whether the value comes with the load that an agent reports again and again, total sizes
    /// included. All others are facts, which seldom change.
    pub const fn is_load(self) -> bool {
        matches!(
            self,
            Self::MemoryTotalBytes
                | Self::MemoryUsedBytes
                | Self::SwapTotalBytes
                | Self::SwapUsedBytes
                | Self::CpuLoadAverageOneMinute
                | Self::CpuLoadAverageFiveMinutes
                | Self::CpuLoadAverageFifteenMinutes
        )
    }

    /// The property whose name differs from `name` at most in case: the likely mistake.
    pub(super) fn similar_to(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|property| property.as_str().eq_ignore_ascii_case(name))
    }
}

impl fmt::Display for Property {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A name that is no property's; case matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("no server property of that name; the names are case-sensitive and stand in docs/requirements.md")]
pub struct UnknownProperty;

impl FromStr for Property {
    type Err = UnknownProperty;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        Self::ALL.into_iter().find(|property| property.as_str() == name).ok_or(UnknownProperty)
    }
}
