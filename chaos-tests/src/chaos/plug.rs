//! How replicas of the binary under test find each other, and what operators
//! may ask of them. Everything here is text that operators write or read.

use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use anyhow::Context;
use serde_json::Value;

use crate::process::Broker;
use crate::random::Random;

/// Port for API clients.
pub const CLIENTS_PORT: u16 = 8443;
/// Port for agents.
pub const AGENTS_PORT: u16 = 8445;
/// Port between replicas.
const PEERS_PORT: u16 = 47_100;
/// Often, so that a replica that was away needs one.
pub const SNAPSHOT_AFTER_ENTRIES: u64 = 300;

/// What every replica is told beside the others' addresses. Nothing ends by
/// itself: what was ever acknowledged must be seen for ever, and a clock that
/// jumps must not end anything either.
fn common() -> String {
    format!(
        "tokens.access_seconds = 86400\ncluster.snapshot_after_entries = {SNAPSHOT_AFTER_ENTRIES}\n\
         cluster.request_timeout_seconds = 5\nsessions.deleted_retention_seconds = 31536000\n\
         sessions.prepare_timeout_seconds = 86400\nsessions.delete_timeout_seconds = 86400\n\
         sessions.queue_timeout_seconds = 31536000\nsessions.lost_server_retention_seconds = 31536000\n\
         journal.records_max = 10000000\njournal.bytes_max = 4294967296\n"
    )
}

/// Settings of a replica that forms a cluster with others, by their numbers.
pub fn forming(replica: u64, members: &[(u64, Ipv4Addr)], secret: &Path) -> String {
    let members: Vec<String> = members
        .iter()
        .map(|(number, address)| format!("{{ replica = {number}, address = '{address}:{PEERS_PORT}' }}"))
        .collect();
    format!(
        "replica = {replica}\n{}cluster.members = [{}]\ncluster.secret_file = '{}'\n",
        common(),
        members.join(", "),
        secret.display()
    )
}

/// Settings of a replica that joins a cluster.
pub fn joining(address: Ipv4Addr) -> String {
    format!("{}cluster.address = '{address}:{PEERS_PORT}'\n", common())
}

/// Writes a cluster's secret.
pub fn write_secret(path: &Path, random: &mut Random) -> anyhow::Result<()> {
    use std::io::Write;
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    // 256 bits: of the last digit only some count.
    let digits = (0..42).map(|_| char::from(ALPHABET[usize::try_from(random.below(64)).unwrap_or_default()]));
    let text: String = digits.chain(['A']).collect();
    let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    Ok(file.write_all(text.as_bytes())?)
}

/// Lines of an agent's configuration that name all brokers.
pub fn brokers(addresses: &[SocketAddr]) -> String {
    let quoted: Vec<String> = addresses.iter().map(|address| format!("'{address}'")).collect();
    format!("brokers = [{}]\n", quoted.join(", "))
}

/// The cluster as one replica sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct View {
    /// Number of the replica that was asked.
    pub replica: u64,
    /// Who leads.
    pub leader: Option<u64>,
    /// In which term.
    pub term: u64,
    /// The last entry that it has applied.
    pub applied: u64,
    /// Members that vote.
    pub voters: Vec<u64>,
    /// Members that do not vote yet, and replicas that were let in.
    pub others: Vec<u64>,
    /// Replicas that came to another state from the same log.
    pub different: Vec<u64>,
    /// The authority of the certificates that replicas show.
    pub authority: u64,
}

/// Asks a replica.
pub fn view(broker: &Broker) -> anyhow::Result<View> {
    let printed = broker.operator(&["cluster", "status", "--json"])?;
    parse(&serde_json::from_str(&printed).with_context(|| format!("no JSON: {printed}"))?)
}

fn parse(view: &Value) -> anyhow::Result<View> {
    let number = |value: &Value| value.as_u64();
    let members = view["members"].as_array().context("no members")?;
    let of_members = |votes: bool| {
        let members = members.iter().filter(move |member| (member["is_voter"] == true) == votes);
        members.filter_map(|member| number(&member["replica"]))
    };
    let list = |value: &Value| value.as_array().into_iter().flatten().filter_map(Value::as_u64).collect::<Vec<_>>();
    Ok(View {
        replica: number(&view["replica"]).context("no replica")?,
        leader: number(&view["leader"]),
        term: number(&view["term"]).unwrap_or_default(),
        applied: number(&view["applied"]).unwrap_or_default(),
        voters: of_members(true).collect(),
        others: of_members(false).chain(list(&view["joining"])).collect(),
        different: list(&view["checkpoint"]["different"]),
        authority: number(&view["authority"]).unwrap_or_default(),
    })
}

/// Has another replica lead: a named one, or whichever is best.
pub fn hand_over(through: &Broker, to: Option<u64>) -> anyhow::Result<()> {
    let to = to.map(|to| to.to_string());
    let arguments: Vec<&str> = ["cluster", "transfer-leader"].into_iter().chain(to.as_deref()).collect();
    through.operator(&arguments).map(drop)
}

/// Has all replicas show certificates of another authority.
pub fn rotate(through: &Broker) -> anyhow::Result<()> {
    through.operator(&["cluster", "rotate-certificates"]).map(drop)
}

/// Removes a replica for good.
pub fn remove(through: &Broker, number: u64) -> anyhow::Result<()> {
    through.operator(&["cluster", "remove", &number.to_string()]).map(drop)
}

/// Has a replica with an empty folder join, in the place of another one that is
/// gone, or beside those that are there; its number.
pub fn join(through: &Broker, gone: Option<u64>, new: &Broker, address: Ipv4Addr, token: &Path) -> anyhow::Result<u64> {
    let gone = gone.map(|gone| gone.to_string());
    let replaced = gone.as_deref().map(|gone| ["--replace", gone]);
    let arguments: Vec<&str> = ["cluster", "add"].into_iter().chain(replaced.into_iter().flatten()).collect();
    let printed = through.operator(&arguments)?;
    std::fs::write(token, printed)?;
    new.configure(&joining(address))?;
    let printed = new.prepare(&["cluster", "join"], Some(token))?;
    let number = printed.lines().find_map(|line| line.strip_prefix("replica: ")).context("no number was given")?;
    Ok(number.trim().parse()?)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use serde_json::json;

    use super::*;

    #[test]
    fn a_view_is_read() {
        let view = json!({
            "cluster": "c", "replica": 2, "leader": 1, "term": 7, "applied": 90, "authority": 3,
            "members": [{ "replica": 1, "is_voter": true }, { "replica": 2, "is_voter": true }, { "replica": 5, "is_voter": false }],
            "joining": [6],
            "checkpoint": { "index": 64, "same": [1], "different": [9] }
        });
        let read = parse(&view).unwrap();
        assert_eq!((read.replica, read.leader, read.term, read.applied), (2, Some(1), 7, 90));
        assert_eq!((read.voters, read.others, read.different), (vec![1, 2], vec![5, 6], vec![9]));
        assert_eq!(read.authority, 3);
        let early = parse(&json!({ "replica": 2, "leader": null, "members": [], "checkpoint": null })).unwrap();
        assert_eq!((early.leader, early.different.len()), (None, 0));
    }
}
