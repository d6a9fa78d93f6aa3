//! Requests that are done once, however often they are asked for.

use std::sync::Arc;

use proptest::prelude::*;

use super::*;

fn once(key_number: u8, body: u8, commands: Vec<Command>) -> Command {
    Command::Once {
        client: client(),
        key: key(key_number),
        fingerprint: Fingerprint([body; 32]),
        request_id: format!("request-{body}"),
        commands,
    }
}

fn creation(number: u8) -> Command {
    Command::CreateSession { id: session_id(number), spec: spec(number, SessionKind::Virtual), client: client() }
}

/// What a command came to, if it did nothing else.
fn without_effect(log: &mut Log, command: Command) -> Outcome {
    log.index += 1;
    let stamp = Stamp { index: LogIndex(log.index), at: Timestamp(log.at) };
    log.fleet.advance(stamp);
    let applied = log.fleet.apply(stamp, command);
    assert_eq!(applied.events, []);
    applied.outcome
}

fn created(log: &Log, number: u8) -> Outcome {
    Outcome::Created { id: session_id(number), created_at: Timestamp(log.at) }
}

#[test]
fn the_same_request_again_changes_nothing_and_gets_the_first_answer() {
    let mut log = Log::new();
    log.connect(1, facts(None, None, false));
    let outcomes = vec![created(&log, 1), Outcome::Refused(Refusal::UnknownServer)];
    let open = Command::OpenServer { id: server_id(9), client: client() };
    assert_eq!(log.apply(once(1, 1, vec![creation(1), open])), Outcome::Once(outcomes.clone()));

    log.wait(Settings::default().idempotency_retention.0 - 2);
    // The ids of the second attempt are other ones; they are not used.
    let again = once(1, 1, vec![creation(2), creation(3)]);
    let expected = Outcome::Repeated { request_id: "request-1".to_owned(), outcomes };
    assert_eq!(without_effect(&mut log, again.clone()), expected);
    let mut image = Vec::new();
    log.fleet.write_image(&mut image).expect("memory");
    log.fleet = Fleet::read_image(&mut image.as_slice()).expect("just written");
    assert_eq!(without_effect(&mut log, again), expected, "a snapshot holds it");
    assert_eq!(without_effect(&mut log, once(1, 2, vec![creation(2)])), Outcome::Refused(Refusal::KeyReused));

    log.wait(2);
    log.connect(1, facts(None, None, false));
    assert_eq!(log.apply(once(1, 2, vec![creation(2)])), Outcome::Once(vec![created(&log, 2)]), "it has expired");
    assert_eq!(log.fleet.kept_requests().count(), 1);
}

#[test]
fn each_client_has_keys_of_its_own() {
    let mut log = Log::new();
    log.connect(1, facts(None, None, false));
    log.apply(once(1, 1, vec![creation(1)]));
    let Command::Once { key, fingerprint, request_id, .. } = once(1, 1, Vec::new()) else { unreachable!() };
    let other = ClientId::new("other").expect("valid");
    let commands = vec![creation(2)];
    let outcome = log.apply(Command::Once { client: other, key, fingerprint, request_id, commands });
    assert_eq!(outcome, Outcome::Once(vec![created(&log, 2)]));
}

#[test]
fn what_is_done_once_inside_of_what_is_done_once_is_refused() {
    let mut log = Log::new();
    log.connect(1, facts(None, None, false));
    let inner = once(2, 2, vec![creation(1)]);
    let outcomes = vec![Outcome::Refused(Refusal::Nested), created(&log, 2)];
    assert_eq!(log.apply(once(1, 1, vec![inner, creation(2)])), Outcome::Once(outcomes));
    assert_eq!((log.state(1), log.fleet.kept_requests().count()), (None, 1));
}

