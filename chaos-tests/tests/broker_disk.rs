//! A broker whose disk fails stops and says why, or goes on; it never serves
//! anything but what it had acknowledged. A clock that jumps disturbs nobody.

#![allow(clippy::print_stdout)] // what became of each damage

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use berth_chaos_tests::client::{self, Answer, Api};
use berth_chaos_tests::faultfs::control::{Class, Control, Extent};
use berth_chaos_tests::faultfs::power::Kept;
use berth_chaos_tests::faultfs::{Faults, Library, damage};
use berth_chaos_tests::lab::{Lab, Wiring};
use berth_chaos_tests::process::{Broker, Ground, Process, Program};
use berth_chaos_tests::random::Random;
use rustix::io::Errno;
use serde_json::json;
use tempfile::TempDir;

/// How long what must happen may take, in a debug build on a busy machine.
const LIMIT: Duration = Duration::from_mins(1);
/// Nobody serves it, so each request waits and is remembered.
const WAITING: &str = "tag:served_by = 'nobody'";
/// Often, so that there is a snapshot to be damaged.
const SETTINGS: &str = "[cluster]\nsnapshot_after_entries = 20\nrequest_timeout_seconds = 20\n";

/// A broker under faults, and what it has acknowledged.
struct Subject {
    broker: Broker,
    process: Option<Process>,
    api: Api,
    acknowledged: Vec<String>,
    asked: usize,
    // Dropped last.
    _lab: Lab,
    place: TempDir,
}

impl Subject {
    /// One that serves and holds something.
    async fn new() -> anyhow::Result<Self> {
        let place = tempfile::tempdir()?;
        let program = Program::take(place.path())?;
        let library = Library::build(place.path())?;
        // A host of its own for fixed ports; the calls come from there, too.
        let lab = Lab::new(&["broker"], Wiring::Bridge, Random::new(1))?;
        let host = lab.named("broker")?.clone();
        host.enter()?;
        let data_folder = place.path().join("broker/data");
        let faults = Faults::new(&library, &data_folder, &place.path().join("broker/faults"))?;
        let addresses = ((host.address(), 8443).into(), (host.address(), 8445).into());
        let ground = Ground { host: Some(host), faults: Some(faults) };
        let folder = place.path().join("broker");
        let broker = Broker::placed(&program, &folder, &data_folder, addresses, ground, SETTINGS)?;
        let mut process = broker.start()?;
        let api = Api::register(&broker, &mut process).await?;
        let mut subject =
            Self { broker, process: Some(process), api, acknowledged: Vec::new(), asked: 0, _lab: lab, place };
        for _ in 0..30 {
            subject.create().await?;
        }
        Ok(subject)
    }

    fn control(&self) -> anyhow::Result<&Control> {
        Ok(self.broker.faults()?.control())
    }

    async fn ask(&mut self) -> Answer {
        self.asked += 1;
        let name = format!("session-{}", self.asked);
        let item = json!({
            "Name": name, "Owner": "ann", "Type": "VIRTUAL", "EnqueueRequest": true, "Requirements": WAITING
        });
        let answer = self.api.call("createSessions", &json!([item])).await;
        if let Answer::Done(body) = &answer
            && let Some(id) = body["SuccessfulList"][0]["Id"].as_str()
        {
            self.acknowledged.push(id.to_owned());
        }
        answer
    }

    async fn create(&mut self) -> anyhow::Result<()> {
        match self.ask().await {
            Answer::Done(body) if body["UnsuccessfulList"] == json!([]) => Ok(()),
            other => bail!("no session: {other:?}"),
        }
    }

