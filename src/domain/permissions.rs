//! Permissions files of sessions, as desktop servers read them, as far as the
//! broker can tell by one whether a user may connect.
//!
//! ```text
//! [groups]
//! team=ann, user:bob, group:others
//! [aliases]
//! viewing=display, audio-out
//! [permissions]
//! %owner% allow builtin
//! group:team allow viewing
//! carl deny builtin
//! ```
//!
//! What a file says about groups of a host's operating system, and what it
//! imports from a host, is known there alone. Where that could decide, the
//! broker says that the user may connect: the desktop server asks its own host
//! and has the last word.

use std::collections::{BTreeMap, BTreeSet};

use super::ids::Owner;

/// Words that are looked at for one answer. A file may have some thousand
/// lines, groups and aliases; what takes more is left to the host.
const STEPS_MAX: usize = 200_000;

/// Whether somebody is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Meant {
    Yes,
    No,
    /// Only the host knows.
    Perhaps,
}

/// Whether a user may connect to a session of `owner` with this permissions
/// file. Without one only the owner may: whom else the default file of a host
/// lets in is known there alone, and nobody asked for it with the session.
pub fn may_connect(file: Option<&str>, owner: &Owner, user: &Owner) -> bool {
    let Some(text) = file else { return user == owner };
    let file = File::read(text);
    if file.imports {
        return true;
    }
    let mut who = Who { groups: &file.groups, owner, user, known: BTreeMap::new(), steps: 0 };
    // By feature: what the last line said that meant it. What is denied stays so.
    let mut features: BTreeMap<&str, bool> = BTreeMap::new();
    let mut denied: BTreeSet<&str> = BTreeSet::new();
    let mut perhaps = false;
    for line in &file.permissions {
        let meant = who.is(&line.actor);
        if who.steps > STEPS_MAX {
            return true;
        }
        if meant == Meant::No {
            continue;
        }
        for feature in file.features(&line.features) {
            who.steps += 1;
            match (line.rule, meant) {
                (Rule::Allow, Meant::Perhaps) => perhaps = true,
                (Rule::Allow, _) => drop(features.insert(feature, true)),
                // What the host alone knows must not keep anybody out here.
                (_, Meant::Perhaps) => {}
                (Rule::Disallow, _) => drop(features.insert(feature, false)),
                (Rule::Deny, _) => drop(denied.insert(feature)),
            }
            if who.steps > STEPS_MAX {
                return true;
            }
        }
    }
    let is_all_denied = denied.contains(BUILTIN);
    let allowed = features.iter().any(|(feature, allowed)| *allowed && !denied.contains(*feature));
    !is_all_denied && (allowed || perhaps)
}

/// Stands for all that there is by default.
const BUILTIN: &str = "builtin";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rule {
    Allow,
    Disallow,
    Deny,
}

#[derive(Debug)]
struct Line {
    actor: String,
    rule: Rule,
    features: Vec<String>,
}

#[derive(Debug, Default)]
struct File {
    groups: BTreeMap<String, Vec<String>>,
    aliases: BTreeMap<String, Vec<String>>,
    permissions: Vec<Line>,
    imports: bool,
}

impl File {
    /// Reads a file. What is no line of it is passed over, as desktop servers do.
    fn read(text: &str) -> Self {
        let mut file = Self::default();
        let mut section = String::new();
        for line in text.lines().map(str::trim) {
            if line.strip_prefix("#import").is_some() {
                file.imports = true;
            } else if line.is_empty() || line.starts_with(['#', ';']) {
            } else if let Some(name) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
                section = name.trim().to_ascii_lowercase();
            } else {
                file.add(&section, line);
            }
        }
        file
    }

    fn add(&mut self, section: &str, line: &str) {
        let words =
            |text: &str| text.split(',').map(str::trim).filter(|word| !word.is_empty()).map(str::to_owned).collect();
        match (section, line.split_once('=')) {
            ("groups", Some((name, members))) => {
                let name = name.trim();
                let name = name.strip_prefix("group:").unwrap_or(name);
                self.groups.insert(name.to_owned(), words(members));
            }
            ("aliases", Some((name, features))) => drop(self.aliases.insert(name.trim().to_owned(), words(features))),
            ("permissions", _) => {
                let mut parts = line.split_whitespace();
                let (Some(actor), Some(rule)) = (parts.next(), parts.next()) else { return };
                let rule = match rule.to_ascii_lowercase().as_str() {
                    "allow" => Rule::Allow,
                    "disallow" => Rule::Disallow,
                    "deny" => Rule::Deny,
                    _ => return,
                };
                let features = parts.flat_map(|part| part.split(',')).filter(|part| !part.is_empty());
                let features = features.map(str::to_owned).collect();
                self.permissions.push(Line { actor: actor.to_owned(), rule, features });
            }
            _ => {}
        }
    }

    /// The features that names stand for; an alias stands for those of its own.
    fn features<'a>(&'a self, names: &'a [String]) -> impl Iterator<Item = &'a str> {
        names.iter().flat_map(|name| {
            let own = self.aliases.get(name).map_or_else(|| std::slice::from_ref(name), Vec::as_slice);
            own.iter().map(String::as_str)
        })
    }
}

/// The one who wants to connect.
struct Who<'a> {
    groups: &'a BTreeMap<String, Vec<String>>,
    owner: &'a Owner,
    user: &'a Owner,
    /// Groups that were looked into.
    known: BTreeMap<&'a str, Meant>,
    steps: usize,
}

