//! What a replica answers to others, and what it does for operators.

use std::collections::BTreeSet;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use arc_swap::ArcSwap;
use berth_raft::{Lane, Member, MemberError, RaiseError, Replica};
use bytes::Bytes;
use futures_util::future::BoxFuture;
use tokio::time::Instant;

use super::accept::{Answered, Answers};
use super::authority::{Authorities, AuthorityError, Tls};
use super::dial::{Dialer, Failure, Own};
use super::frame::{self, Hello, Service, Speaker, Status, Unwelcome};
use super::members::{self, NotRemoved};
use super::message::{Answer, Introduction, Join, Joined, Question, Wish};
use super::runs::{Runs, Visit};
use crate::broker::agents::Colleagues;
use crate::broker::api::door::{AskError, Unavailable, UnavailableReason};
use crate::broker::core::Broker;
use crate::broker::deeds;
use crate::broker::machine::Machine;
use crate::domain::audit::{Actor, Deed};
use crate::domain::ids::InvitationId;
use crate::domain::request::Fingerprint;
use crate::domain::{Command, Millis, Outcome, Refusal, ReplicaId, ServerId};
use crate::protocol::{Question as AgentQuestion, Reply};
use crate::secret::Secret;

/// How long an operator's wish may look for a leader that carries it out.
const WISH_TIMEOUT: Duration = Duration::from_secs(15);
/// Between two attempts.
const WISH_RETRY: Duration = Duration::from_millis(100);
/// How long a question to another replica may take.
const QUESTION_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the leader may take to carry out a wish: a removal waits for those
/// that are left to answer, and then for three entries of the log.
const CARRY_OUT_TIMEOUT: Duration = Duration::from_secs(45);
/// How long a replica may take to follow a change of certificates, before the
/// next one is refused.
const FOLLOW_TIMEOUT: Duration = Duration::from_secs(5);
/// One that was silent for longer is not asked to lead.
const TRANSFER_SILENCE_MAX: Duration = Duration::from_secs(2);

/// Why an operator's wish was not carried out.
#[derive(Debug, Clone, thiserror::Error)]
pub enum WishError {
    /// It was considered and refused.
    #[error("{0}")]
    Refused(String),
    /// Nobody leads.
    #[error("no leader was found within {} s; see `berth cluster status`", WISH_TIMEOUT.as_secs())]
    NoLeader,
    /// Another change of members has not ended.
    #[error("another change of members is going on; see `berth cluster status`, and ask again when it is done")]
    Busy,
    /// The leader took it on, and what became of it is not known.
    #[error(
        "replica {leader} leads and took it on, but has not answered: it may still be going on. See `berth cluster \
         status` before you ask again"
    )]
    UnderWay {
        /// Who was asked.
        leader: ReplicaId,
    },
    /// The log did not take it.
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
}

/// What makes a replica known to others.
pub struct Keys {
    /// The cluster's secret.
    pub secret: Secret,
    /// What is made of it.
    pub authorities: Authorities,
    /// The authority whose certificates are shown now.
    pub authority: u32,
    /// TLS with them.
    pub tls: Arc<ArcSwap<Tls>>,
}

/// A replica among others.
pub struct Node {
    own: Own,
    address: String,
    had_log: bool,
    secret: Secret,
    authorities: Authorities,
    tls: Arc<ArcSwap<Tls>>,
    /// The authority whose certificates are shown now.
    authority: std::sync::atomic::AtomicU32,
    dialer: Arc<Dialer>,
    serving: OnceLock<Serving>,
    /// Who is connected.
    runs: Arc<Runs>,
}

struct Serving {
    replica: Replica<Machine>,
    broker: Arc<Broker>,
}

impl Serving {
    /// Proposes a command and has it recorded who wanted it, if somebody did.
    async fn propose(&self, deed: Option<Deed>, command: Command) -> Result<Option<Outcome>, Unavailable> {
        let outcomes = match deed {
            Some(deed) => self.broker.propose_audited(deed, vec![command]).await?,
            None => self.broker.propose(vec![command]).await?,
        };
        Ok(outcomes.into_iter().next())
    }
}

