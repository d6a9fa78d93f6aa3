//! Making a backup: the state of one moment, as a stream of bytes.
//!
//! The state is an immutable view, so that writing it stops nobody. It is
//! written twice, once to know how long it is; in memory there are never more
//! than a few pieces of it.

use std::io::{self, BufWriter, Write};
use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::{Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use bytes::Bytes;
use serde::Deserialize;
use tokio::sync::{Semaphore, mpsc};
use tokio_util::sync::CancellationToken;

use super::format::{Checksum, Header};
use crate::broker::admin::error;
use crate::broker::api::door::{Core, View};
use crate::broker::cluster::node::Node;
use crate::broker::core::Broker;
use crate::broker::deeds::{self, Deeds};
use crate::domain::Fleet;
use crate::domain::fleet::{IMAGE_VERSION, ImageError};

/// Backups that are made at a time: each holds on to a state of its own.
const BACKUPS_MAX: usize = 1;
/// Bytes of a piece.
const PIECE_BYTES: usize = 256 * 1024;
/// Pieces that wait to be sent.
const PIECES_MAX: usize = 4;

/// How a backup is to be made.
#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct BackupRequest {
    /// From what this replica knows, without asking the others.
    #[serde(default)]
    stale: bool,
}

#[derive(Clone)]
struct Operators {
    node: Arc<Node>,
    broker: Arc<Broker>,
    deeds: Deeds,
    places: Arc<Semaphore>,
    shutdown: CancellationToken,
}

/// What operators may ask. What is being sent at `shutdown` is broken off.
pub fn routes(node: Arc<Node>, broker: Arc<Broker>, deeds: Deeds, shutdown: CancellationToken) -> Router {
    let places = Arc::new(Semaphore::new(BACKUPS_MAX));
    Router::new().route("/backup", get(backup)).with_state(Operators { node, broker, deeds, places, shutdown })
}

async fn backup(State(operators): State<Operators>, Query(request): Query<BackupRequest>) -> Response {
    let Operators { node, broker, deeds, places, shutdown } = operators;
    let Ok(place) = places.try_acquire_owned() else {
        return error(StatusCode::CONFLICT, "another backup is being made; wait for it to end");
    };
    let View { fleet, index } = if request.stale {
        broker.local()
    } else {
        // So that everything is in it that was acknowledged before.
        match broker.read().await {
            Ok(view) => view,
            Err(cause) => {
                let text = format!("{cause}; with --stale a backup is made of what this replica knows");
                return error(StatusCode::SERVICE_UNAVAILABLE, &text);
            }
        }
    };
    let known = fleet.cluster();
    let numbers = node.members().into_keys().chain(known.admitted.keys().copied());
    let header = Header {
        cluster: node.own().cluster.clone(),
        replica: broker.id(),
        index,
        at: fleet.at(),
        is_stale: request.stale,
        log_format: broker.status().format,
        image_version: IMAGE_VERSION,
        last_replica: numbers.chain([known.last_replica, broker.id()]).max().unwrap_or_default(),
        content_bytes: 0,
    };
    tracing::info!(%index, stale = request.stale, "an operator makes a backup");
    // One is made without a majority too, so nobody waits for the record.
    let how = if request.stale { ", of what this replica knows" } else { "" };
    let deed = deeds.deed(deeds::BACKUP, format!("entry {index}{how}"));
    deeds.note(deed.clone(), "begun");
    let (pieces, mut ready) = mpsc::channel(PIECES_MAX);
    tokio::task::spawn_blocking(move || {
        let mut out = BufWriter::with_capacity(PIECE_BYTES, Pieces(pieces.clone()));
        let written = write(&fleet, header, &mut out).and_then(|()| out.flush());
        if let Err(error) = written {
            tracing::warn!(%error, "a backup was not finished");
            deeds.note(deed, &format!("not finished: {error}"));
            // Whoever reads it is told, if anybody still does.
            drop(pieces.blocking_send(Err(error)));
        }
        drop(place);
    });
    let stream = futures_util::stream::poll_fn(move |context| ready.poll_recv(context));
    let stream = futures_util::StreamExt::take_until(stream, shutdown.cancelled_owned());
    ([(header::CONTENT_TYPE, "application/octet-stream")], Body::from_stream(stream)).into_response()
}

/// Sends what is written.
struct Pieces(mpsc::Sender<io::Result<Bytes>>);

impl Write for Pieces {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let gone = |_| io::Error::new(io::ErrorKind::BrokenPipe, "nobody takes it any more");
        self.0.blocking_send(Ok(Bytes::copy_from_slice(bytes))).map_err(gone)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Counts what is written.
#[derive(Default)]
struct Counter(u64);

impl Write for Counter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0 += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Goes on with the checksum of what is written.
struct Summed<'a> {
    out: &'a mut dyn Write,
    sum: Checksum,
}

impl Write for Summed<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.out.write(bytes)?;
        self.sum.update(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// Writes a whole file. How long the content is goes into the header.
pub(super) fn write(fleet: &Fleet, mut header: Header, out: &mut dyn Write) -> io::Result<()> {
    let broken = |error: ImageError| io::Error::other(error);
    let mut counter = BufWriter::new(Counter::default());
    fleet.write_image(&mut counter).map_err(broken)?;
    counter.flush()?;
    header.content_bytes = counter.get_ref().0;
    // Small writes are gathered before they are summed up.
    let mut summed = BufWriter::with_capacity(PIECE_BYTES, Summed { out, sum: Checksum::default() });
    summed.write_all(&header.encode())?;
    fleet.write_image(&mut summed).map_err(broken)?;
    let Summed { out, sum } = summed.into_inner().map_err(io::IntoInnerError::into_error)?;
    out.write_all(&sum.finish())
}
