//! A server as answers show it.

use super::{KeyValuePair, integer, object};

object! {
    /// A desktop host.
    Server {
        /// Id of the server.
        id: String,
        /// Address of the server.
        ip: String,
        /// Host name of the server.
        hostname: String,
        /// Full DNS name of the server.
        default_dns_name: String,
        /// Port of the first HTTP endpoint, as text. Endpoints takes its place.
        port: String,
        /// Where the desktop server listens.
        endpoints: Vec<Endpoint>,
        /// Path prefix of the web client.
        web_url_path: String,
        /// Version of the desktop server.
        version: String,
        /// Version of the agent.
        session_manager_agent_version: String,
        /// AVAILABLE or UNAVAILABLE.
        availability: String,
        /// Why it is UNAVAILABLE.
        unavailability_reason: String,
        /// Console sessions on it.
        console_session_count: i32,
        /// Virtual sessions on it.
        virtual_session_count: i32,
        /// The machine.
        host: Host,
        /// Tags of the server.
        tags: Vec<KeyValuePair>,
    }
}

object! {
    /// A place where a desktop server listens.
    Endpoint {
        /// Address.
        ip_address: String,
        /// Port.
        #[schema(schema_with = integer)]
        port: u16,
        /// Path prefix of the web client.
        web_url_path: String,
        /// HTTP or QUIC.
        protocol: String,
    }
}

object! {
    /// The machine on which a desktop server runs.
    Host {
        /// Its operating system.
        os: Os,
        /// Its memory.
        memory: Memory,
        /// Its swap space.
        swap: Swap,
        /// The cloud instance that it is.
        aws: Aws,
        /// Its processors.
        cpu_info: CpuInfo,
        /// Load of its processors.
        cpu_load_average: CpuLoadAverage,
        /// Its graphics processors.
        gpus: Vec<Gpu>,
        /// Users who are logged in.
        logged_in_users: Vec<LoggedInUser>,
    }
}

object! {
    /// An operating system.
    Os {
        /// Family: linux, windows or macos.
        family: String,
        /// Name.
        name: String,
        /// Version.
        version: String,
        /// Version of the kernel (Linux).
        kernel_version: String,
        /// Build number (Windows).
        build_number: String,
    }
}

object! {
    /// Use of the memory.
    Memory {
        /// Size in bytes.
        total_bytes: i64,
        /// Used bytes.
        used_bytes: i64,
    }
}

object! {
    /// Use of the swap space.
    Swap {
        /// Size in bytes.
        total_bytes: i64,
        /// Used bytes.
        used_bytes: i64,
    }
}

object! {
    /// Processors.
    CpuInfo {
        /// Vendor.
        vendor: String,
        /// Model.
        model_name: String,
        /// Architecture.
        architecture: String,
        /// Logical processors.
        #[schema(schema_with = integer)]
        number_of_cpus: u32,
        /// Physical cores of each processor.
        #[schema(schema_with = integer)]
        physical_cores_per_cpu: u32,
    }
}

object! {
    /// Load of the processors.
    CpuLoadAverage {
        /// Over one minute.
        #[schema(value_type = f32)]
        one_minute: f64,
        /// Over five minutes.
        #[schema(value_type = f32)]
        five_minutes: f64,
        /// Over fifteen minutes.
        #[schema(value_type = f32)]
        fifteen_minutes: f64,
    }
}

object! {
    /// A graphics processor.
    Gpu {
        /// Vendor.
        vendor: String,
        /// Model.
        model_name: String,
    }
}

object! {
    /// A user who is logged in.
    LoggedInUser {
        /// Name of the user.
        username: String,
    }
}

object! {
    /// A cloud instance.
    Aws {
        /// Region.
        region: String,
        /// Instance type.
        #[serde(rename = "EC2InstanceType")]
        ec2_instance_type: String,
        /// Instance id.
        #[serde(rename = "EC2InstanceId")]
        ec2_instance_id: String,
        /// Image id.
        #[serde(rename = "EC2ImageId")]
        ec2_image_id: String,
    }
}