impl Node {
    /// A replica that answers who it is, and nothing else yet.
    pub fn new(own: Own, address: String, had_log: bool, keys: Keys, dialer: Arc<Dialer>) -> Self {
        let Keys { secret, authorities, authority, tls } = keys;
        let authority = std::sync::atomic::AtomicU32::new(authority);
        let (serving, runs) = (OnceLock::new(), Arc::default());
        Self { own, address, had_log, secret, authorities, tls, authority, dialer, serving, runs }
    }

    /// From now on it takes part.
    pub fn serves(&self, replica: Replica<Machine>, broker: Arc<Broker>) {
        // Called once, at the start.
        drop(self.serving.set(Serving { replica, broker }));
    }

    /// Who this replica is.
    pub const fn own(&self) -> &Own {
        &self.own
    }

    /// Where others are told to reach it; nothing when it is alone.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// The connections to others.
    pub const fn dialer(&self) -> &Arc<Dialer> {
        &self.dialer
    }

    /// The authority whose certificates are shown now.
    pub fn authority(&self) -> u32 {
        self.authority.load(std::sync::atomic::Ordering::Relaxed)
    }

    /// Shows new certificates, of this authority, from now on.
    pub fn certify(&self, authority: u32) -> Result<(), AuthorityError> {
        let tls = self.authorities.tls(authority, self.own.replica, &self.own.folder)?;
        self.tls.store(Arc::new(tls));
        let before = self.authority.swap(authority, std::sync::atomic::Ordering::Relaxed);
        if before != authority {
            tracing::info!(authority, "replicas are shown certificates of another authority");
        }
        self.dialer.renew();
        Ok(())
    }

    /// Certificate, key and authorities of an invitation, for its token.
    pub fn invitation(
        &self,
        invitation: &InvitationId,
        within: Millis,
    ) -> Result<(super::authority::Certified, Vec<rustls::pki_types::CertificateDer<'static>>), AuthorityError> {
        let authority = self.authority();
        let certified = self.authorities.invitation(authority, invitation, Duration::from_millis(within.0))?;
        Ok((certified, self.authorities.trusted(authority)?))
    }

    /// Where the members are, this replica first.
    pub fn addresses(&self) -> Vec<String> {
        let mut addresses = vec![self.address.clone()];
        if let Some(serving) = self.serving.get() {
            let members = serving.replica.members();
            let others = members.iter().filter(|(id, _)| id.0 != self.own.replica.0);
            addresses.extend(others.map(|(_, member)| member.member.address.clone()));
        }
        addresses.retain(|address| !address.is_empty());
        addresses
    }

    fn introduction(&self) -> Introduction {
        let members = self.serving.get().map(|serving| serving.replica.members()).unwrap_or_default();
        Introduction {
            replica: self.own.replica,
            folder: self.own.folder.clone(),
            has_log: self.had_log || !members.is_empty(),
            members: members.into_iter().map(|(id, member)| (ReplicaId(id.0), member.member.folder)).collect(),
            authority: self.authority(),
        }
    }

    /// Asks another replica who it is.
    pub async fn introduced(&self, to: ReplicaId) -> Result<Introduction, Failure> {
        match self.question(to, &Question::Introduce, QUESTION_TIMEOUT).await? {
            Answer::Introduction(introduction) => Ok(introduction),
            other => Err(Failure::NoAnswer(format!("{other:?} is no introduction"))),
        }
    }

    async fn question(&self, to: ReplicaId, question: &Question, within: Duration) -> Result<Answer, Failure> {
        let asked = self.dialer.ask(to, Lane::Replication, Service::Cluster, frame::encode(question));
        let answer = tokio::time::timeout(within, asked).await;
        let answer = answer.map_err(|_| Failure::NoAnswer("in time".to_owned()))??;
        frame::decode(&answer).map_err(|error| Failure::NoAnswer(error.to_string()))
    }

