//! The broker's end of an agent's connection, on the machine of a replica: what
//! `src/broker/agents/link.rs` of the product does, over a simulated connection.

use std::time::Duration;

use berth::domain::{Command, Epoch, InstructionId, Millis, Outcome, Refusal, ReplicaId, ServerId};
use berth_raft::Replica;
use berth_raft::testing::simulation;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, interval_at, timeout};

use super::pipe::{Receiver, Sender};
use super::{FromAgent, ToAgent};
use crate::simulation::machine::Replicated;

/// How often agents report.
pub const REPORT_INTERVAL: Millis = Millis(2_000);
/// How long the first word may take.
const HELLO_TIMEOUT: Duration = Duration::from_secs(10);
/// How often an agent is told that the broker lives.
const PING_INTERVAL: Duration = Duration::from_secs(2);
/// An agent that was silent for longer is gone.
const SILENCE_MAX: Duration = Duration::from_secs(7);
/// What one agent said that may wait for the log.
const WAITING_MAX: usize = 128;

/// What goes into the log, and what the agent is told then.
type ToRecord = (Command, ToAgent);

/// Serves a connection until it ends.
pub async fn serve(
    replica: Replica<Replicated>,
    mut from_agent: Receiver<FromAgent>,
    to_agent: Sender<ToAgent>,
    applied: watch::Receiver<u64>,
) {
    let Ok(Some(FromAgent::Hello { server, instance, report })) = timeout(HELLO_TIMEOUT, from_agent.receive()).await
    else {
        return;
    };
    if replica.local().state.fleet().refuses_silently(&server, &instance) {
        return;
    }
    let via = ReplicaId(replica.status().replica.0);
    let hello =
        Command::ConnectAgent { server: server.clone(), instance, via, report_interval: REPORT_INTERVAL, report };
    let Ok(proposed) = replica.propose(vec![hello]).await else { return };
    let Some(Outcome::Welcome { epoch }) = proposed.outcomes.first() else { return };
    let mut talk =
        Talk { replica: replica.clone(), server: server.clone(), epoch: *epoch, to_agent, sent: InstructionId(0) };
    talk.converse(from_agent, applied).await;
    let gone = Command::DisconnectAgent { server, epoch: talk.epoch };
    // Its silence will tell the same a little later.
    drop(replica.propose(vec![gone]).await);
}

struct Talk {
    replica: Replica<Replicated>,
    server: ServerId,
    epoch: Epoch,
    to_agent: Sender<ToAgent>,
    sent: InstructionId,
}

impl Talk {
    async fn converse(&mut self, mut from_agent: Receiver<FromAgent>, mut applied: watch::Receiver<u64>) {
        let (to_record, mut recorded) = start_recorder(self.replica.clone());
        let oldest = self.replica.local().state.fleet().oldest_instruction(&self.server);
        if !self.to_agent.send(ToAgent::Welcome { epoch: self.epoch, oldest }) || !self.instruct() {
            return;
        }
        let mut pings = interval_at(Instant::now() + PING_INTERVAL, PING_INTERVAL);
        let mut heard_at = Instant::now();
        loop {
            let goes_on = tokio::select! {
                biased;
                told = recorded.recv() => told.is_some_and(|told| self.to_agent.send(told)),
                changed = applied.changed() => changed.is_ok() && self.instruct(),
                message = from_agent.receive() => {
                    heard_at = Instant::now();
                    match message {
                        Some(message) => to_record.send(self.as_command(message)).await.is_ok(),
                        None => false,
                    }
                }
                _ = pings.tick() => heard_at.elapsed() < SILENCE_MAX && self.to_agent.send(ToAgent::Alive),
            };
            if !goes_on {
                return;
            }
        }
    }

    /// Sends what is in the outbox and was not sent on this connection yet.
    /// False if another connection took over.
    fn instruct(&mut self) -> bool {
        let state = self.replica.local().state;
        let fleet = state.fleet();
        if fleet.server(&self.server).is_none_or(|server| server.link.epoch() != self.epoch) {
            return false;
        }
        for instruction in fleet.outbox_after(&self.server, self.sent) {
            let message = ToAgent::Instruction { epoch: self.epoch, instruction: (**instruction).clone() };
            if !self.to_agent.send(message) {
                return false;
            }
            self.sent = instruction.id;
        }
        true
    }

    fn as_command(&self, message: FromAgent) -> ToRecord {
        let (server, epoch) = (self.server.clone(), self.epoch);
        match message {
            FromAgent::Hello { report, .. } | FromAgent::Report(report) => {
                (Command::Report { server, epoch, report }, ToAgent::Alive)
            }
            FromAgent::Answer { instruction, answer } => {
                (Command::Answer { server, epoch, instruction, answer }, ToAgent::Settled(instruction))
            }
        }
    }
}

/// Puts what an agent said into the log, in order, what came meanwhile as one
/// entry. Ends when the log takes no more, or another connection took over.
fn start_recorder(replica: Replica<Replicated>) -> (mpsc::Sender<ToRecord>, mpsc::Receiver<ToAgent>) {
    let (to_record, mut waiting) = mpsc::channel::<ToRecord>(WAITING_MAX);
    let (done, recorded) = mpsc::channel(WAITING_MAX);
    simulation::spawn(async move {
        while let Some(first) = waiting.recv().await {
            let mut said = vec![first];
            while let Ok(next) = waiting.try_recv() {
                said.push(next);
            }
            let (commands, then): (Vec<Command>, Vec<ToAgent>) = said.into_iter().unzip();
            let Ok(proposed) = replica.propose(commands).await else { return };
            for (outcome, told) in proposed.outcomes.iter().zip(then) {
                if *outcome == Outcome::Refused(Refusal::StaleEpoch) || done.send(told).await.is_err() {
                    return;
                }
            }
        }
    });
    (to_record, recorded)
}
