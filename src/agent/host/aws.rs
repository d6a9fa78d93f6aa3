//! The cloud instance that the host is, as far as its firmware and its own
//! start-up records tell. No network is asked.

use crate::domain::host::Aws;

use super::Host;

/// What the firmware of an EC2 instance says of its maker.
const EC2_VENDOR: &str = "Amazon EC2";

pub(super) fn read(host: &Host) -> Option<Aws> {
    let firmware = |name: &str| host.line(&format!("sys/devices/virtual/dmi/id/{name}"));
    if firmware("sys_vendor")? != EC2_VENDOR {
        return None;
    }
    // cloud-init keeps what the instance was told of itself at its start.
    let record: serde_json::Value =
        serde_json::from_str(&host.text("run/cloud-init/instance-data.json")).unwrap_or_default();
    let told = |pointer: &str| record.pointer(pointer).and_then(serde_json::Value::as_str).map(str::to_owned);
    Some(Aws {
        region: told("/v1/region").unwrap_or_default(),
        instance_type: firmware("product_name").unwrap_or_default(),
        // Nitro instances carry their id as the board's asset tag.
        instance_id: firmware("board_asset_tag")
            .filter(|tag| tag.starts_with("i-"))
            .or_else(|| told("/v1/instance_id"))
            .unwrap_or_default(),
        image_id: told("/ds/meta_data/ami-id").or_else(|| told("/ds/meta_data/ami_id")).unwrap_or_default(),
    })
}

#[cfg(test)]
mod tests {
    use super::super::fixture;
    use super::*;

    const DMI: &str = "sys/devices/virtual/dmi/id";

    #[test]
    fn an_instance_is_known_by_its_firmware() {
        let (_folder, host) = fixture::host(&[
            (&format!("{DMI}/sys_vendor"), "Amazon EC2\n"),
            (&format!("{DMI}/product_name"), "g5.xlarge\n"),
            (&format!("{DMI}/board_asset_tag"), "i-0abc\n"),
            ("run/cloud-init/instance-data.json", r#"{"v1":{"region":"eu-west-1"}}"#),
        ]);
        let aws = read(&host).expect("an instance");
        assert_eq!((aws.instance_type.as_str(), aws.instance_id.as_str()), ("g5.xlarge", "i-0abc"));
        assert_eq!((aws.region.as_str(), aws.image_id.as_str()), ("eu-west-1", ""));
    }

    #[test]
    fn another_machine_is_no_instance() {
        let (_folder, host) = fixture::host(&[(&format!("{DMI}/sys_vendor"), "QEMU\n")]);
        assert_eq!(read(&host), None);
    }
}