#[test]
fn room_that_a_command_makes_goes_to_those_who_wait_before_the_next_command() {
    let mut log = Log::new();
    log.connect(1, facts(Some(1), None, false));
    log.apply(Command::CloseServer { id: server_id(1), force: false, client: client() });
    log.create(1, SessionSpec { enqueue: true, ..spec(1, SessionKind::Virtual) });
    let open = Command::OpenServer { id: server_id(1), client: client() };
    let Outcome::Once(outcomes) = log.apply(once(1, 1, vec![open, creation(2)])) else { panic!("done before") };
    assert_eq!(outcomes[0], Outcome::Done);
    assert!(matches!(outcomes[1], Outcome::Refused(Refusal::NoServer(_))), "{outcomes:?}");
    let (_, action) = log.only_instruction(1);
    assert!(matches!(action, Action::CreateSession { session, .. } if session == session_id(1)));
}

#[test]
fn beyond_what_a_client_may_keep_its_oldest_requests_are_forgotten() {
    let mut log = Log::new();
    log.apply(Command::Configure(Settings { idempotency_keys_max: 3, ..Settings::default() }));
    let kept = |log: &Log| log.fleet.kept_requests().map(|kept| kept.key.clone()).collect::<Vec<_>>();
    for number in 0..5 {
        log.apply(once(number, 1, Vec::new()));
    }
    assert_eq!(kept(&log), [key(2), key(3), key(4)]);
    // Twenty outcomes for each key, on average.
    let deletion = || Command::DeleteSession { id: session_id(1), owner: owner(1), force: false, client: client() };
    log.apply(once(5, 1, vec![deletion(); 60]));
    assert_eq!(kept(&log), [key(3), key(4), key(5)]);
    log.apply(once(6, 1, vec![deletion()]));
    assert_eq!(kept(&log), [key(6)]);
    log.apply(once(7, 1, vec![deletion(); 1000]));
    assert_eq!(kept(&log), [key(7)], "one request is kept whatever its size");
    log.apply(once(8, 1, Vec::new()));
    log.apply(once(9, 1, Vec::new()));
    log.apply(Command::Configure(Settings { idempotency_keys_max: 1, ..Settings::default() }));
    assert_eq!(kept(&log), [key(9)], "a lower bound holds at once");
}

const RETENTION_MS: u64 = 1_000;
const KEYS_MAX: u32 = 3;

/// An attempt of a client, after some time.
#[derive(Debug, Clone)]
struct Attempt {
    after_ms: u64,
    client: u8,
    key: u8,
    body: u8,
}

fn any_attempt() -> impl Strategy<Value = Attempt> {
    let times = prop_oneof![4 => Just(0), 4 => Just(10), 1 => Just(RETENTION_MS - 1), 1 => Just(RETENTION_MS)];
    (times, 0..2u8, 0..5u8, prop_oneof![8 => 0..3u8, 1 => Just(3)]).prop_map(|(after_ms, client, key, body)| Attempt {
        after_ms,
        client,
        key,
        body,
    })
}

/// The commands of a body; ids are drawn anew for each attempt.
fn commands_of(body: u8, attempt: usize) -> Vec<Command> {
    let id = |attempt: usize, number: usize| SessionId::new(&format!("s-{attempt}-{number}")).expect("valid");
    let create = |number: usize| Command::CreateSession {
        id: id(attempt, number),
        spec: SessionSpec { enqueue: number == 1, ..spec(body, SessionKind::Virtual) },
        client: client(),
    };
    match body {
        0 => vec![create(0), create(1)],
        1 => {
            let id = id(attempt.saturating_sub(1), 1);
            vec![Command::DeleteSession { id, owner: owner(0), force: true, client: client() }, create(0)]
        }
        2 => Vec::new(),
        _ => (0..45).map(create).collect(),
    }
}

/// What the model remembers of a request.
struct Remembered {
    client: u8,
    key: u8,
    body: u8,
    at: u64,
    request_id: String,
    outcomes: Vec<Outcome>,
}

