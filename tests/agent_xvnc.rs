//! Xvnc desktops with the real Xvnc. Needs the Debian packages
//! tigervnc-standalone-server, tigervnc-tools, openbox and xterm.
#![allow(clippy::unwrap_used)]

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use base64::Engine as _;
use berth::agent::config;
use berth::agent::desktops::xvnc::{Setup, Xvnc};
use berth::agent::desktops::{Desktops, Shot, State};
use berth::domain::{InstructionId, Owner, SessionId, SessionKind, SessionSpec};
use berth::protocol::ImageFormat;

const DEADLINE: Duration = Duration::from_mins(1);

/// A host of its own for a test.
struct Host {
    folder: tempfile::TempDir,
    desktops: Xvnc,
}

impl Host {
    async fn new() -> Self {
        for (program, package) in [
            ("Xvnc", "tigervnc-standalone-server"),
            ("tigervncpasswd", "tigervnc-tools"),
            ("openbox", "openbox"),
            ("xterm", "xterm"),
        ] {
            let installed =
                ["/usr/bin", "/usr/local/bin"].iter().any(|folder| Path::new(folder).join(program).exists());
            assert!(installed, "{program} is missing: install the Debian package {package}");
        }
        let folder = tempfile::tempdir().unwrap();
        std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        for name in ["init", "autorun"] {
            std::fs::create_dir(folder.path().join(name)).unwrap();
        }
        let desktops = Xvnc::open(setup(folder.path())).await.unwrap();
        Self { folder, desktops }
    }

    /// The agent ends and another one starts.
    async fn restart(&mut self) {
        self.desktops = Xvnc::open(setup(self.folder.path())).await.unwrap();
    }

    fn script(&self, path: &str, text: &str) {
        let path = self.folder.path().join(path);
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    }

    fn record(&self, session: &SessionId) -> serde_json::Value {
        let path = self.folder.path().join("sessions").join(session.as_str()).join("session.json");
        serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
    }

    async fn create(&self, session: &SessionId, spec: SessionSpec) {
        self.desktops.create(session.clone(), spec, Some(InstructionId(7))).await.unwrap();
    }

    async fn wait_for(&self, what: &str, reached: impl FnMut(&State) -> bool) {
        let mut state = self.desktops.watch();
        let waited = tokio::time::timeout(DEADLINE, state.wait_for(reached)).await;
        assert!(waited.is_ok(), "not reached: {what}; state {:?}", self.desktops.watch().borrow());
    }

    /// No process, no lock, no socket, no file.
    async fn assert_nothing_left(&self, record: &serde_json::Value) {
        let mark = format!("BERTH_SESSION={}", record["mark"].as_str().unwrap());
        let leaders: Vec<String> = ["server", "desktop", "autorun"]
            .iter()
            .filter_map(|process| Some(record["running"][process]["pid"].as_u64()?.to_string()))
            .collect();
        // Its kernel sessions are empty, too: they keep their numbers when
        // their leaders have ended, also for processes without an environment.
        let is_led = |stat: String| {
            let fields = stat.rsplit_once(')').map_or("", |(_, fields)| fields);
            let mut fields = fields.split_ascii_whitespace();
            let ended = matches!(fields.next(), Some("Z" | "X"));
            !ended && fields.nth(2).is_some_and(|session| leaders.iter().any(|leader| leader == session))
        };
        let left: Vec<PathBuf> = std::fs::read_dir("/proc")
            .unwrap()
            .filter_map(|entry| Some(entry.ok()?.path()))
            .filter(|path| {
                std::fs::read(path.join("environ"))
                    .is_ok_and(|text| text.split(|byte| *byte == 0).any(|variable| variable == mark.as_bytes()))
                    || std::fs::read_to_string(path.join("stat")).is_ok_and(is_led)
            })
            .collect();
        assert!(left.is_empty(), "processes are left: {left:?}");
        self.folder_empties().await;
        let running = &record["running"];
        if let Some(display) = record["screen"]["display"].as_u64() {
            // Another test may have taken the display since: then the lock is its.
            let lock = std::fs::read_to_string(format!("/tmp/.X{display}-lock")).unwrap_or_default();
            assert_ne!(lock.trim(), running["server"]["pid"].to_string(), "the lock is left");
            if lock.is_empty() {
                assert!(!Path::new(&format!("/tmp/.X11-unix/X{display}")).exists(), "the socket is left");
            }
        }
    }