impl<'a> Who<'a> {
    fn is(&mut self, actor: &'a str) -> Meant {
        self.steps += 1;
        match actor.split_once(':') {
            Some(("group", name)) => match self.known.get(name) {
                Some(known) => *known,
                None => self.is_in(name),
            },
            _ => self.is_alone(actor),
        }
    }

    /// Whether somebody is meant by anything but a group.
    fn is_alone(&self, actor: &str) -> Meant {
        let meant = |is: bool| if is { Meant::Yes } else { Meant::No };
        match actor.split_once(':') {
            _ if actor == "%any%" => Meant::Yes,
            _ if actor == "%owner%" => meant(self.user == self.owner),
            Some(("user", name)) => meant(name == self.user.as_str()),
            Some(("osgroup", _)) => Meant::Perhaps,
            _ => meant(actor == self.user.as_str()),
        }
    }

    /// Whether somebody is in a group, or in one of those within it. Each is
    /// looked into once, so that circles end.
    fn is_in(&mut self, group: &'a str) -> Meant {
        let mut seen = BTreeSet::from([group]);
        let mut left = vec![group];
        let mut meant = Meant::No;
        while let Some(next) = left.pop() {
            for member in self.groups.get(next).into_iter().flatten() {
                self.steps += 1;
                if self.steps > STEPS_MAX {
                    return Meant::Perhaps;
                }
                if let Some(("group", name)) = member.split_once(':') {
                    if seen.insert(name) {
                        left.push(name);
                    }
                    continue;
                }
                match self.is_alone(member) {
                    Meant::Yes => {
                        self.known.insert(group, Meant::Yes);
                        return Meant::Yes;
                    }
                    Meant::Perhaps => meant = Meant::Perhaps,
                    Meant::No => {}
                }
            }
        }
        self.known.insert(group, meant);
        meant
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn may(file: &str, user: &str) -> bool {
        let name = |name: &str| Owner::new(name).expect("valid");
        may_connect(Some(file), &name("ann"), &name(user))
    }

    #[test]
    fn without_a_file_only_the_owner_may() {
        let name = |name: &str| Owner::new(name).expect("valid");
        assert!(may_connect(None, &name("ann"), &name("ann")));
        assert!(!may_connect(None, &name("ann"), &name("bob")));
    }

    #[test]
    fn a_file_says_who_may() {
        let shared = "[permissions]\n%owner% allow builtin\nbob allow display\nuser:dora allow display\n";
        assert!(may(shared, "ann") && may(shared, "bob") && may(shared, "dora"));
        assert!(!may(shared, "carl") && !may(shared, "Bob"));
        assert!(may("[permissions]\n%any% allow builtin", "carl"));
        assert!(may("[permissions]\nCORP\\bob allow builtin", "CORP\\bob"));
        assert!(!may("", "ann"), "a file that says nothing lets nobody in");
        assert!(!may("[permissions]\nbob permit builtin\nbob\nbob allow", "bob"), "lines that are none do nothing");
    }

    #[test]
    fn groups_and_aliases_are_followed_and_circles_end() {
        let file = "[groups]\nteam=bob, group:others\ngroup:others=user:carl,group:team\nhost=osgroup:staff\n\
                    [aliases]\nviewing=display,audio-out\n\
                    [permissions]\ngroup:team allow viewing\n";
        assert!(may(file, "bob") && may(file, "carl"));
        assert!(!may(file, "dora"));
        assert!(!may("[groups]\na=group:b\nb=group:a\n[permissions]\ngroup:a allow builtin", "bob"));
        assert!(!may("[permissions]\ngroup:nobody allow builtin", "bob"));
    }

    #[test]
    fn no_file_takes_long() {
        let circle = format!("[groups]\na=group:a{}\n[permissions]\ngroup:a allow builtin", ",group:a".repeat(8_000));
        assert!(!may(&circle, "bob"));
        let groups: Vec<_> = (0..2_000).map(|n| format!("g{n}=group:g{},group:g{}\n", n + 1, n + 2)).collect();
        let groups = groups.concat();
        assert!(!may(&format!("[groups]\n{groups}[permissions]\ngroup:g0 allow builtin"), "bob"));
        // What takes too long is left to the host.
        let lines = "bob disallow all\n".repeat(2_000);
        let alias = format!("[aliases]\nall={}\n[permissions]\n{lines}", "f,".repeat(10_000));
        assert!(may(&alias, "bob"));
    }

    #[test]
    fn the_last_line_counts_and_what_is_denied_stays_so() {
        assert!(!may("[permissions]\nbob allow display\nbob disallow display", "bob"));
        assert!(may("[permissions]\nbob disallow display\nbob allow display", "bob"));
        assert!(!may("[permissions]\nbob deny display\nbob allow display", "bob"));
        assert!(!may("[permissions]\nbob deny builtin\nbob allow display", "bob"));
        assert!(may("[permissions]\n%any% allow builtin\nbob disallow clipboard-copy", "bob"));
    }

    #[test]
    fn what_only_the_host_knows_is_left_to_it() {
        let file = "[permissions]\n%owner% allow builtin\nosgroup:staff allow display\n";
        assert!(may(file, "bob"));
        assert!(may("#import /etc/dcv/default.perm\n[permissions]\nann allow builtin", "bob"));
        assert!(may("[permissions]\nosgroup:staff deny builtin\nbob allow display", "bob"));
        assert!(!may("; osgroup:staff\n[permissions]\nbob deny builtin\nosgroup:staff allow display", "bob"));
        assert!(!may("# import nothing\n[permissions]\nann allow builtin", "bob"));
    }
}
