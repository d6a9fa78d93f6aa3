//! A desktop host: the product's agent on the simulated network, with simulated
//! desktops of which the world keeps account.

use std::sync::Arc;
use std::time::Duration;

use berth::agent::config::DesktopKind;
use berth::agent::desktops::simulated::{Settings, Simulated};
use berth::agent::desktops::{Desktops, Failure, Shot, State};
use berth::agent::{Config, run_over};
use berth::domain::{InstructionId, SessionId, SessionSpec};
use berth::protocol::Image;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::sync::watch;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::net::FromHost;
use super::world::World;
use super::{AGENT_PORT, BROKER, Moment, REPORT_INTERVAL};

/// How long making a desktop takes: long enough to be interrupted.
const CREATE_MS: u64 = 150;

/// Simulated desktops that tell the world of each.
struct Counted {
    host: String,
    world: Arc<World>,
    desktops: Arc<Simulated>,
}

impl Desktops for Counted {
    fn version(&self) -> String {
        self.desktops.version()
    }

    fn console_sessions(&self) -> bool {
        self.desktops.console_sessions()
    }

    fn watch(&self) -> watch::Receiver<State> {
        self.desktops.watch()
    }

    fn create(
        &self,
        session: SessionId,
        spec: SessionSpec,
        created_by: Option<InstructionId>,
    ) -> BoxFuture<'_, Result<(), Failure>> {
        async move {
            let made = self.desktops.create(session.clone(), spec, created_by).await;
            if made.is_ok() {
                self.world.made(&self.host, &session);
                self.world.happens(&self.host, Moment::Made);
            }
            made
        }
        .boxed()
    }

    fn close(&self, session: SessionId) -> BoxFuture<'_, Result<(), Failure>> {
        async move {
            let closed = self.desktops.close(session.clone()).await;
            if closed.is_ok() {
                self.world.ended(&self.host, &session);
            }
            closed
        }
        .boxed()
    }

    fn set_permissions(&self, session: SessionId, permissions: String) -> BoxFuture<'_, Result<(), Failure>> {
        self.desktops.set_permissions(session, permissions)
    }

    fn screenshot(&self, session: SessionId, shot: Shot) -> BoxFuture<'_, Result<Vec<Image>, Failure>> {
        self.desktops.screenshot(session, shot)
    }
}

/// The name of a host, and of the server that it is.
pub fn name(number: u32) -> String {
    format!("desk-{number}")
}

/// What runs on it, from its start to its death.
pub async fn live(world: Arc<World>, host: String) -> turmoil::Result {
    // The facts of a host are read by a thread of its own. At this distance from the steps of the
    // network nothing else happens at the same instant, and what comes of it has one order.
    sleep(Duration::from_millis(2)).await;
    let folder = world.folder_of(&host);
    std::fs::create_dir_all(&folder)?;
    std::fs::write(folder.join("server-id"), &host)?;
    let (statement, ca_file) = (world.site.statement_file(), world.site.ca_file());
    let settings = Settings { create_delay_ms: CREATE_MS, hostname: Some(host.clone()), ..Settings::default() };
    let config = Config {
        broker_port: AGENT_PORT,
        ca_file: Some(ca_file),
        tags_folder: folder.join("tags"),
        max_concurrent_sessions_per_user: None,
        broker_update_interval: REPORT_INTERVAL,
        desktops: DesktopKind::Simulated,
        simulated: settings.clone(),
        ..Config::new(BROKER, &statement, &folder)
    };
    let desktops = Arc::new(Simulated::new(settings));
    world.starts(&host, &desktops);
    let network = Arc::new(FromHost { host: host.clone(), world: Arc::clone(&world) });
    let counted = Arc::new(Counted { host, world, desktops });
    run_over(network, config, counted, CancellationToken::new()).await?;
    Ok(())
}
