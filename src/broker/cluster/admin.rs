//! Operators' view of the cluster, on their socket.

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post};
use axum::{Json, Router};
use serde::{Deserialize, Serialize};

use super::message::Wish;
use super::node::{INVITATION_LIFETIME, Node, WishError};
use super::token::JoinToken;
use crate::broker::admin::error;
use crate::broker::core::Broker;
use crate::broker::deeds::{self, Deeds};
use crate::domain::ids::InvitationId;
use crate::domain::{ReplicaId, Timestamp};

/// The cluster as one replica sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterView {
    /// The cluster's id.
    pub cluster: String,
    /// The replica that was asked.
    pub replica: u64,
    /// The leader, when there is one.
    pub leader: Option<u64>,
    /// The current term.
    pub term: u64,
    /// The last entry that was applied here.
    pub applied: Option<u64>,
    /// The authority that signs replicas' certificates.
    pub authority: u32,
    /// The format that the log is written in.
    pub format: u16,
    /// The last point at which this replica compared what it came to.
    pub checkpoint: Option<CheckpointView>,
    /// The members.
    pub members: Vec<MemberView>,
    /// Replicas that were let in and are no members yet.
    pub joining: Vec<u64>,
}

/// A point of the log at which replicas compare what they came to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckpointView {
    /// The entry.
    pub index: u64,
    /// Hash of what the entries up to it brought, in hexadecimal.
    pub hash: String,
    /// Replicas that came to the same when they were last compared.
    pub same: Vec<u64>,
    /// Replicas that came to something else: one of them is wrong.
    pub different: Vec<u64>,
}

/// A member as one replica sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberView {
    /// Its number.
    pub replica: u64,
    /// Where others reach it.
    pub address: String,
    /// Whether it votes; otherwise it learns.
    pub is_voter: bool,
    /// Up to where its log agrees with the leader's. Only the leader knows.
    pub matched: Option<u64>,
    /// How long ago the leader heard of it, in milliseconds. Only the leader
    /// knows.
    pub heard_ms_ago: Option<u64>,
}

/// Asks for a join token.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InviteRequest {
    /// The replica whose place the new one takes.
    pub replaces: Option<u64>,
}

/// A join token; shown this once.
#[derive(Clone, Serialize, Deserialize)]
pub struct InviteAnswer {
    /// The token.
    pub token: String,
    /// How long it is good for, in seconds.
    pub expires_in_seconds: u64,
}

/// An invitation as the log knows it. What was used is listed as long as its
/// replica is there; what was taken back is not, and what expired only until
/// the log drops it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InvitationView {
    /// Its id, which stands in the token.
    pub id: String,
    /// The replica that gave it out, while it is open.
    pub by: Option<u64>,
    /// Until when it is good, while it is open: RFC 3339.
    pub expires_at: Option<String>,
    /// Whether it has expired by the clock of the replica that was asked. Who
    /// comes with it is let in or not by the time of the log, which may be
    /// behind.
    pub seems_expired: bool,
    /// The replica whose place the new one takes.
    pub replaces: Option<u64>,
    /// The replica that came with it.
    pub used_by: Option<u64>,
}

/// Asks for another leader.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TransferRequest {
    /// Which; the best one when none is named.
    pub to: Option<u64>,
}

/// Asks for another format of the log.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RaiseRequest {
    /// Which.
    pub to: u16,
}

#[derive(Clone)]
struct Operators {
    node: Arc<Node>,
    broker: Arc<Broker>,
    deeds: Deeds,
}

/// What operators may ask.
pub fn routes(node: Arc<Node>, broker: Arc<Broker>, deeds: Deeds) -> Router {
    Router::new()
        .route("/cluster", get(view))
        .route("/cluster/invitations", post(invite).get(invitations))
        .route("/cluster/invitations/{id}", delete(revoke))
        .route("/cluster/replicas/{id}", delete(remove))
        .route("/cluster/leader", post(transfer))
        .route("/cluster/certificates", post(rotate))
        .route("/cluster/format", post(raise))
        .with_state(Operators { node, broker, deeds })
}

async fn view(State(operators): State<Operators>) -> Json<ClusterView> {
    let status = operators.broker.status();
    let fleet = operators.broker.fleet();
    let members = operators.node.members();
    let joining = fleet.cluster().admitted.keys().filter(|id| !members.contains_key(id)).map(|id| id.0);
    Json(ClusterView {
        cluster: operators.node.own().cluster.to_string(),
        replica: status.replica.0,
        leader: status.leader.map(|leader| leader.0),
        term: status.term,
        applied: status.applied.map(|index| index.0),
        authority: fleet.cluster().authority,
        format: status.format,
        checkpoint: checkpoint_of(&status.checkpoints),
        joining: joining.collect(),
        members: members
            .into_iter()
            .map(|(id, member)| MemberView {
                replica: id.0,
                address: member.member.address,
                is_voter: member.is_voter,
                matched: member.matched.map(|index| index.0),
                heard_ms_ago: member.heard.map(|heard| u64::try_from(heard.as_millis()).unwrap_or(u64::MAX)),
            })
            .collect(),
    })
}

fn checkpoint_of(status: &berth_raft::CheckpointStatus) -> Option<CheckpointView> {
    Some(CheckpointView {
        index: status.last?.0,
        hash: format!("{:016x}", status.hash),
        same: status.same.keys().map(|id| id.0).collect(),
        different: status.different.keys().map(|id| id.0).collect(),
    })
}