    /// What takes longer to delete is deleted after the session's end.
    async fn folder_empties(&self) {
        let folder = self.folder.path().join("sessions");
        let deadline = Instant::now() + DEADLINE;
        loop {
            let left: Vec<_> = std::fs::read_dir(&folder).unwrap().collect();
            if left.is_empty() {
                return;
            }
            assert!(Instant::now() < deadline, "files are left: {left:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

impl Drop for Host {
    /// A test that failed half-way leaves no desktop behind either.
    fn drop(&mut self) {
        let records = std::fs::read_dir(self.folder.path().join("sessions")).into_iter().flatten().flatten();
        for record in records.filter_map(|entry| std::fs::read(entry.path().join("session.json")).ok()) {
            let Ok(record) = serde_json::from_slice::<serde_json::Value>(&record) else { continue };
            for process in ["desktop", "server"] {
                if let Some(pid) = record["running"][process]["pid"].as_u64() {
                    // Already gone, most likely.
                    let _ = std::process::Command::new("kill").arg(pid.to_string()).output();
                }
            }
        }
    }
}

fn setup(folder: &Path) -> Setup {
    Setup {
        folder: folder.join("sessions"),
        init_folder: folder.join("init"),
        autorun_folder: folder.join("autorun"),
        // The tests' own user may be root.
        settings: config::Xvnc { allow_root: true, ..config::Xvnc::default() },
    }
}

fn id() -> SessionId {
    SessionId::new(&uuid::Uuid::new_v4().to_string()).unwrap()
}

fn own_user() -> String {
    let output = std::process::Command::new("id").arg("-un").output().unwrap();
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

fn is_root() -> bool {
    std::fs::metadata("/proc/self").unwrap().uid() == 0
}

fn spec() -> SessionSpec {
    SessionSpec::plain("test".to_owned(), Owner::new(&own_user()).unwrap(), SessionKind::Virtual)
}

/// Polls until a file says something.
async fn content_of(path: &Path) -> String {
    let deadline = Instant::now() + DEADLINE;
    loop {
        match std::fs::read_to_string(path) {
            Ok(text) if text.ends_with('\n') => return text,
            _ => assert!(Instant::now() < deadline, "{} was not written", path.display()),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_shows_a_desktop_outlives_the_agent_and_leaves_nothing() {
    let mut host = Host::new().await;
    let session = id();
    host.create(&session, SessionSpec { permissions: Some("[permissions]".to_owned()), ..spec() }).await;
    let reported = host.desktops.watch().borrow().sessions[&session].clone();
    assert!(reported.usable);
    assert_eq!(reported.created_by, Some(InstructionId(7)));

    let deadline = Instant::now() + DEADLINE;
    let picture = loop {
        let shot = Shot { width_max: 320, height_max: 200, format: ImageFormat::Png };
        let images = host.desktops.screenshot(session.clone(), shot).await.unwrap();
        let bytes = base64::engine::general_purpose::STANDARD.decode(&images[0].data).unwrap();
        let picture = image::load_from_memory_with_format(&bytes, image::ImageFormat::Png).unwrap().to_rgb8();
        let first = *picture.get_pixel(0, 0);
        if picture.pixels().any(|pixel| *pixel != first) {
            break picture;
        }
        assert!(Instant::now() < deadline, "the desktop stays one colour");
    };
    assert_eq!(picture.dimensions(), (320, 200));

    let record = host.record(&session);
    let folder = host.folder.path().join("sessions").join(session.as_str());
    for (name, mode) in [
        ("session.json", 0o600),
        ("access", 0o711),
        ("access/xauthority", 0o400),
        ("access/vnc-password", 0o400),
        ("runtime", 0o700),
    ] {
        let path = folder.join(name);
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, mode, "{}", path.display());
    }

    host.restart().await;
    assert_eq!(host.desktops.watch().borrow().sessions[&session], reported, "found again as it was");
    host.desktops.set_permissions(session.clone(), "[other]".to_owned()).await.unwrap();
    assert_eq!(std::fs::read_to_string(folder.join("permissions")).unwrap(), "[other]");

    host.desktops.close(session.clone()).await.unwrap();
    assert!(host.desktops.watch().borrow().sessions.is_empty());
    host.assert_nothing_left(&record).await;
    host.desktops.close(session).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn connected_clients_are_counted_and_their_leaving_is_kept() {
    let host = Host::new().await;
    let session = id();
    host.create(&session, spec()).await;
    let port = u16::try_from(5900 + host.record(&session)["screen"]["display"].as_u64().unwrap()).unwrap();
    let client = std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
    host.wait_for("one client", |state| state.sessions[&session].connections == 1).await;
    drop(client);
    host.wait_for("no client", |state| {
        state.sessions[&session].connections == 0 && state.sessions[&session].last_disconnected_at.is_some()
    })
    .await;
    assert!(host.record(&session)["last_disconnected_at"].is_u64());
    host.desktops.close(session).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_owner_that_is_no_user_gets_a_reason_and_nothing_is_left() {
    let host = Host::new().await;
    let owner = Owner::new("no-such-user-here").unwrap();
    let failure = host.desktops.create(id(), SessionSpec { owner, ..spec() }, None).await.unwrap_err();
    assert_eq!(failure.0, "owner no-such-user-here is no user of this host");
    host.folder_empties().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_runs_as_its_owner_or_is_refused() {
    let host = Host::new().await;
    let session = id();
    // A user with a shell, which every Debian has, that is not the tests'.
    let owner = Owner::new("sync").unwrap();
    let made = host.desktops.create(session.clone(), SessionSpec { owner, ..spec() }, None).await;
    if !is_root() {
        let failure = made.unwrap_err();
        assert!(failure.0.contains("run it as root"), "{failure}");
        return;
    }
    made.unwrap();
    let record = host.record(&session);
    for process in ["server", "desktop"] {
        let pid = record["running"][process]["pid"].as_u64().unwrap();
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let uid = status.lines().find(|line| line.starts_with("Uid:")).unwrap();
        assert_eq!(uid.split_ascii_whitespace().nth(1), Some("4"), "{process} runs as {uid}");
    }
    host.desktops.close(session).await.unwrap();
    host.assert_nothing_left(&record).await;

    for (owner, words) in [("root", "is root"), ("daemon", "nobody logs in")] {
        let mut settings = setup(host.folder.path());
        settings.settings.allow_root = false;
        let desktops = Xvnc::open(settings).await.unwrap();
        let spec = SessionSpec { owner: Owner::new(owner).unwrap(), ..spec() };
        let failure = desktops.create(id(), spec, None).await.unwrap_err();
        assert!(failure.0.contains(words), "{failure}");
    }
}

/// A system user that every Debian has and that owns nothing (`sync`).
const ATTACKER: u32 = 4;

/// The owner knows where the session's folder will be, and puts links there
/// whenever that is possible, in the hope that root writes through one.
#[tokio::test(flavor = "multi_thread")]
async fn an_owner_with_links_gets_nothing_of_roots() {
    if !is_root() {
        // The agent is no other user then: there is nothing to gain.
        return;
    }
    let host = Host::new().await;
    let session = id();
    let folder = host.folder.path().join("sessions").join(session.as_str());
    let secret = host.folder.path().join("secret");
    std::fs::write(&secret, "of root").unwrap();
    std::fs::set_permissions(&secret, std::fs::Permissions::from_mode(0o600)).unwrap();
    let names = "xauthority xauthority.new vnc-password vnc-password.new session.json session.new runtime access own";
    let script = format!(
        "while :; do for folder in '{0}' '{0}/access' '{0}/own'; do for name in {names}; do \
         ln -s '{1}' $folder/$name; done; done; done 2> /dev/null",
        folder.display(),
        secret.display(),
    );
    let mut attack = std::process::Command::new("setpriv")
        .args([&format!("--reuid={ATTACKER}"), "--regid=65534", "--clear-groups", "/bin/sh", "-c", &script])
        .spawn()
        .unwrap();
    let owner = Owner::new("sync").unwrap();
    let made = host.desktops.create(session.clone(), SessionSpec { owner, ..spec() }, None).await;
    attack.kill().unwrap();
    attack.wait().unwrap();
    made.unwrap();

    assert_eq!(std::fs::read_to_string(&secret).unwrap(), "of root");
    let metadata = secret.metadata().unwrap();
    assert_eq!((metadata.uid(), metadata.mode() & 0o777), (0, 0o600));
    for name in ["", "session.json", "access", "xvnc.log"] {
        let metadata = folder.join(name).symlink_metadata().unwrap();
        assert_eq!((metadata.uid(), metadata.mode() & 0o022), (0, 0), "{name} is the owner's to change");
    }
    for name in ["access/xauthority", "access/vnc-password"] {
        let metadata = folder.join(name).symlink_metadata().unwrap();
        assert!(metadata.is_file() && metadata.uid() == ATTACKER && metadata.mode() & 0o777 == 0o400, "{name}");
    }
    let left: Vec<_> = std::fs::read_dir(folder.join("access")).unwrap().collect();
    assert_eq!(left.len(), 2, "{left:?}");
    host.desktops.close(session).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_init_file_makes_the_desktop_and_the_autorun_file_gets_its_arguments() {
    let host = Host::new().await;
    host.script("init/desk", "#!/bin/sh\necho \"init $BERTH_SESSION_ID\"\nexec xterm\n");
    let told = host.folder.path().join("told");
    host.script("autorun/app", "#!/bin/sh\nprintf '%s|%s|%s\\n' \"$2\" \"$DISPLAY\" \"$(id -un)\" > \"$1\"\n");
    let session = id();
    let spec = SessionSpec {
        init_file: Some("desk".to_owned()),
        autorun_file: Some("app".to_owned()),
        autorun_arguments: vec![told.display().to_string(), "two words; $HOME".to_owned()],
        ..spec()
    };
    host.create(&session, spec).await;
    let record = host.record(&session);
    let expected = format!("two words; $HOME|:{}|{}\n", record["screen"]["display"], own_user());
    assert_eq!(content_of(&told).await, expected);
    let log = host.folder.path().join("sessions").join(session.as_str()).join("desktop.log");
    assert!(content_of(&log).await.contains(&format!("init {session}")));
    host.desktops.close(session).await.unwrap();
    host.assert_nothing_left(&record).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_init_file_that_fails_says_why_and_leaves_nothing() {
    let host = Host::new().await;
    host.script("init/broken", "#!/bin/sh\nsleep 1000 &\necho no such theme >&2\nexit 3\n");
    for (file, words) in
        [("broken", ["ended with code 3", "no such theme"]), ("../broken", ["init file", "without .."])]
    {
        let spec = SessionSpec { init_file: Some(file.to_owned()), ..spec() };
        let failure = host.desktops.create(id(), spec, None).await.unwrap_err();
        assert!(words.iter().all(|word| failure.0.contains(word)), "{failure}");
        host.folder_empties().await;
    }
    assert!(host.desktops.watch().borrow().sessions.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_whose_x_server_is_killed_ends_with_a_reason() {
    let host = Host::new().await;
    let session = id();
    host.create(&session, spec()).await;
    let record = host.record(&session);
    let pid = record["running"]["server"]["pid"].to_string();
    assert!(std::process::Command::new("kill").args(["-KILL", &pid]).status().unwrap().success());
    host.wait_for("the end", |state| state.sessions.is_empty()).await;
    let reason = host.desktops.watch().borrow().reason_of_end(&session).unwrap().to_owned();
    assert!(reason.contains("X server ended"), "{reason}");
    host.assert_nothing_left(&record).await;
    // Its id is free again.
    host.create(&session, spec()).await;
    host.desktops.close(session).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_ends_while_the_agent_is_away_is_cleared_away() {
    let mut host = Host::new().await;
    host.script("init/desk", "#!/bin/sh\nexec xterm\n");
    let session = id();
    host.create(&session, SessionSpec { init_file: Some("desk".to_owned()), ..spec() }).await;
    let record = host.record(&session);
    // The next agent reads a record of a boot before: none of its processes is
    // one that runs now, whatever their numbers.
    let path = host.folder.path().join("sessions").join(session.as_str()).join("session.json");
    let mut old = record.clone();
    for process in ["server", "desktop"] {
        old["running"][process]["started"] = 1.into();
    }
    std::fs::write(path, old.to_string()).unwrap();
    host.restart().await;
    assert!(host.desktops.watch().borrow().sessions.is_empty());
    host.assert_nothing_left(&record).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_that_cannot_be_understood_stops_the_start() {
    let mut host = Host::new().await;
    let session = id();
    host.create(&session, spec()).await;
    let path = host.folder.path().join("sessions").join(session.as_str()).join("session.json");
    let record = std::fs::read_to_string(&path).unwrap();
    let newer = record.replacen("\"version\": 1", "\"version\": 9", 1);
    for bad in [&record[..record.len() / 2], &newer] {
        std::fs::write(&path, bad).unwrap();
        let refused = Xvnc::open(setup(host.folder.path())).await.unwrap_err().to_string();
        assert!(refused.contains(&format!("BERTH_SESSION_ID={session}")), "{refused}");
    }
    std::fs::write(&path, record).unwrap();
    host.restart().await;
    host.desktops.close(session).await.unwrap();
    host.folder_empties().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_session_stays_in_the_folder_of_the_sessions() {
    let mut host = Host::new().await;
    let foreign = host.folder.path().join("sessions/lost+found");
    let begun = host.folder.path().join("sessions/begun");
    for folder in [&foreign, &begun] {
        std::fs::create_dir(folder).unwrap();
    }
    host.restart().await;
    assert!(foreign.exists(), "it is not the agent's to remove");
    assert!(!begun.exists(), "nothing was started in it");
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_made_at_the_same_moment_get_displays_of_their_own() {
    let host = Host::new().await;
    let sessions: Vec<SessionId> = (0..3).map(|_| id()).collect();
    let made = futures_util::future::join_all(sessions.iter().map(|session| host.create(session, spec())));
    made.await;
    let displays: std::collections::BTreeSet<u64> =
        sessions.iter().map(|session| host.record(session)["screen"]["display"].as_u64().unwrap()).collect();
    assert_eq!(displays.len(), sessions.len());
    for session in sessions {
        let record = host.record(&session);
        host.desktops.close(session).await.unwrap();
        let mark = record["mark"].as_str().unwrap();
        assert!(!mark.is_empty());
    }
    host.folder_empties().await;
}