    /// Has the leader carry out a wish, wherever it is. One whose answer was
    /// lost is asked again, which does no harm: at worst the leadership moves on
    /// once more. What it changes in the log
    /// ([`Wish::changes_log`]) is recorded with it, as the deed.
    pub async fn wish(&self, wish: Wish, deed: Option<Deed>) -> Result<(), WishError> {
        let Some(serving) = self.serving.get() else { return Err(WishError::NoLeader) };
        let deadline = Instant::now() + WISH_TIMEOUT;
        let mut asked = None;
        // Who said that it does not lead.
        let mut passed = BTreeSet::new();
        loop {
            let whom = self.who_may_lead(serving, &passed);
            let answer = match whom {
                Some(leader) if leader == self.own.replica => self.carry_out(serving, wish.clone(), deed.clone()).await,
                Some(leader) => {
                    let question = Question::Do(wish.clone(), deed.clone());
                    match self.question(leader, &question, CARRY_OUT_TIMEOUT).await {
                        Ok(answer) => answer,
                        Err(failure) => {
                            tracing::debug!(%leader, %failure, "the leader did not answer");
                            if matches!(failure, Failure::NoAnswer(_)) {
                                asked = Some(leader);
                            }
                            Answer::NotLeader
                        }
                    }
                }
                None => Answer::NotLeader,
            };
            match (&answer, whom) {
                (Answer::NotLeader, Some(whom)) => drop(passed.insert(whom)),
                // All were asked; from the beginning then.
                (_, None) => passed.clear(),
                _ => {}
            }
            let is_over = Instant::now() >= deadline;
            match (answer, asked) {
                (Answer::Done, _) => return Ok(()),
                (Answer::Refused(reason), _) => return Err(WishError::Refused(reason)),
                (_, Some(leader)) if is_over => return Err(WishError::UnderWay { leader }),
                (Answer::Busy, None) if is_over => return Err(WishError::Busy),
                _ if is_over => return Err(WishError::NoLeader),
                _ => tokio::time::sleep(WISH_RETRY).await,
            }
        }
    }

    /// Whom to ask for a leader's work: the leader, if one is known. A replica
    /// that came back at another address knows none, or an earlier one, until
    /// the leader knows where it is: it asks one member after the other.
    fn who_may_lead(&self, serving: &Serving, passed: &BTreeSet<ReplicaId>) -> Option<ReplicaId> {
        let known = serving.replica.status().leader.map(|leader| ReplicaId(leader.0));
        if known == Some(self.own.replica) {
            return known;
        }
        let members = serving.replica.members();
        let others = members.keys().map(|id| ReplicaId(id.0)).filter(|id| *id != self.own.replica);
        known.into_iter().chain(others).find(|id| !passed.contains(id))
    }

    async fn carry_out(&self, serving: &Serving, wish: Wish, deed: Option<Deed>) -> Answer {
        let done = match wish {
            Wish::Remove(replica) => Self::remove(serving, replica, deed).await,
            Wish::TransferLeader(to) => transfer(&serving.replica, self.own.replica, to).await,
            Wish::Move { replica, .. } if !serving.replica.is_member(raft_id(replica)) => {
                Err(refusal(MemberError::Unknown(raft_id(replica))))
            }
            Wish::Move { replica, folder, address } => {
                let member = Member { address, folder: folder.as_str().to_owned() };
                serving.replica.add_learner(raft_id(replica), member).await.map_err(refusal)
            }
            Wish::RotateCertificates { to } => self.rotate(serving, to, deed).await,
            Wish::RaiseFormat(to) => raise_format(serving, to).await,
        };
        match done {
            Ok(()) => Answer::Done,
            Err(answer) => answer,
        }
    }

    /// Removes a member.
    async fn remove(serving: &Serving, replica: ReplicaId, deed: Option<Deed>) -> Result<(), Answer> {
        let fleet = serving.broker.fleet();
        let retire = async { serving.propose(deed, Command::RetireReplica { replica }).await.map(drop) };
        let removed = members::remove(&serving.replica, fleet.cluster(), replica, retire).await;
        removed.map_err(|error| match error {
            NotRemoved::HandedOver => Answer::NotLeader,
            NotRemoved::Leads => {
                Answer::Refused("this replica leads, and no other one can take over; it cannot be removed".to_owned())
            }
            NotRemoved::Unchanged(error) => refusal(error),
            NotRemoved::NotTaken(error) => unavailable(&error),
        })?;
        tracing::info!(%replica, "a replica was removed from the cluster");
        Ok(())
    }

