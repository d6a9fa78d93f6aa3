//! Calls that change something: a list of items, each of which becomes a
//! command, all in one proposal.
//!
//! Every such handler takes a [`Changing`], hands it to
//! [`ApiState::carry_out`], and answers with a [`Changed`]. Whether the call
//! has an idempotency key is dealt with here, once for all of them.

use axum::Json;
use axum::extract::{FromRequest, FromRequestParts as _, Request};
use axum::http::HeaderValue;
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::audit::{self, Route};
use super::auth::Calling;
use super::consistency::Reading;
use super::door::{Caller, Proposed};
use super::envelope::RequestId;
use super::error::Error;
use super::idempotency::{Headed, REPLAYED_HEADER, Repeatable};
use super::{ApiState, Failure, body, unexpected};
use crate::domain::audit::{Actor, Deed, counted};
use crate::domain::{Command, Outcome, Refusal, request};

/// A call that changes something.
#[derive(Debug)]
pub(super) struct Changing<T> {
    items: Vec<T>,
    call: Call,
}

/// Who calls, and how the call is known.
#[derive(Debug)]
struct Call {
    caller: Caller,
    action: String,
    from: String,
    request_id: String,
    reading: Reading,
    repeatable: Option<Repeatable>,
}

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Changing<T> {
    type Rejection = Error;

    async fn from_request(request: Request, state: &S) -> Result<Self, Error> {
        let (mut head, content) = request.into_parts();
        let RequestId(request_id) = RequestId::from_request_parts(&mut head, state).await?;
        let Calling(caller) = Calling::from_request_parts(&mut head, state).await?;
        let Route { action, from } = Route::of(&head.extensions);
        let reading = Reading::from_request_parts(&mut head, state).await?;
        let headed = Headed::new(&head, caller.grant.owner.as_ref())?;
        let content = body::read(Request::from_parts(head, content), state).await?;
        let items = body::items(&content)?;
        let repeatable = headed.map(|headed| headed.with_body(&content));
        Ok(Self { items, call: Call { caller, action, from, request_id, reading, repeatable } })
    }
}

impl<T> Changing<T> {
    /// The same call with something else for each item.
    pub(super) fn map<U>(self, change: impl FnMut(T) -> U) -> Changing<U> {
        Changing { items: self.items.into_iter().map(change).collect(), call: self.call }
    }
}

/// What became of a call.
#[derive(Debug)]
pub(super) struct Done<T> {
    /// What became of each item, in order.
    pub(super) results: Vec<(T, Result<Outcome, Failure>)>,
    /// Id of the request that did it: this one, or the one that it repeats.
    pub(super) request_id: String,
    /// Whether it was done before.
    pub(super) is_repeated: bool,
}

/// The answer to a call that changed something, now or before.
#[derive(Debug)]
pub(super) struct Changed<B> {
    pub(super) body: B,
    pub(super) is_repeated: bool,
}

impl<B: Serialize> IntoResponse for Changed<B> {
    fn into_response(self) -> Response {
        let mut response = Json(self.body).into_response();
        if self.is_repeated {
            response.headers_mut().insert(REPLAYED_HEADER, HeaderValue::from_static("true"));
        }
        response
    }
}

/// What was proposed came to this.
struct Settled {
    outcomes: Vec<Outcome>,
    request_id: String,
    is_repeated: bool,
}

impl ApiState {
    /// Makes a command of each item, proposes all of them as one, in order,
    /// and tells what became of each item, in order.
    ///
    /// A repeated call makes its commands anew and throws them away: which
    /// items are good depends on the items alone, so what came of the first
    /// call's commands tells what became of this one's items.
    pub(super) async fn carry_out<T>(
        &self,
        changing: Changing<T>,
        command: impl Fn(&Caller, &T) -> Result<Command, Failure>,
    ) -> Result<Done<T>, Error> {
        let Changing { items, call } = changing;
        let mut commands = Vec::with_capacity(items.len());
        let checked: Vec<(T, Result<(), Failure>)> = items
            .into_iter()
            .map(|item| {
                let checked = command(&call.caller, &item).map(|command| commands.push(command));
                (item, checked)
            })
            .collect();
        let failures = || checked.iter().filter_map(|(_, checked)| checked.as_ref().err());
        let refused_before = failures().count();
        let is_bound = call.caller.grant.owner.is_some();
        let deed = self.deed(&call, audit::target(&commands));
        self.note_of_another(&deed, &failures().filter_map(Failure::of_another).collect::<Vec<_>>());
        let told = |command: &Command| audit::name(command).unwrap_or_default().to_owned();
        let names: Vec<String> = if is_bound { commands.iter().map(told).collect() } else { Vec::new() };
        let proposed = commands.len();
        let settled = self.settle(call, deed.clone(), commands, refused_before).await?;
        let Settled { outcomes, request_id, is_repeated } = settled;
        let of_another = names
            .into_iter()
            .zip(&outcomes)
            .filter_map(|(name, outcome)| matches!(outcome, Outcome::Refused(Refusal::OtherOwner)).then_some(name));
        self.note_of_another(&deed, &of_another.collect::<Vec<_>>());
        if outcomes.len() != proposed {
            tracing::error!(
                proposed,
                outcomes = outcomes.len(),
                is_repeated,
                "a proposal came back with another number of outcomes"
            );
            return Err(Error::Internal);
        }
        let mut outcomes = outcomes.into_iter();
        let results = checked.into_iter().map(|(item, checked)| {
            let result = match checked {
                Err(failure) => Err(failure),
                Ok(()) => match outcomes.next().ok_or(Error::Internal)? {
                    // For one who is bound to an owner, others have no sessions.
                    Outcome::Refused(Refusal::OtherOwner) if is_bound => Err(Refusal::UnknownSession.into()),
                    Outcome::Refused(refusal) => Err(Failure::Refused(refusal)),
                    outcome => Ok(outcome),
                },
            };
            Ok((item, result))
        });
        Ok(Done { results: results.collect::<Result<_, Error>>()?, request_id, is_repeated })
    }