    /// Asks until that succeeds.
    async fn recovers(&mut self) -> anyhow::Result<()> {
        let deadline = Instant::now() + LIMIT;
        loop {
            if let Err(error) = self.process.as_mut().context("it runs")?.lives() {
                return Err(error.context(self.broker.last_words()?));
            }
            match self.ask().await {
                Answer::Done(_) => return Ok(()),
                other => ensure!(Instant::now() < deadline, "it does not recover: {other:?}"),
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Everything acknowledged is there.
    async fn holds_all(&self) -> anyhow::Result<()> {
        let found = self.api.sessions(&[]).await?;
        for id in &self.acknowledged {
            ensure!(found.iter().any(|session| session.id == *id), "session {id} is lost");
        }
        Ok(())
    }

    fn kill(&mut self) -> anyhow::Result<()> {
        self.process.take().map_or(Ok(()), Process::kill)
    }

    /// Starts it; it must serve, with everything.
    async fn comes_back(&mut self) -> anyhow::Result<()> {
        let mut process = self.broker.start()?;
        if let Err(error) = client::serving(&self.broker, &mut process).await {
            return Err(error.context(self.broker.last_words()?));
        }
        self.process = Some(process);
        self.holds_all().await?;
        self.recovers().await
    }

    /// Waits until it has ended by itself, with an error; its last words.
    async fn ends(&mut self) -> anyhow::Result<String> {
        let mut process = self.process.take().context("it was started")?;
        let deadline = Instant::now() + LIMIT;
        let status = loop {
            match process.ended()? {
                Some(status) => break status,
                None => ensure!(Instant::now() < deadline, "it does not end"),
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        };
        ensure!(status.code().is_some_and(|code| code != 0), "it ended with {status}");
        self.broker.last_words()
    }

    /// A part of its data that tests put back.
    fn saved(&self) -> PathBuf {
        self.place.path().join("saved")
    }
}

/// The disk fails under load: the broker ends, says why, and the next start on a
/// disk that works has everything that was acknowledged, also when the machine
/// lost its power.
async fn a_failing_disk_ends_it(class: Class) -> anyhow::Result<()> {
    let mut subject = Subject::new().await?;
    subject.control()?.fail(class, Extent::All, Errno::IO)?;
    let answer = subject.ask().await;
    ensure!(!matches!(answer, Answer::Done(_)), "it acknowledged what it could not keep");
    let words = subject.ends().await?;
    println!("{class:?}: {words}");
    ensure!(words.contains("Input/output error") && words.contains("/data/"), "it does not say why: {words}");
    ensure!(subject.control()?.hits(class)? > 0, "nothing failed");
    subject.control()?.mend_disk()?;
    let loss = subject.broker.faults()?.lose_power(Kept::Nothing, &mut Random::new(1))?;
    println!("{loss:?}");
    subject.comes_back().await
}

#[tokio::test]
async fn a_sync_that_fails_ends_it() -> anyhow::Result<()> {
    a_failing_disk_ends_it(Class::Syncs).await
}

#[tokio::test]
async fn a_write_that_fails_ends_it() -> anyhow::Result<()> {
    a_failing_disk_ends_it(Class::Writes).await
}

#[tokio::test]
async fn a_full_disk_and_short_writes_do_not_end_it() -> anyhow::Result<()> {
    let mut subject = Subject::new().await?;
    subject.control()?.fail(Class::Writes, Extent::All, Errno::NOSPC)?;
    let answer = subject.ask().await;
    ensure!(!matches!(answer, Answer::Done(_)), "it acknowledged what it could not keep");
    subject.holds_all().await.context("reads go on")?;
    subject.control()?.mend_disk()?;
    subject.recovers().await?;

    subject.control()?.shorten_writes(Extent::All)?;
    for _ in 0..10 {
        subject.create().await?;
    }
    ensure!(subject.control()?.shortened()? > 0, "no write was short");
    subject.control()?.mend_disk()?;
    subject.kill()?;
    subject.broker.faults()?.lose_power(Kept::Some, &mut Random::new(2))?;
    subject.comes_back().await
}

#[tokio::test]
async fn a_slow_sync_delays_it_and_no_more() -> anyhow::Result<()> {
    let mut subject = Subject::new().await?;
    let delay = Duration::from_secs(10);
    subject.control()?.slow_syncs(delay)?;
    let begun = Instant::now();
    let answer = subject.ask().await;
    println!("{answer:?} after {:?}", begun.elapsed());
    ensure!(begun.elapsed() >= delay || !matches!(answer, Answer::Done(_)), "acknowledged before it was synced");
    ensure!(subject.control()?.slowed()? > 0, "no sync was slow");
    subject.control()?.mend_disk()?;
    subject.recovers().await?;
    subject.holds_all().await
}

#[tokio::test]
async fn a_power_loss_takes_nothing_that_was_acknowledged() -> anyhow::Result<()> {
    let mut subject = Subject::new().await?;
    let mut random = Random::new(3);
    for round in 0..4 {
        subject.create().await?;
        subject.kill()?;
        let kept = if round % 2 == 0 { Kept::Nothing } else { Kept::Some };
        let loss = subject.broker.faults()?.lose_power(kept, &mut random)?;
        println!("{kept:?}: {loss:?}");
        subject.comes_back().await?;
    }
    ensure!(subject.control()?.refused()? == 0, "the broker did what cannot be followed");
    Ok(())
}

fn copy(from: &Path, to: &Path) -> anyhow::Result<()> {
    let output = std::process::Command::new("cp").arg("-a").args([from, to]).output()?;
    ensure!(output.status.success(), "cp: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// With a file damaged, the broker refuses to start and names the file, or it
/// has everything. True if it refused.
async fn refuses_or_has_all(subject: &mut Subject, file: &Path, what: &str) -> anyhow::Result<bool> {
    let process = subject.broker.start()?;
    subject.process = Some(process);
    let process = subject.process.as_mut().context("it was started")?;
    if client::serving(&subject.broker, process).await.is_ok() {
        println!("{what} of {}: serves", file.display());
        subject.holds_all().await.with_context(|| format!("{what} of {}", file.display()))?;
        subject.kill()?;
        return Ok(false);
    }
    let words = subject.ends().await?;
    let name = file.file_name().context("a file has a name")?.to_string_lossy().into_owned();
    // Or the folder that is a database, of which it is a part.
    let database = file.parent().filter(|folder| folder.ends_with("log")).map(|folder| folder.display().to_string());
    println!("{what} of {}: {}", file.display(), words.lines().last().unwrap_or_default());
    let is_named = words.contains(&name) || database.is_some_and(|folder| words.contains(&folder));
    ensure!(is_named, "{what} of {name} is not named: {words}");
    Ok(true)
}

/// Damages every file of the log, the vote and the snapshots in turn.
async fn each_file(what: &str, harm: impl Fn(&Path, &mut Random) -> anyhow::Result<()>) -> anyhow::Result<usize> {
    let mut subject = Subject::new().await?;
    subject.kill()?;
    let data = subject.broker.data_folder().join("replica");
    copy(&data, &subject.saved())?;
    let is_meant = |path: &Path| !path.ends_with("LOCK");
    let files = damage::files(&data, is_meant)?;
    ensure!(files.iter().any(|file| file.to_string_lossy().contains("snapshots/")), "no snapshot in {files:?}");
    let mut refusals = 0;
    for (number, file) in files.iter().enumerate() {
        harm(file, &mut Random::new(number as u64))?;
        refusals += usize::from(refuses_or_has_all(&mut subject, file, what).await?);
        std::fs::remove_dir_all(&data)?;
        copy(&subject.saved(), &data)?;
    }
    subject.comes_back().await.context("undamaged")?;
    Ok(refusals)
}

#[tokio::test]
async fn a_missing_file_is_named_or_not_missed() -> anyhow::Result<()> {
    let refusals = each_file("loss", |file, _| Ok(std::fs::remove_file(file)?)).await?;
    ensure!(refusals >= 3, "only {refusals} files were missed");
    Ok(())
}

#[tokio::test]
async fn a_flipped_bit_is_named_or_does_no_harm() -> anyhow::Result<()> {
    // In the first part, where there is something in it.
    let refusals = each_file("a flipped bit", |file, random| damage::flip_bit(file, 0..2000, random).map(drop)).await?;
    ensure!(refusals >= 3, "only {refusals} damaged files were noticed");
    Ok(())
}

#[tokio::test]
async fn a_clock_that_jumps_disturbs_nobody() -> anyhow::Result<()> {
    const MINUTE_MS: i64 = 60_000;
    let mut subject = Subject::new().await?;
    for jump_ms in [10 * MINUTE_MS, -30 * MINUTE_MS, 5 * MINUTE_MS] {
        subject.control()?.shift_clock(jump_ms)?;
        subject.create().await.with_context(|| format!("after a jump of {jump_ms} ms"))?;
    }
    subject.control()?.let_clock_drift(100_000)?;
    subject.create().await?;
    ensure!(subject.control()?.clock_reads()? > 0, "nobody looked at the clock");
    // Time in the log never runs backwards.
    let mut path = "v1/events?limit=1000".to_owned();
    let mut last = String::new();
    loop {
        let Answer::Done(page) = subject.api.get(&path).await else { bail!("no events") };
        for event in page["Events"].as_array().context("events")? {
            let time = event["Time"].as_str().context("a time")?;
            ensure!(*time >= *last, "{time} after {last}");
            last = time.to_owned();
        }
        if page["More"] != true {
            break;
        }
        path = format!("v1/events?limit=1000&after={}", page["Next"].as_str().context("a cursor")?);
    }
    subject.holds_all().await
}