    /// Moves on to an authority, when it is the next one and all have moved to
    /// the current one.
    async fn rotate(&self, serving: &Serving, to: u32, deed: Option<Deed>) -> Result<(), Answer> {
        // One that leads since a moment ago may not have applied everything yet.
        let fleet = serving.broker.current().await.map_err(|error| unavailable(&error))?;
        let current = fleet.cluster().authority;
        for id in serving.replica.members().keys().map(|id| ReplicaId(id.0)) {
            // What is done already is only recorded.
            if id == self.own.replica || current == to {
                continue;
            }
            self.follows(id, current).await.map_err(|why| {
                Answer::Refused(format!(
                    "replica {id} {why}; certificates change only when all replicas follow: bring it back or remove it"
                ))
            })?;
        }
        let rotated = serving.propose(deed, Command::RotateAuthority { to }).await;
        match rotated.map_err(|error| unavailable(&error))? {
            Some(Outcome::Refused(refusal)) => Err(Answer::Refused(refusal.to_string())),
            _ => Ok(()),
        }
    }

    /// Waits until a replica shows certificates of an authority, or says why it
    /// does not. Right after a change its connections are made anew, and a
    /// question is lost with the one that it was on.
    async fn follows(&self, id: ReplicaId, authority: u32) -> Result<(), String> {
        let deadline = Instant::now() + FOLLOW_TIMEOUT;
        loop {
            let why = match self.introduced(id).await {
                Ok(introduction) if introduction.authority == authority => return Ok(()),
                Ok(introduction) => format!("still shows certificates of authority {}", introduction.authority),
                Err(failure) => failure.to_string(),
            };
            if Instant::now() >= deadline {
                return Err(why);
            }
            tokio::time::sleep(WISH_RETRY).await;
        }
    }

    /// Lets a replica in that came with an invitation.
    async fn join(&self, invitation: &InvitationId, join: Join) -> Result<Joined, Status> {
        let serving = self.serving.get().ok_or(Status::NotServing)?;
        if let Err(reason) = check_address(&join.address) {
            return Ok(Joined::Refused(reason));
        }
        // What is applied here may lag: neither the invitation nor a newer
        // format need be known. A token that is used up brings nothing into
        // the log.
        let fleet = serving.broker.current().await.map_err(|_| Status::NotServing)?;
        let known = fleet.cluster();
        let is_known = known.invitations.contains_key(invitation)
            || known.admitted.values().any(|admission| admission.invitation == *invitation);
        if !is_known {
            return Ok(Joined::Refused(Refusal::UnknownInvitation.to_string()));
        }
        let format = serving.replica.status().format;
        if join.format_max < format {
            let text = format!(
                "the log is written in format {format}, and the new replica reads up to {}: give it this build, or \
                 another `format_max` in `[cluster]`",
                join.format_max
            );
            return Ok(Joined::Refused(text));
        }
        let proof = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, join.proof.as_bytes());
        let proof = <[u8; 32]>::try_from(proof.as_ref()).map(Fingerprint).map_err(|_| Status::NotServing)?;
        let above = serving.replica.members().keys().next_back().map_or(self.own.replica, |id| ReplicaId(id.0));
        // It gets the cluster's secret: that is on record before.
        let deed = Deed {
            actor: Actor::Operator,
            from: join.address.clone(),
            action: deeds::CLUSTER_JOIN.to_owned(),
            target: format!("invitation {invitation}, folder {}", join.folder),
            request_id: String::new(),
            via: self.own.replica,
        };
        let command = Command::AdmitReplica {
            invitation: invitation.clone(),
            folder: join.folder,
            address: join.address,
            proof,
            above: above.max(self.own.replica),
        };
        match serving.propose(Some(deed), command).await {
            Ok(outcome) => Ok(match outcome {
                Some(Outcome::Admitted { replica }) => {
                    tracing::info!(%replica, %invitation, "a replica joins");
                    let authority = self.authority();
                    Joined::Welcome { replica, secret: self.secret.expose().to_owned(), authority }
                }
                Some(Outcome::Refused(refusal)) => Joined::Refused(refusal.to_string()),
                _ => Joined::Refused("the log did not say what became of it".to_owned()),
            }),
            Err(error) => {
                tracing::warn!(%error, "a replica could not be let in");
                Err(Status::NotServing)
            }
        }
    }

    async fn cluster(&self, from: ReplicaId, question: Question) -> Answered {
        let answer = match question {
            Question::Introduce => Answer::Introduction(self.introduction()),
            Question::Do(Wish::Move { replica, .. }, _) if replica != from => {
                Answer::Refused("a replica moves by itself".to_owned())
            }
            Question::Do(wish, deed) => match self.serving.get() {
                Some(serving) if serving.replica.status().is_leader() => self.carry_out(serving, wish, deed).await,
                _ => Answer::NotLeader,
            },
        };
        (Status::Done, frame::encode(&answer))
    }
}