    /// What a call does, for the audit.
    fn deed(&self, call: &Call, target: String) -> Deed {
        Deed {
            actor: Actor::Client(call.caller.client.clone()),
            from: call.from.clone(),
            action: call.action.clone(),
            target,
            request_id: call.request_id.clone(),
            via: self.core.replica(),
        }
    }

    /// Has it recorded that one who is bound to an owner wanted something of
    /// another one: the answer only says that it is not there.
    fn note_of_another(&self, deed: &Deed, names: &[String]) {
        if names.is_empty() {
            return;
        }
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        self.notes.take(Deed { target: audit::told(&names), ..deed.clone() }, audit::OF_ANOTHER);
    }

    /// Proposes commands and has it recorded who wanted them, and how many
    /// items of the call were refused before.
    async fn propose_audited(
        &self,
        deed: Deed,
        commands: Vec<Command>,
        refused_before: usize,
    ) -> Result<Proposed, Error> {
        let refused_before = u32::try_from(refused_before).unwrap_or(u32::MAX);
        let audited = Command::Audited { deed, result: None, commands, refused_before };
        let Proposed { index, mut outcomes } = self.propose(vec![audited]).await?;
        match outcomes.pop() {
            Some(Outcome::Audited(outcomes)) => Ok(Proposed { index, outcomes }),
            Some(other) => Err(unexpected(&other)),
            None => {
                tracing::error!("a proposal came back without an outcome");
                Err(Error::Internal)
            }
        }
    }

    /// Proposes the commands of a call.
    async fn settle(
        &self,
        call: Call,
        deed: Deed,
        commands: Vec<Command>,
        refused_before: usize,
    ) -> Result<Settled, Error> {
        let Call { caller: Caller { client, grant: _ }, action: _, from: _, request_id, reading, repeatable } = call;
        let Some(Repeatable { key, fingerprint }) = repeatable else {
            let Proposed { index, mut outcomes } = if commands.is_empty() {
                // Nothing was done: whatever is known shows that.
                if refused_before > 0 {
                    self.notes.take(deed, &counted(0, refused_before));
                }
                Proposed { index: self.core.local().index, outcomes: Vec::new() }
            } else {
                self.propose_audited(deed, commands, refused_before).await?
            };
            reading.show(index);
            request::shorten(&mut outcomes);
            return Ok(Settled { outcomes, request_id, is_repeated: false });
        };
        let _turn = self.running.begin(&client, &key)?;
        // Also when no item is good: that answer is kept like any other.
        let once = Command::Once { client, key, fingerprint, request_id: request_id.clone(), commands };
        let Proposed { index, mut outcomes } = self.propose_audited(deed, vec![once], refused_before).await?;
        // A repetition stands behind what it repeats: whoever sees it sees that.
        reading.show(index);
        match outcomes.pop() {
            Some(Outcome::Once(outcomes)) => Ok(Settled { outcomes, request_id, is_repeated: false }),
            Some(Outcome::Repeated { request_id, outcomes }) => {
                tracing::debug!(first_request_id = %request_id, "a call was repeated");
                Ok(Settled { outcomes, request_id, is_repeated: true })
            }
            Some(Outcome::Refused(Refusal::KeyReused)) => Err(Error::KeyReused),
            Some(other) => Err(unexpected(&other)),
            None => {
                tracing::error!("a proposal came back without an outcome");
                Err(Error::Internal)
            }
        }
    }
}
