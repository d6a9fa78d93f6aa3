//! A network for tests: hosts in network namespaces, with addresses of their
//! own, and everything that can go wrong between them.
//!
//! - [`cut`]: who does not hear whom. Done with nftables in the hosts, without
//!   connection tracking, so that connections that stand are hit as well.
//! - [`weather`]: delay, loss, doubling and reordering of packets, done by
//!   [`switch`], a switch in user space.
//! - [`namespace`]: what belongs to a host, and what runs there.
//!
//! Needs root, `ip`, `nft` and, for the switch, `/dev/net/tun` and `python3`;
//! whatever is missing is an error that says so, never a test that is skipped.
//! A lab removes everything it has made when it is dropped, and what a killed
//! test has left when the next one is made.

pub mod cut;
pub mod namespace;
pub mod switch;
mod tun;
pub mod weather;

use std::net::Ipv4Addr;
use std::process::{Child, Command};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use anyhow::{Context, bail, ensure};

use crate::random::Random;
use cut::{Cut, HostId};
use namespace::{Namespace, run};
use switch::Switch;
use tun::CARD;
use weather::Climate;

/// Most hosts of a lab.
const HOSTS_MAX: usize = 64;

/// What connects the hosts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wiring {
    /// A bridge of the kernel, in a namespace of its own: fast, always fair.
    Bridge,
    /// The switch in user space: weather.
    Switch,
}

/// A machine of a lab, as far as its network is concerned.
#[derive(Debug)]
pub struct Host {
    id: HostId,
    name: String,
    address: Ipv4Addr,
    namespace: Namespace,
}

impl Host {
    /// Its number.
    pub const fn id(&self) -> HostId {
        self.id
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its address.
    pub const fn address(&self) -> Ipv4Addr {
        self.address
    }

    /// Starts a process there.
    pub fn spawn(&self, command: &mut Command) -> anyhow::Result<Child> {
        self.namespace.spawn(command)
    }

    /// Does something there on a thread of its own, and waits for its end. All
    /// threads that it starts are there, too: a tokio runtime that is made there
    /// has its connections there.
    pub fn inside<T: Send>(&self, work: impl FnOnce() -> anyhow::Result<T> + Send) -> anyhow::Result<T> {
        self.namespace.inside(work)
    }

    /// Moves the calling thread there for good.
    pub fn enter(&self) -> anyhow::Result<()> {
        self.namespace.enter()
    }
}

/// A network of hosts.
#[derive(Debug)]
pub struct Lab {
    // In this order: without the switch first, it would wait for its cards.
    switch: Option<Switch>,
    hosts: Vec<Arc<Host>>,
    /// Goes with the lab.
    #[allow(dead_code)] // held, never looked at
    hub: Option<Namespace>,
    /// Packets that cuts dropped which are over.
    dropped: AtomicU64,
    is_cut: AtomicBool,
}

impl Lab {
    /// Makes hosts with these names, which hear each other. `random` decides the
    /// fates of packets.
    pub fn new(names: &[&str], wiring: Wiring, random: Random) -> anyhow::Result<Self> {
        static LABS: AtomicU32 = AtomicU32::new(0);
        ensure!(names.len() <= HOSTS_MAX, "a lab has at most {HOSTS_MAX} hosts");
        ensure!(rustix::process::geteuid().is_root(), "a lab needs root: it makes network namespaces");
        namespace::remove_left_over()?;
        let lab = LABS.fetch_add(1, Ordering::Relaxed);
        let mut hosts = Vec::new();
        for (number, name) in names.iter().enumerate() {
            let last = u8::try_from(number + 1).context("too many hosts")?;
            hosts.push(Arc::new(Host {
                id: HostId(number),
                name: (*name).to_owned(),
                address: Ipv4Addr::new(10, 47, 0, last),
                namespace: Namespace::create(lab, name)?,
            }));
        }
        let mut made =
            Self { switch: None, hosts, hub: None, dropped: AtomicU64::new(0), is_cut: AtomicBool::new(false) };
        match wiring {
            Wiring::Bridge => made.hub = Some(made.connect_by_bridge(lab)?),
            Wiring::Switch => made.switch = Some(made.connect_by_switch(random)?),
        }
        Ok(made)
    }

    /// A host by its number.
    pub fn host(&self, id: HostId) -> &Arc<Host> {
        &self.hosts[id.0]
    }

    /// All hosts.
    pub fn hosts(&self) -> &[Arc<Host>] {
        &self.hosts
    }

    /// A host by its name.
    pub fn named(&self, name: &str) -> anyhow::Result<&Arc<Host>> {
        self.hosts.iter().find(|host| host.name == name).with_context(|| format!("no host {name} in the lab"))
    }