impl Colleagues for Node {
    fn ask<'a>(
        &'a self,
        replica: ReplicaId,
        server: &'a ServerId,
        question: AgentQuestion,
    ) -> BoxFuture<'a, Result<Reply, AskError>> {
        Box::pin(async move {
            let request = frame::encode(&(server, question));
            // Not beside heartbeats or entries: a picture is large.
            let answer = self.dialer.ask(replica, Lane::Snapshot, Service::Agents, request).await;
            let answer = answer.map_err(|failure| {
                tracing::debug!(%replica, %failure, "a question to an agent was not passed on");
                AskError::Unreachable
            })?;
            frame::decode_large(&answer).unwrap_or(Err(AskError::Unreachable))
        })
    }
}

impl Answers for Node {
    fn welcome(&self, hello: &Hello) -> Result<(), Unwelcome> {
        if hello.to.is_some_and(|to| to != self.own.replica) {
            return Err(Unwelcome::NotMe(self.own.replica));
        }
        let (Speaker::Replica { id, folder, .. }, Some(serving)) = (&hello.speaker, self.serving.get()) else {
            return Ok(());
        };
        match serving.replica.members().get(&raft_id(*id)) {
            Some(known) if !known.member.folder.is_empty() && known.member.folder != folder.as_str() => {
                Err(Unwelcome::OtherFolder { id: *id })
            }
            None if members::was_removed(&serving.replica, serving.broker.fleet().cluster(), *id) => {
                Err(Unwelcome::Removed { id: *id, cluster: self.own.cluster.clone() })
            }
            Some(_) | None => Ok(()),
        }
    }

    fn visit(&self, speaker: &Speaker) -> Result<Option<Visit>, Unwelcome> {
        match speaker {
            Speaker::Invited(_) => Ok(None),
            Speaker::Replica { id, .. } if *id == self.own.replica => Err(Unwelcome::Doubled { id: *id }),
            Speaker::Replica { id, run, .. } => match self.runs.enter(*id, *run) {
                Some(visit) => Ok(Some(visit)),
                None => Err(Unwelcome::Doubled { id: *id }),
            },
        }
    }

    fn answer(&self, from: &Speaker, service: Service, request: Bytes) -> BoxFuture<'_, Answered> {
        let from = from.clone();
        Box::pin(async move {
            let nonsense = |error: std::io::Error| (Status::Refused, Bytes::from(error.to_string()));
            // It may have been removed since it said hello.
            if let (Speaker::Replica { id, .. }, Some(serving)) = (&from, self.serving.get())
                && !serving.replica.is_member(raft_id(*id))
                && let Err(unwelcome) = self.welcome(&Hello { speaker: from.clone(), to: None })
            {
                return (Status::Unwelcome, frame::encode(&unwelcome));
            }
            match (service, from) {
                (Service::Log, Speaker::Replica { id, .. }) => match self.serving.get() {
                    Some(serving) => {
                        let answer = serving.replica.answer_peer(raft_id(id), &request).await;
                        (Status::Done, Bytes::from(answer))
                    }
                    None => (Status::NotServing, Bytes::new()),
                },
                (Service::Agents, Speaker::Replica { .. }) => match (frame::decode(&request), self.serving.get()) {
                    (Ok((server, question)), Some(serving)) => {
                        let server: ServerId = server;
                        let answer = serving.broker.answer_colleague(&server, question).await;
                        (Status::Done, frame::encode(&answer))
                    }
                    (Ok(_), None) => (Status::NotServing, Bytes::new()),
                    (Err(error), _) => nonsense(error),
                },
                (Service::Cluster, Speaker::Replica { id, .. }) => match frame::decode(&request) {
                    Ok(question) => self.cluster(id, question).await,
                    Err(error) => nonsense(error),
                },
                (Service::Join, Speaker::Invited(invitation)) => match frame::decode(&request) {
                    Ok(join) => match self.join(&invitation, join).await {
                        Ok(joined) => (Status::Done, frame::encode(&joined)),
                        Err(status) => (status, Bytes::new()),
                    },
                    Err(error) => nonsense(error),
                },
                _ => (Status::Refused, Bytes::from_static(b"there is no such service for you")),
            }
        })
    }
}

