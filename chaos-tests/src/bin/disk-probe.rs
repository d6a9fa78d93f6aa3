//! Does with files in a folder what it is told, one line of input after the
//! other, and answers each with one line. For tests of disk faults: it calls
//! what every program in Rust calls.

#![allow(clippy::print_stdout)] // it is how it answers

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{BufRead, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::{Context, bail};

fn main() -> anyhow::Result<()> {
    let folder = PathBuf::from(std::env::args_os().nth(1).context("usage: disk-probe FOLDER")?);
    let mut files = HashMap::new();
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        let words: Vec<&str> = line.split(' ').collect();
        match obey(&folder, &mut files, &words) {
            Ok(answer) => println!("ok {answer}"),
            Err(error) => println!("error {error:#}"),
        }
        std::io::stdout().flush()?;
    }
    Ok(())
}

fn obey(folder: &Path, files: &mut HashMap<String, File>, words: &[&str]) -> anyhow::Result<String> {
    let path = |name: &str| folder.join(name);
    match words {
        ["create", name] => {
            let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(path(name))?;
            files.insert((*name).to_owned(), file);
        }
        ["open", name] => {
            files.insert((*name).to_owned(), OpenOptions::new().read(true).write(true).open(path(name))?);
        }
        ["append", name, text] => OpenOptions::new().append(true).open(path(name))?.write_all(text.as_bytes())?,
        ["write", name, place, text] => open(files, name)?.write_all_at(text.as_bytes(), place.parse()?)?,
        // One call that may take less than it is given.
        ["put", name, text] => {
            let mut file = open(files, name)?;
            file.seek(SeekFrom::Start(0))?;
            return Ok(file.write(text.as_bytes())?.to_string());
        }
        ["truncate", name, length] => open(files, name)?.set_len(length.parse()?)?,
        ["sync", name] => open(files, name)?.sync_all()?,
        ["datasync", name] => open(files, name)?.sync_data()?,
        // Another descriptor of the same file.
        ["clone-sync", name] => open(files, name)?.try_clone()?.sync_all()?,
        ["sync-folder", name] => File::open(path(name))?.sync_all()?,
        ["rename", from, to] => std::fs::rename(path(from), path(to))?,
        ["remove", name] => std::fs::remove_file(path(name))?,
        ["make-folder", name] => std::fs::create_dir(path(name))?,
        ["copy", from, to] => drop(std::fs::copy(path(from), path(to))?),
        ["read", name] => {
            let mut text = String::new();
            File::open(path(name))?.read_to_string(&mut text)?;
            return Ok(text);
        }
        ["clock"] => {
            let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?;
            return Ok(now.as_millis().to_string());
        }
        other => bail!("{other:?} is not understood"),
    }
    Ok(String::new())
}

fn open<'a>(files: &'a HashMap<String, File>, name: &str) -> anyhow::Result<&'a File> {
    files.get(name).with_context(|| format!("{name} is not open"))
}
