//! The lab cuts what it says, and nothing else, and heals; its switch does to
//! packets what the weather says.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, ensure};
use berth_chaos_tests::lab::cut::{Cut, HostId};
use berth_chaos_tests::lab::weather::{Climate, Weather};
use berth_chaos_tests::lab::{Host, Lab, Wiring};
use berth_chaos_tests::random::Random;

const PORT: u16 = 7;
/// How long what must come may take.
const LIMIT: Duration = Duration::from_secs(30);
/// How long an answer over a path that is cut is waited for. On a whole one it
/// comes a thousand times as fast.
const SILENCE: Duration = Duration::from_millis(250);

/// Answers every byte with itself, until the lab is gone.
fn echo(host: &Arc<Host>) -> anyhow::Result<()> {
    let listener = host.inside(|| Ok(TcpListener::bind((host.address(), PORT))?))?;
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            std::thread::spawn(move || {
                let mut back = &stream;
                std::io::copy(&mut &stream, &mut back)
            });
        }
    });
    Ok(())
}

/// A connection from one host to the echo of another.
struct Line {
    from: HostId,
    to: HostId,
    stream: TcpStream,
    sent: u8,
    heard: u8,
}

impl Line {
    fn open(from: &Host, to: &Host) -> anyhow::Result<Self> {
        let address = SocketAddr::from((to.address(), PORT));
        let stream = from.inside(|| Ok(TcpStream::connect_timeout(&address, LIMIT)?))?;
        stream.set_nodelay(true)?;
        Ok(Self { from: from.id(), to: to.id(), stream, sent: 0, heard: 0 })
    }

    fn send(&mut self) -> anyhow::Result<()> {
        self.sent = self.sent.wrapping_add(1);
        Ok(self.stream.write_all(&[self.sent])?)
    }

