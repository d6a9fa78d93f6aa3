//! The beginning of a connection: what the agent says first, and what the log
//! makes of it.

use std::time::Duration;

use axum::extract::ws::{Message, WebSocket};
use tokio::time::timeout;

use super::farewell::Farewell;
use super::{Agents, bounds, stray};
use crate::broker::core::Broker;
use crate::domain::report::Inventory;
use crate::domain::{Command, Epoch, Millis, Outcome, Refusal};
use crate::protocol::{
    self, CLONED_REASON, FromAgent, Hello, REPORT_INTERVAL_MS_MAX, REPORT_INTERVAL_MS_MIN, WELCOME_TIMEOUT, close,
};

/// How long the log may take for a hello: less than the agent waits.
const ADMIT_TIMEOUT: Duration = WELCOME_TIMEOUT.saturating_sub(Duration::from_secs(1));

/// The first message of a connection.
pub(super) async fn read(socket: &mut WebSocket) -> Result<Hello, Farewell> {
    loop {
        match socket.recv().await {
            Some(Ok(Message::Text(text))) => {
                return match serde_json::from_str::<FromAgent>(&text) {
                    Ok(FromAgent::Hello(hello)) => check(hello),
                    Ok(_) => Err(Farewell::nonsense("the first message must be a hello")),
                    Err(error) => Err(misfit(&text, &error)),
                };
            }
            Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
            Some(Ok(Message::Binary(_))) => return Err(Farewell::nonsense("messages are text")),
            Some(Ok(Message::Close(_))) | None => return Err(Farewell::gone()),
            Some(Err(error)) => return Err(Farewell::broken(error)),
        }
    }
}

/// A hello of another version may look different altogether; say so rather
/// than which field is missing.
fn misfit(text: &str, error: &serde_json::Error) -> Farewell {
    #[derive(serde::Deserialize)]
    struct Version {
        version: u32,
    }
    match serde_json::from_str::<Version>(text) {
        Ok(Version { version }) if !protocol::VERSIONS.contains(&version) => other_version(version),
        _ => Farewell::nonsense(format!("not understood: {error}")),
    }
}

fn other_version(version: u32) -> Farewell {
    let (least, most) = (protocol::VERSIONS.start(), protocol::VERSIONS.end());
    Farewell::new(close::VERSION, format!("version {version} is not spoken here; this broker speaks {least} to {most}"))
}

fn check(mut hello: Hello) -> Result<Hello, Farewell> {
    if !protocol::VERSIONS.contains(&hello.version) {
        return Err(other_version(hello.version));
    }
    if !(REPORT_INTERVAL_MS_MIN..=REPORT_INTERVAL_MS_MAX).contains(&hello.report_interval_ms) {
        return Err(Farewell::nonsense(format!(
            "report_interval_ms must be {REPORT_INTERVAL_MS_MIN} to {REPORT_INTERVAL_MS_MAX}"
        )));
    }
    let report = &hello.report;
    let full = matches!(report.sessions, Some(Inventory::Full(_)));
    if report.facts.is_none() || report.load.is_none() || report.health.is_none() || !full {
        return Err(Farewell::nonsense("the hello must hold a full report: facts, load, health and all sessions"));
    }
    bounds::check(&mut hello.report)?;
    Ok(hello)
}

/// Has the log take a hello, as long as its agent waits for that. One that is
/// proposed on after its agent went elsewhere could take the place of the newer
/// connection, and its report of what is there would be out of date. What was
/// under way by then may still be applied, and is ended.
pub(super) async fn admit(socket: &mut WebSocket, agents: &Agents, hello: Hello) -> Result<Epoch, Farewell> {
    let server = hello.server.clone();
    let admitted = tokio::select! {
        biased;
        admitted = timeout(ADMIT_TIMEOUT, connect(&agents.broker, hello)) => {
            admitted.unwrap_or_else(|_| Err(Farewell::log_takes_nothing()))
        }
        ended = ended(socket) => Err(ended),
    };
    // Only a refusal by the log says that nothing will come of it.
    if admitted.as_ref().is_err_and(|farewell| farewell.code != close::CLONED) {
        stray::look_for(agents, server);
    }
    admitted
}

/// Resolves when the agent does not wait any more. It says nothing before it is
/// welcome.
async fn ended(socket: &mut WebSocket) -> Farewell {
    loop {
        match socket.recv().await {
            Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
            Some(Ok(Message::Text(_) | Message::Binary(_))) => {
                return Farewell::nonsense("nothing may be said before the welcome");
            }
            Some(Ok(Message::Close(_))) | None => return Farewell::gone(),
            Some(Err(error)) => return Farewell::broken(error),
        }
    }
}

async fn connect(broker: &Broker, hello: Hello) -> Result<Epoch, Farewell> {
    let cloned = || Farewell::new(close::CLONED, CLONED_REASON);
    // Spares the log; an outdated state only makes the agent try once more.
    if broker.fleet().refuses_silently(&hello.server, &hello.instance) {
        return Err(cloned());
    }
    let command = Command::ConnectAgent {
        server: hello.server,
        instance: hello.instance,
        via: broker.id(),
        report_interval: Millis(hello.report_interval_ms),
        report: hello.report,
    };
    match broker.propose(vec![command]).await {
        Ok(outcomes) => match outcomes.first() {
            Some(Outcome::Welcome { epoch }) => Ok(*epoch),
            Some(Outcome::Refused(Refusal::OtherInstance)) => Err(cloned()),
            other => Err(Farewell::new(close::UNAVAILABLE, format!("not welcome: {other:?}"))),
        },
        Err(error) => Err(Farewell::new(close::UNAVAILABLE, error.to_string())),
    }
}
