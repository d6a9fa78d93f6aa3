//! `berth audit`: who did what.

use std::io::{BufRead, BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use axum::http::Method;

use super::socket::Socket;
use crate::broker::admin::audit::{AuditEntry, AuditPage};
use crate::domain::audit::{AuditRecord, Broken, Chain, verify};

/// Verbs of `berth audit`.
#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// Write the records that are kept, one JSON object a line, oldest first.
    Export {
        /// File to write to; standard output when not given.
        #[arg(long, value_name = "FILE")]
        file: Option<PathBuf>,
        #[command(flatten)]
        broker: Socket,
    },
    /// Check that no record was changed, removed or put in between.
    Verify {
        /// An exported file; the records of the broker when not given.
        file: Option<PathBuf>,
        #[command(flatten)]
        broker: Socket,
    },
}

pub(super) async fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Export { file, broker } => export(file.as_deref(), &broker).await,
        Command::Verify { file: Some(file), .. } => {
            tell(&verify_file(&file)?);
            Ok(())
        }
        Command::Verify { file: None, broker } => {
            let mut checked = Checked::default();
            let mut last = Chain::default();
            each_page(&broker, |page| {
                for entry in page.records {
                    checked.next(entry)?;
                }
                last = Chain { last: page.last, digest: page.digest.parse().map_err(anyhow::Error::msg)? };
                Ok(())
            })
            .await?;
            match &checked.end {
                Some(end) if *end != last => bail!(
                    "the records end with {}, but the last one is {}: those after it were removed",
                    end.last,
                    last.last
                ),
                None if last.last > 0 => bail!("none of the {} records is kept any more", last.last),
                _ => {}
            }
            tell(&checked);
            Ok(())
        }
    }
}

async fn export(file: Option<&Path>, broker: &Socket) -> anyhow::Result<()> {
    let mut out: Box<dyn Write + Send> = match file {
        Some(path) => {
            let file = std::fs::File::create(path).with_context(|| format!("cannot write {}", path.display()))?;
            Box::new(BufWriter::new(file))
        }
        None => Box::new(BufWriter::new(std::io::stdout())),
    };
    each_page(broker, |page| {
        for entry in page.records {
            serde_json::to_writer(&mut out, &entry)?;
            out.write_all(b"\n")?;
        }
        Ok(())
    })
    .await?;
    out.flush()?;
    Ok(())
}

async fn each_page(broker: &Socket, mut take: impl FnMut(AuditPage) -> anyhow::Result<()>) -> anyhow::Result<()> {
    let mut after: Option<String> = None;
    loop {
        let path = after.as_ref().map_or_else(|| "/audit".to_owned(), |after| format!("/audit?after={after}"));
        let page: AuditPage = broker.call(Method::GET, &path, String::new()).await?;
        after.clone_from(&page.next);
        take(page)?;
        if after.is_none() {
            return Ok(());
        }
    }
}

/// Records that were checked one after the other.
#[derive(Debug, Default)]
struct Checked {
    first: Option<u64>,
    count: u64,
    end: Option<Chain>,
    last: Option<AuditRecord>,
}

impl Checked {
    fn next(&mut self, entry: AuditEntry) -> anyhow::Result<()> {
        let record = AuditRecord::try_from(entry).map_err(anyhow::Error::msg)?;
        let pair = self.last.iter().chain(std::iter::once(&record));
        let end: Result<_, Broken> = verify(pair);
        self.end = end?;
        self.first.get_or_insert(record.number);
        self.count += 1;
        self.last = Some(record);
        Ok(())
    }
}

fn verify_file(path: &Path) -> anyhow::Result<Checked> {
    let file = std::fs::File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
    let mut checked = Checked::default();
    for (number, line) in BufReader::new(file).lines().enumerate() {
        let line = line.with_context(|| format!("cannot read {}", path.display()))?;
        let entry: AuditEntry =
            serde_json::from_str(&line).with_context(|| format!("line {} is no record", number + 1))?;
        checked.next(entry).with_context(|| format!("line {}", number + 1))?;
    }
    Ok(checked)
}

fn tell(checked: &Checked) {
    match (&checked.first, &checked.end) {
        (Some(first), Some(end)) => {
            say!(
                "{} records, {first} to {}, are as they were written; the last has the digest",
                checked.count,
                end.last
            );
            say!("{}", end.digest);
            if *first > 1 {
                say!("records 1 to {} are not among them", first - 1);
            }
        }
        _ => say!("there are no records"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::Timestamp;
    use crate::domain::audit::{Actor, Deed};
    use crate::domain::ids::ReplicaId;

    fn lines(count: u64) -> Vec<String> {
        let mut chain = Chain::default();
        let deed = |number: u64| Deed {
            actor: Actor::Operator,
            from: "local".to_owned(),
            action: "a".to_owned(),
            target: number.to_string(),
            request_id: String::new(),
            via: ReplicaId(1),
        };
        let record = |number| {
            let record = chain.record(Timestamp(number), deed(number), "done".to_owned());
            chain = Chain::after(&record);
            serde_json::to_string(&AuditEntry::from(&record)).expect("texts")
        };
        (1..=count).map(record).collect()
    }

    fn verified(lines: &[String]) -> anyhow::Result<Checked> {
        let file = tempfile::NamedTempFile::new()?;
        std::fs::write(file.path(), lines.join("\n"))?;
        verify_file(file.path())
    }

    #[test]
    fn an_export_verifies_and_a_line_that_is_missing_or_changed_is_found() {
        let lines = lines(5);
        assert_eq!(verified(&lines).expect("whole").count, 5);
        assert_eq!(verified(&lines[2..]).expect("whole").first, Some(3));
        let without: Vec<String> = [&lines[..2], &lines[3..]].concat();
        assert!(verified(&without).expect_err("torn").chain().any(|cause| cause.to_string().contains("record 4")));
        let mut changed = lines.clone();
        changed[3] = changed[3].replace("done", "gone");
        assert!(verified(&changed).expect_err("changed").chain().any(|cause| cause.to_string().contains("changed")));
        assert!(verified(&["{}".to_owned()]).is_err());
    }
}