    /// From now on exactly these paths are cut.
    pub fn cut(&self, cut: &Cut) -> anyhow::Result<()> {
        if self.is_cut.swap(!cut.is_whole(), Ordering::Relaxed) {
            self.dropped.fetch_add(self.dropped_now()?, Ordering::Relaxed);
        }
        for host in &self.hosts {
            let unheard: Vec<String> = cut.unheard_by(host.id).map(|id| self.host(id).address.to_string()).collect();
            host.namespace
                .run(Command::new("nft").args(["-f", "-"]), &rules(&unheard))
                .with_context(|| format!("{} cannot be cut off", host.name))?;
        }
        Ok(())
    }

    /// How many packets were dropped so far because a path was cut.
    pub fn dropped(&self) -> anyhow::Result<u64> {
        let now = if self.is_cut.load(Ordering::Relaxed) { self.dropped_now()? } else { 0 };
        Ok(self.dropped.load(Ordering::Relaxed) + now)
    }

    /// Those of the cut that is in force.
    fn dropped_now(&self) -> anyhow::Result<u64> {
        let mut dropped = 0;
        for host in &self.hosts {
            let output = host.namespace.run(Command::new("nft").args(["list", "ruleset"]), "")?;
            dropped += dropped_by(&String::from_utf8_lossy(&output.stdout));
        }
        Ok(dropped)
    }

    /// Nothing is cut any more.
    pub fn heal(&self) -> anyhow::Result<()> {
        self.cut(&Cut::none())
    }

    /// The switch, where there is one.
    pub fn switch(&self) -> anyhow::Result<&Switch> {
        match &self.switch {
            Some(switch) => Ok(switch),
            None => bail!("this lab is wired by a bridge, which is always fair"),
        }
    }

    /// Fair weather everywhere, and nothing is cut.
    pub fn clear_up(&self) -> anyhow::Result<()> {
        if let Some(switch) = &self.switch {
            switch.set(Climate::default());
        }
        self.heal()
    }

    fn connect_by_switch(&self, random: Random) -> anyhow::Result<Switch> {
        let mut cards = Vec::new();
        for host in &self.hosts {
            let card = tun::make(&host.namespace)?;
            bring_up(host)?;
            cards.push((host.address, card));
        }
        Switch::start(cards, random)
    }

    fn connect_by_bridge(&self, lab: u32) -> anyhow::Result<Namespace> {
        let hub = Namespace::create(lab, "hub")?;
        hub.ip(&["link", "add", "bridge", "type", "bridge"])?;
        hub.ip(&["link", "set", "bridge", "up"])?;
        for host in &self.hosts {
            let port = format!("port{}", host.id.0);
            run(Command::new("ip")
                .args(["link", "add", CARD, "netns", host.namespace.name(), "type", "veth"])
                .args(["peer", "name", &port, "netns", hub.name()]))?;
            hub.ip(&["link", "set", &port, "master", "bridge", "up"])?;
            bring_up(host)?;
        }
        Ok(hub)
    }
}

fn bring_up(host: &Host) -> anyhow::Result<()> {
    host.namespace.ip(&["address", "add", &format!("{}/24", host.address), "dev", CARD])?;
    host.namespace.ip(&["link", "set", CARD, "up"])
}

/// The rules of a host that does not hear some others. Dropped where they
/// arrive, so that the sender notices nothing, as on a broken line.
fn rules(unheard: &[String]) -> String {
    // Naming the table first makes deleting it right when there is none.
    let mut rules = "table ip lab\ndelete table ip lab\n".to_owned();
    if !unheard.is_empty() {
        rules.push_str("table ip lab {\n chain arriving {\n  type filter hook input priority -300;\n");
        rules.push_str("  ip saddr { ");
        rules.push_str(&unheard.join(", "));
        rules.push_str(" } counter drop\n }\n}\n");
    }
    rules
}

/// What a listing of a host's rules says that they dropped.
fn dropped_by(listing: &str) -> u64 {
    let counts = listing.lines().filter_map(|line| line.split_once("counter packets ")?.1.split(' ').next());
    counts.filter_map(|count| count.parse::<u64>().ok()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rules_of_a_whole_network_are_none() {
        assert_eq!(rules(&[]), "table ip lab\ndelete table ip lab\n");
        let rules = rules(&["10.47.0.1".to_owned(), "10.47.0.2".to_owned()]);
        assert!(rules.contains("ip saddr { 10.47.0.1, 10.47.0.2 } counter drop"), "{rules}");
    }

    #[test]
    fn dropped_packets_are_counted() {
        let listing = "table ip lab {\n\tchain arriving {\n\t\tip saddr { 10.47.0.1 } counter packets 27 bytes 1404 drop\n\t}\n}\n";
        assert_eq!(dropped_by(listing), 27);
        assert_eq!(dropped_by(""), 0);
    }
}