/// Raises the format, unless a replica was let in that is no member yet: what
/// it reads was compared with the format of then, and nobody can ask it now.
async fn raise_format(serving: &Serving, to: u16) -> Result<(), Answer> {
    let fleet = serving.broker.current().await.map_err(|error| unavailable(&error))?;
    let expected = fleet.cluster().admitted.keys().find(|id| !serving.replica.is_member(raft_id(**id)));
    if let Some(id) = expected {
        let text = format!(
            "replica {id} was let in and has not come yet; start it, or remove it, before the format is raised"
        );
        return Err(Answer::Refused(text));
    }
    serving.replica.raise_format(to).await.map_err(|error| match error {
        RaiseError::NotLeader { .. } => Answer::NotLeader,
        RaiseError::MembersChange => Answer::Busy,
        error => Answer::Refused(error.to_string()),
    })
}

async fn transfer(replica: &Replica<Machine>, own: ReplicaId, to: Option<ReplicaId>) -> Result<(), Answer> {
    let Some(to) = to else {
        let is_done = replica.hand_over().await;
        return match replica.status().leader {
            _ if is_done => Ok(()),
            Some(leader) if leader == raft_id(own) => Err(Answer::Refused("no other replica can take over".to_owned())),
            // It does not lead for now, or any more.
            _ => Err(Answer::NotLeader),
        };
    };
    if replica.status().leader == Some(raft_id(to)) {
        return Ok(());
    }
    match replica.members().get(&raft_id(to)) {
        Some(member) if !member.is_voter => {
            return Err(Answer::Refused(format!("replica {to} does not vote yet")));
        }
        Some(member) if member.heard.is_none_or(|heard| heard > TRANSFER_SILENCE_MAX) => {
            return Err(Answer::Refused(format!("replica {to} is not heard of")));
        }
        Some(_) => {}
        None => return Err(refusal(MemberError::Unknown(raft_id(to)))),
    }
    let asked = replica.hand_over_to(raft_id(to)).await.map_err(|reason| Answer::Refused(reason.to_string()))?;
    let leader = replica.status().leader;
    if leader == Some(raft_id(to)) {
        return Ok(());
    }
    if leader != Some(raft_id(own)) && !asked {
        return Err(Answer::NotLeader);
    }
    let how = if asked { "did not take over" } else { "did not get the rest of the log in time" };
    Err(Answer::Refused(format!("replica {to} {how}; see `berth cluster status`")))
}

/// An address that others can be told: `host:port`, short, printable.
pub fn check_address(address: &str) -> Result<(), String> {
    const BYTES_MAX: usize = 262;
    let parts = address.rsplit_once(':');
    let is_good = parts.is_some_and(|(host, port)| {
        !host.is_empty() && port.parse::<u16>().is_ok_and(|port| port > 0) && !host.contains(char::is_whitespace)
    });
    if is_good && address.len() <= BYTES_MAX && !address.chars().any(char::is_control) {
        return Ok(());
    }
    Err(format!("`{}` is no address; it must be host:port", address.escape_debug()))
}