    /// Reads the next answer, which must be the right one; false when none comes.
    fn hears_within(&mut self, limit: Duration) -> anyhow::Result<bool> {
        self.stream.set_read_timeout(Some(limit))?;
        let mut byte = [0];
        match self.stream.read_exact(&mut byte) {
            Ok(()) => {
                self.heard = self.heard.wrapping_add(1);
                ensure!(byte[0] == self.heard, "{} came instead of {}", byte[0], self.heard);
                Ok(true)
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    fn hears_all(&mut self) -> anyhow::Result<()> {
        while self.heard != self.sent {
            ensure!(self.hears_within(LIMIT)?, "no answer from {:?} to {:?}", self.to, self.from);
        }
        Ok(())
    }
}

fn three(wiring: Wiring, seed: u64) -> anyhow::Result<Lab> {
    let lab = Lab::new(&["a", "b", "c"], wiring, Random::new(seed))?;
    lab.hosts().iter().try_for_each(echo)?;
    Ok(lab)
}

fn all_lines(lab: &Lab) -> anyhow::Result<Vec<Line>> {
    let hosts = lab.hosts();
    let pairs = hosts.iter().flat_map(|from| hosts.iter().map(move |to| (from, to)));
    pairs.filter(|(from, to)| from.id() != to.id()).map(|(from, to)| Line::open(from, to)).collect()
}

/// Connections that stand fall silent exactly where `cut` says, and speak again
/// afterwards.
fn check(lab: &Lab, lines: &mut [Line], cut: &Cut) -> anyhow::Result<()> {
    lab.cut(cut)?;
    for line in &mut *lines {
        line.send()?;
    }
    for line in &mut *lines {
        // An answer needs both directions.
        let is_cut = cut.separates(line.from, line.to) || cut.separates(line.to, line.from);
        let limit = if is_cut { SILENCE } else { LIMIT };
        let heard = line.hears_within(limit)?;
        ensure!(heard != is_cut, "{:?} to {:?}: heard {heard} under {cut:?}", line.from, line.to);
    }
    lab.heal()?;
    lines.iter_mut().try_for_each(Line::hears_all).with_context(|| format!("after {cut:?} was healed"))
}

fn every_cut(wiring: Wiring) -> anyhow::Result<()> {
    let lab = three(wiring, 1)?;
    let mut lines = all_lines(&lab)?;
    let all: Vec<HostId> = lab.hosts().iter().map(|host| host.id()).collect();
    let (a, b, c) = (all[0], all[1], all[2]);
    for cut in [
        Cut::none(),
        Cut::one_off(b, &all),
        Cut::halves(&[a, b], &[c]),
        Cut::ring(&all),
        Cut::one_way(a, b),
        Cut::one_way(a, b).and(&Cut::one_way(b, c)),
        Cut::halves(&all, &all),
    ] {
        check(&lab, &mut lines, &cut)?;
    }
    Ok(())
}

#[test]
fn every_kind_of_cut_cuts_and_heals_on_a_bridge() -> anyhow::Result<()> {
    every_cut(Wiring::Bridge)
}

#[test]
fn every_kind_of_cut_cuts_and_heals_on_a_switch() -> anyhow::Result<()> {
    every_cut(Wiring::Switch)
}

/// Sends one datagram.
fn send(socket: &UdpSocket, to: Ipv4Addr, number: u8) -> anyhow::Result<()> {
    socket.send_to(&[number], (to, PORT))?;
    Ok(())
}

/// The next datagram's number.
fn next(socket: &UdpSocket) -> anyhow::Result<u8> {
    let mut byte = [0];
    socket.recv(&mut byte).context("no datagram came")?;
    Ok(byte[0])
}

fn sockets(lab: &Lab) -> anyhow::Result<Vec<UdpSocket>> {
    let open = |host: &Arc<Host>| {
        let socket = host.inside(|| Ok(UdpSocket::bind((host.address(), PORT))?))?;
        socket.set_read_timeout(Some(LIMIT))?;
        Ok(socket)
    };
    lab.hosts().iter().map(open).collect()
}

#[test]
fn a_path_that_is_cut_one_way_carries_the_other() -> anyhow::Result<()> {
    for wiring in [Wiring::Bridge, Wiring::Switch] {
        let lab = three(wiring, 2)?;
        let sockets = sockets(&lab)?;
        let (a, b) = (lab.hosts()[0].address(), lab.hosts()[1].address());
        // Once before, so that no packet waits for the other's hardware address later.
        send(&sockets[0], b, 0)?;
        ensure!(next(&sockets[1])? == 0, "nothing is cut yet");
        lab.cut(&Cut::one_way(HostId(0), HostId(1)))?;
        send(&sockets[0], b, 1)?;
        send(&sockets[1], a, 2)?;
        ensure!(next(&sockets[0])? == 2, "the other way is whole");
        lab.heal()?;
        send(&sockets[0], b, 3)?;
        ensure!(next(&sockets[1])? == 3, "what was sent while the path was cut is lost");
    }
    Ok(())
}

#[test]
fn weather_is_what_was_ordered() -> anyhow::Result<()> {
    let lab = three(Wiring::Switch, 3)?;
    let sockets = sockets(&lab)?;
    let switch = lab.switch()?;
    let b = lab.hosts()[1].address();

    switch.set(Climate::same(Weather { lost_permille: 1000, ..Weather::fair() }));
    let before = switch.counts().lost;
    send(&sockets[0], b, 1)?;
    while switch.counts().lost == before {
        std::thread::yield_now();
    }
    switch.set(Climate::same(Weather { doubled_permille: 1000, ..Weather::fair() }));
    send(&sockets[0], b, 2)?;
    ensure!((next(&sockets[1])?, next(&sockets[1])?) == (2, 2), "the first is lost, the second comes twice");

    // The first is held back, the second is not, because the weather has changed.
    let slow = Weather { delay: Duration::from_millis(300), overtaken_permille: 1000, ..Weather::fair() };
    switch.set(Climate::same(slow));
    let before = switch.counts().overtaken;
    send(&sockets[0], b, 3)?;
    while switch.counts().overtaken == before {
        std::thread::yield_now();
    }
    switch.set(Climate::default());
    send(&sockets[0], b, 4)?;
    ensure!((next(&sockets[1])?, next(&sockets[1])?) == (4, 3), "the second overtakes the first");
    Ok(())
}

#[test]
fn connections_get_through_bad_weather() -> anyhow::Result<()> {
    let lab = three(Wiring::Switch, 4)?;
    let mut lines = all_lines(&lab)?;
    let bad = Weather {
        delay: Duration::from_millis(5),
        jitter: Duration::from_millis(5),
        lost_permille: 50,
        doubled_permille: 50,
        overtaken_permille: 50,
    };
    lab.switch()?.set(Climate::same(bad));
    for _ in 0..100 {
        lines.iter_mut().try_for_each(Line::send)?;
    }
    lines.iter_mut().try_for_each(Line::hears_all)?;
    let counts = lab.switch()?.counts();
    ensure!(counts.lost > 0 && counts.doubled > 0 && counts.overtaken > 0 && counts.delayed > 0, "{counts:?}");
    Ok(())
}

#[test]
fn nothing_is_left_of_a_lab() -> anyhow::Result<()> {
    let ours = format!("berth-lab-{}-", std::process::id());
    let count = |name: &str| -> anyhow::Result<usize> {
        let names = std::fs::read_dir("/run/netns")?.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
        let names = names.collect::<anyhow::Result<Vec<_>>>()?;
        Ok(names.iter().filter(|found| found.starts_with(&ours) && found.ends_with(name)).count())
    };
    let lab = Lab::new(&["lonely"], Wiring::Switch, Random::new(5))?;
    ensure!(count("-lonely")? == 1, "a host is a namespace");
    let mut sleeper = lab.hosts()[0].spawn(std::process::Command::new("sleep").arg("1000"))?;
    drop(lab);
    ensure!(!sleeper.wait()?.success(), "who is left in a lab is killed with it");
    ensure!(count("-lonely")? == 0, "a namespace is left");

    // As if a process had left it that is no more: no pid is that great.
    let left = "berth-lab-4194305-0-left";
    let output = std::process::Command::new("ip").args(["netns", "add", left]).output()?;
    ensure!(output.status.success(), "{output:?}");
    drop(Lab::new(&["next"], Wiring::Bridge, Random::new(6))?);
    ensure!(!std::path::Path::new("/run/netns").join(left).exists(), "what a killed test left is removed");
    Ok(())
}