async fn invite(State(operators): State<Operators>, Json(request): Json<InviteRequest>) -> Response {
    let Operators { node, deeds, .. } = operators;
    let deed = deeds.deed(deeds::CLUSTER_ADD, String::new());
    let invitation = match node.invite(INVITATION_LIFETIME, request.replaces.map(ReplicaId), deed).await {
        Ok(invitation) => invitation,
        Err(error) => return failed(&error),
    };
    match node.invitation(&invitation, INVITATION_LIFETIME) {
        Ok((certified, authorities)) => {
            let cluster = node.own().cluster.clone();
            let token = JoinToken::new(cluster, invitation, node.addresses(), &authorities, &certified);
            let expires_in_seconds = INVITATION_LIFETIME.as_secs();
            Json(InviteAnswer { token: token.to_text().expose().to_owned(), expires_in_seconds }).into_response()
        }
        Err(cause) => error(StatusCode::INTERNAL_SERVER_ERROR, &cause.to_string()),
    }
}

async fn invitations(State(operators): State<Operators>) -> Response {
    let fleet = match operators.broker.current().await {
        Ok(fleet) => fleet,
        Err(cause) => return failed(&cause.into()),
    };
    // The log drops those that expired when the next one comes. Until then all
    // are told: a token that the leader's clock takes for good lets somebody in.
    let now = fleet.at().max(operators.broker.now());
    let open = fleet.cluster().invitations.iter().map(|(id, open)| InvitationView {
        id: id.as_str().to_owned(),
        by: Some(open.by.0),
        expires_at: Some(shown(open.expires_at)),
        seems_expired: open.expires_at <= now,
        replaces: open.replaces.map(|replica| replica.0),
        used_by: None,
    });
    let used = fleet.cluster().admitted.iter().map(|(replica, admission)| InvitationView {
        id: admission.invitation.as_str().to_owned(),
        by: None,
        expires_at: None,
        seems_expired: false,
        replaces: admission.replaces.map(|replica| replica.0),
        used_by: Some(replica.0),
    });
    Json(open.chain(used).collect::<Vec<_>>()).into_response()
}

fn shown(at: Timestamp) -> String {
    let at = i64::try_from(at.0).unwrap_or(i64::MAX);
    jiff::Timestamp::from_millisecond(at).unwrap_or(jiff::Timestamp::MAX).to_string()
}

async fn revoke(State(operators): State<Operators>, Path(id): Path<String>) -> Response {
    let Ok(id) = InvitationId::new(&id) else {
        return error(StatusCode::BAD_REQUEST, "this cannot be the id of an invitation");
    };
    let deed = operators.deeds.deed(deeds::CLUSTER_REVOKE, format!("invitation {id}"));
    match operators.node.revoke(id, deed).await {
        Ok(()) => StatusCode::NO_CONTENT.into_response(),
        Err(cause) => failed(&cause),
    }
}

async fn remove(State(operators): State<Operators>, Path(id): Path<u64>) -> Response {
    let target = format!("replica {id}");
    wished(&operators, deeds::CLUSTER_REMOVE, target, Wish::Remove(ReplicaId(id))).await
}

async fn transfer(State(operators): State<Operators>, Json(request): Json<TransferRequest>) -> Response {
    let target = request.to.map_or_else(|| "whichever is best".to_owned(), |to| format!("replica {to}"));
    let wish = Wish::TransferLeader(request.to.map(ReplicaId));
    wished(&operators, deeds::CLUSTER_TRANSFER_LEADER, target, wish).await
}

async fn rotate(State(operators): State<Operators>) -> Response {
    // One that lags would ask for what is done already.
    let current = match operators.broker.current().await {
        Ok(fleet) => fleet.cluster().authority,
        Err(error) => return failed(&error.into()),
    };
    let wish = Wish::RotateCertificates { to: current.saturating_add(1) };
    wished(&operators, deeds::CLUSTER_ROTATE_CERTIFICATES, String::new(), wish).await
}

async fn raise(State(operators): State<Operators>, Json(request): Json<RaiseRequest>) -> Response {
    let target = format!("format {}", request.to);
    wished(&operators, deeds::CLUSTER_RAISE_FORMAT, target, Wish::RaiseFormat(request.to)).await
}

/// Has a wish carried out. Where no command in the log is part of it, nobody
/// waits for its record: it is done, and a hand-over needs no majority here.
async fn wished(operators: &Operators, action: &'static str, target: String, wish: Wish) -> Response {
    let Operators { node, deeds, .. } = operators;
    let deed = deeds.deed(action, target);
    let is_recorded = wish.changes_log();
    let wished = node.wish(wish, Some(deed.clone())).await;
    match &wished {
        Ok(()) if is_recorded => {}
        Ok(()) => deeds.note(deed, "done"),
        Err(WishError::Refused(reason)) => deeds.note(deed, &format!("refused: {reason}")),
        Err(error @ WishError::UnderWay { .. }) => deeds.note(deed, &format!("not known: {error}")),
        Err(error) => deeds.note(deed, &format!("not done: {error}")),
    }
    match wished {
        Ok(()) => StatusCode::NO_CONTENT.into_response(),
        Err(error) => failed(&error),
    }
}

fn failed(cause: &WishError) -> Response {
    let status = match cause {
        WishError::Refused(_) => StatusCode::CONFLICT,
        WishError::NoLeader | WishError::Busy | WishError::Unavailable(_) => StatusCode::SERVICE_UNAVAILABLE,
        WishError::UnderWay { .. } => StatusCode::GATEWAY_TIMEOUT,
    };
    error(status, &cause.to_string())
}