const fn raft_id(id: ReplicaId) -> berth_raft::ReplicaId {
    berth_raft::ReplicaId(id.0)
}

fn refusal(error: MemberError) -> Answer {
    match error {
        MemberError::NotLeader { .. } => Answer::NotLeader,
        MemberError::InProgress => Answer::Busy,
        error => Answer::Refused(error.to_string()),
    }
}

fn unavailable(error: &Unavailable) -> Answer {
    match error.reason {
        UnavailableReason::NoQuorum
        | UnavailableReason::Behind
        | UnavailableReason::Busy
        | UnavailableReason::NotServing => Answer::NotLeader,
        UnavailableReason::Storage | UnavailableReason::OutcomeUnknown => Answer::Refused(error.to_string()),
    }
}

/// How long a new invitation is good for.
pub const INVITATION_LIFETIME: Millis = Millis::from_secs(3_600);

impl Node {
    /// Opens an invitation in the log. The deed's target becomes what is opened.
    pub async fn invite(
        &self,
        within: Millis,
        replaces: Option<ReplicaId>,
        mut deed: Deed,
    ) -> Result<InvitationId, WishError> {
        let serving = self.serving.get().ok_or(WishError::NoLeader)?;
        if let Some(replaced) = replaces
            && !serving.replica.members().contains_key(&raft_id(replaced))
        {
            return Err(WishError::Refused(MemberError::Unknown(raft_id(replaced)).to_string()));
        }
        if self.address.is_empty() {
            let text = "this replica has no address for others; set `address` in `[cluster]` and start it again";
            return Err(WishError::Refused(text.to_owned()));
        }
        let id = InvitationId::new(&uuid::Uuid::new_v4().to_string()).expect("a UUID is a valid id");
        let command = Command::InviteReplica { id: id.clone(), within, replaces, by: self.own.replica };
        deed.target = match replaces {
            Some(old) => format!("invitation {id}, in the place of replica {old}"),
            None => format!("invitation {id}"),
        };
        match serving.propose(Some(deed), command).await? {
            Some(Outcome::Refused(refusal)) => Err(WishError::Refused(refusal.to_string())),
            _ => Ok(id),
        }
    }

    /// Takes an invitation back that was not used.
    pub async fn revoke(&self, id: InvitationId, deed: Deed) -> Result<(), WishError> {
        let serving = self.serving.get().ok_or(WishError::NoLeader)?;
        match serving.propose(Some(deed), Command::RevokeInvitation { id: id.clone() }).await? {
            Some(Outcome::Refused(Refusal::InvitationUsed)) => {
                let fleet = serving.broker.fleet();
                let mut admitted = fleet.cluster().admitted.iter();
                let by = admitted.find(|(_, admission)| admission.invitation == id);
                let by = by.map_or_else(|| "a replica".to_owned(), |(replica, _)| format!("replica {replica}"));
                Err(WishError::Refused(format!("it was used by {by}; `berth cluster remove` removes that one")))
            }
            Some(Outcome::Refused(Refusal::UnknownInvitation)) => {
                let text = "there is no such invitation, or it has expired; see `berth cluster invitations`";
                Err(WishError::Refused(text.to_owned()))
            }
            Some(Outcome::Refused(refusal)) => Err(WishError::Refused(refusal.to_string())),
            _ => {
                tracing::info!(invitation = %id, "an invitation was taken back");
                Ok(())
            }
        }
    }

    /// How long ago each of the other replicas was heard of, while this one
    /// leads; `began` is when it began to.
    pub fn last_heard(&self, began: Instant) -> std::collections::BTreeMap<ReplicaId, Duration> {
        let members = self.members().into_iter().filter(|(id, _)| *id != self.own.replica);
        members.map(|(id, member)| (id, member.heard.unwrap_or_else(|| began.elapsed()))).collect()
    }

    /// The members, as this replica knows them.
    pub fn members(&self) -> std::collections::BTreeMap<ReplicaId, berth_raft::MemberStatus> {
        let members = self.serving.get().map(|serving| serving.replica.members()).unwrap_or_default();
        members.into_iter().map(|(id, member)| (ReplicaId(id.0), member)).collect()
    }
}