/// One for each outcome, and one for each server that it lists.
fn weight_of(outcomes: &[Outcome]) -> usize {
    let listed = |outcome: &Outcome| match outcome {
        Outcome::Refused(Refusal::NoServer(explanation)) => explanation.servers_refused.len(),
        _ => 0,
    };
    outcomes.iter().map(|outcome| 1 + listed(outcome)).sum()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, failure_persistence: None, ..ProptestConfig::default() })]

    /// A list that forgets what has expired, and the oldest of a client beyond
    /// its bounds, says of each attempt whether it counts. One that counts does
    /// what its commands do by themselves.
    #[test]
    fn a_request_is_done_once_until_it_is_forgotten(
        attempts in proptest::collection::vec(any_attempt(), 1..60),
    ) {
        let mut fleet = Fleet::default();
        let mut at = 1_000;
        let stamp = |index: usize, at| Stamp { index: LogIndex(index as u64), at: Timestamp(at) };
        let settings = Settings {
            idempotency_retention: Millis(RETENTION_MS), idempotency_keys_max: KEYS_MAX, ..Settings::default()
        };
        fleet.apply(stamp(1, at), Command::Configure(settings));
        fleet.apply(stamp(1, at), Command::ConnectAgent {
            instance: AgentInstance::new("run-1").expect("valid"),
            server: server_id(1),
            via: ReplicaId(1),
            report_interval: Millis::from_secs(3600),
            report: full_report(facts(Some(30), None, false), Vec::new()),
        });
        let mut model: Vec<Remembered> = Vec::new();
        for (number, attempt) in attempts.iter().enumerate() {
            at += attempt.after_ms;
            let stamp = stamp(number + 2, at);
            fleet.advance(stamp);
            let mut alone = fleet.clone();
            let request_id = format!("request-{number}");
            let outcome = fleet.apply(stamp, Command::Once {
                client: ClientId::new(&format!("client-{}", attempt.client)).expect("valid"),
                key: key(attempt.key),
                fingerprint: Fingerprint([attempt.body; 32]),
                request_id: request_id.clone(),
                commands: commands_of(attempt.body, number),
            }).outcome;
            prop_assert_eq!(violations(&fleet), []);

            model.retain(|remembered| remembered.at + RETENTION_MS > at);
            let known = model
                .iter()
                .find(|remembered| (remembered.client, remembered.key) == (attempt.client, attempt.key));
            if let Some(known) = known {
                let expected = if known.body == attempt.body {
                    Outcome::Repeated { request_id: known.request_id.clone(), outcomes: known.outcomes.clone() }
                } else {
                    Outcome::Refused(Refusal::KeyReused)
                };
                prop_assert_eq!(outcome, expected);
                alone.index_applied = fleet.index_applied;
                prop_assert!(fleet == alone, "something was done a second time");
                continue;
            }
            let commands = commands_of(attempt.body, number);
            let mut outcomes: Vec<Outcome> =
                commands.into_iter().map(|command| alone.apply(stamp, command).outcome).collect();
            crate::domain::request::shorten(&mut outcomes);
            prop_assert_eq!(outcome, Outcome::Once(outcomes.clone()));
            let Attempt { client, key, body, .. } = *attempt;
            model.push(Remembered { client, key, body, at, request_id, outcomes });
            loop {
                let of_client = || model.iter().filter(|remembered| remembered.client == client);
                let weight: usize = of_client().map(|remembered| weight_of(&remembered.outcomes)).sum();
                let keys = of_client().count();
                if keys <= KEYS_MAX as usize && (keys == 1 || weight <= KEYS_MAX as usize * 20) {
                    break;
                }
                let oldest = model.iter().position(|remembered| remembered.client == client).expect("there are some");
                model.remove(oldest);
            }
            alone.requests = fleet.requests.clone();
            prop_assert!(fleet == alone, "the commands did something else than by themselves");
        }
        // Nothing that counts was dropped, and what is dropped late is little.
        let kept = |remembered: &Remembered| {
            fleet.kept_requests().any(|kept: &Arc<_>| kept.request_id == remembered.request_id)
        };
        prop_assert!(model.iter().all(kept));
        prop_assert!(fleet.kept_requests().count() <= 2 * KEYS_MAX as usize);
    }
}
