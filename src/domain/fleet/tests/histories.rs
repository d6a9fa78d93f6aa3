//! Invariants over random histories, and that a replay gives equal bytes.

use proptest::prelude::*;

use super::*;

#[derive(Debug, Clone)]
#[allow(clippy::large_enum_variant)] // a few hundred of them
enum Step {
    Wait(u64),
    Command(Command),
    /// An answer to whatever is oldest in a server's outbox.
    AnswerOldest {
        server: u8,
        stale: bool,
        fails: bool,
    },
    /// A report of what the server should have, short of some sessions.
    ReportTruth {
        server: u8,
        without: Option<u8>,
    },
    /// A report of what changed: some session came or went, or health did.
    ReportChange {
        server: u8,
        session: u8,
        present: bool,
        by_broker: bool,
        healthy: bool,
    },
    Disconnect {
        server: u8,
    },
}

fn any_kind() -> impl Strategy<Value = SessionKind> {
    prop_oneof![1 => Just(SessionKind::Console), 4 => Just(SessionKind::Virtual)]
}

/// Some commands under one of a few keys, so that some are repeated and some
/// keys are used for something else.
fn any_once() -> impl Strategy<Value = Command> {
    let one = (0..12u8, 0..3u8, 0..4u8, any::<bool>()).prop_map(|(id, o, what, flag)| match what {
        0 | 1 => Command::CreateSession {
            id: session_id(id),
            spec: SessionSpec { enqueue: flag, ..spec(o, SessionKind::Virtual) },
            client: client(),
        },
        2 => Command::DeleteSession { id: session_id(id), owner: owner(o), force: flag, client: client() },
        _ => Command::OpenServer { id: server_id(id % 4), client: client() },
    });
    (0..2u8, 0..4u8, 0..2u8, proptest::collection::vec(one, 0..4)).prop_map(|(by, number, print, commands)| {
        Command::Once {
            client: ClientId::new(&format!("portal-{by}")).expect("valid"),
            key: key(number),
            fingerprint: Fingerprint([print; 32]),
            request_id: format!("request-{}", commands.len()),
            commands,
        }
    })
}

fn any_step() -> impl Strategy<Value = Step> {
    let servers = 0..4u8;
    let sessions = 0..12u8;
    let owners = 0..3u8;
    let requirements = prop_oneof![
        4 => Just(None),
        1 => Just(requirements("tag:pool = 'a'")),
        1 => Just(requirements("not tag:pool = 'a'")),
    ];
    prop_oneof![
        2 => prop_oneof![Just(10u64), Just(5_000), Just(100_000), Just(4_000_000)].prop_map(Step::Wait),
        8 => (sessions.clone(), owners.clone(), any_kind(), any::<bool>(), requirements).prop_map(
            |(id, owner, kind, enqueue, requirements)| Step::Command(Command::CreateSession {
                id: session_id(id),
                spec: SessionSpec { requirements, enqueue, ..spec(owner, kind) },
                client: client(),
            })
        ),
        5 => (sessions.clone(), owners.clone(), any::<bool>()).prop_map(|(id, o, force)| Step::Command(
            Command::DeleteSession { id: session_id(id), owner: owner(o), force, client: client() }
        )),
        1 => (sessions.clone(), owners.clone()).prop_map(|(id, o)| Step::Command(Command::UpdatePermissions {
            id: session_id(id), owner: owner(o), permissions: "[permissions]".to_owned(), client: client(),
        })),
        4 => ((servers.clone(), 0..3u8), 0..4u32, proptest::option::of(1..3u32), any::<bool>(), any::<bool>(),
              proptest::collection::vec((sessions.clone(), owners.clone(), any::<bool>()), 0..3)).prop_map(
            |((server, run), max, per_owner, console, pool, there)| {
                let mut facts = facts((max > 0).then_some(max), per_owner, console);
                facts.tags.insert("pool".to_owned(), if pool { "a" } else { "b" }.to_owned());
                let there = there.into_iter().map(|(id, owner, usable)| reported(id, owner, usable)).collect();
                Step::Command(Command::ConnectAgent {
                    server: server_id(server), instance: instance(run), via: ReplicaId(1),
                    report_interval: Millis(30_000),
                    report: full_report(facts, there),
                })
            }
        ),
        8 => (servers.clone(), proptest::bool::weighted(0.1), proptest::bool::weighted(0.2))
            .prop_map(|(server, stale, fails)| Step::AnswerOldest { server, stale, fails }),
        4 => (servers.clone(), proptest::option::weighted(0.2, sessions))
            .prop_map(|(server, without)| Step::ReportTruth { server, without }),
        4 => (servers.clone(), 0..12u8, any::<bool>(), any::<bool>(), proptest::bool::weighted(0.8)).prop_map(
            |(server, session, present, by_broker, healthy)| Step::ReportChange {
                server, session, present, by_broker, healthy,
            }
        ),
        1 => servers.clone().prop_map(|server| Step::Disconnect { server }),
        1 => Just(Step::Command(Command::ReplicaStarted { replica: ReplicaId(1) })),
        1 => Just(Step::Command(Command::ReplicaSilent { replica: ReplicaId(1) })),
        4 => any_once().prop_map(Step::Command),
        1 => (servers.clone(), any::<bool>())
            .prop_map(|(id, force)| Step::Command(Command::CloseServer { id: server_id(id), force, client: client() })),
        1 => servers.prop_map(|id| Step::Command(Command::OpenServer { id: server_id(id), client: client() })),
        1 => (1..20u32).prop_map(|queue_max| Step::Command(Command::Configure(Settings {
            queue_max,
            journal_records_max: 50,
            journal_bytes_max: 1_000 * u64::from(queue_max),
            journal_retention: Millis(200_000 * u64::from(queue_max % 4)),
            idempotency_keys_max: queue_max % 4,
            ..Settings::default()
        }))),
    ]
}

/// What a step means in a given state.
fn command_of(fleet: &Fleet, step: &Step) -> Option<Command> {
    let epoch_of = |server: u8| fleet.server(&server_id(server)).map(|server| server.link.epoch());
    match step {
        Step::Wait(_) => None,
        Step::Command(command) => Some(command.clone()),
        Step::AnswerOldest { server, stale, fails } => {
            let epoch = epoch_of(*server)?;
            let instruction = fleet.outbox(&server_id(*server)).next()?.id;
            let answer = if *fails { Answer::Failed { reason: "no".to_owned() } } else { Answer::Done };
            let epoch = if *stale { Epoch(epoch.0.saturating_sub(1)) } else { epoch };
            Some(Command::Answer { server: server_id(*server), epoch, instruction, answer })
        }
        Step::ReportTruth { server, without } => {
            let there = fleet
                .sessions_on(&server_id(*server))
                .filter(|session| matches!(session.phase, Phase::Ready { .. }))
                .filter(|session| without.is_none_or(|without| session.id != session_id(without)))
                .map(|session| ReportedSession {
                    id: session.id.clone(),
                    name: session.spec.name.clone(),
                    owner: session.spec.owner.clone(),
                    kind: session.spec.kind,
                    connections: 1,
                    ..reported(0, 0, true)
                })
                .collect();
            let report = Report { sessions: Some(Inventory::Full(there)), ..Report::default() };
            Some(Command::Report { server: server_id(*server), epoch: epoch_of(*server)?, report })
        }
        Step::ReportChange { server, session, present, by_broker, healthy } => {
            let id = session_id(*session);
            let there = || ReportedSession {
                created_by: by_broker.then_some(InstructionId(1)),
                ..reported(*session, *session % 3, true)
            };
            let changes = Inventory::Changes {
                changed: if *present { vec![there()] } else { Vec::new() },
                gone: if *present { Vec::new() } else { vec![EndedSession { id, reason: None }] },
            };
            let health = if *healthy { Health::Healthy } else { Health::Unhealthy("broken".to_owned()) };
            let report = Report { health: Some(health), sessions: Some(changes), ..Report::default() };
            Some(Command::Report { server: server_id(*server), epoch: epoch_of(*server)?, report })
        }
        Step::Disconnect { server } => {
            Some(Command::DisconnectAgent { server: server_id(*server), epoch: epoch_of(*server)? })
        }
    }
}

/// A placement must satisfy the rules, worked out here without the index.
fn check_placement(before: &Fleet, spec: &SessionSpec, server: &ServerId) {
    let found = before.server(server).expect("placed on a server that is listed");
    assert!(found.link.is_up() && !before.is_closed(server), "placed on a server that is away or closed");
    assert_eq!(found.health, Health::Healthy, "placed on a server that is not well");
    let pool_a = found.facts.tags.get("pool").is_some_and(|pool| pool == "a");
    match spec.requirements.as_ref().map(ToString::to_string).as_deref() {
        None => {}
        Some("tag:pool = 'a'") => assert!(pool_a, "requirements not met"),
        Some("not tag:pool = 'a'") => assert!(!pool_a, "requirements not met"),
        Some(other) => panic!("no test says what {other} means"),
    }
    let there: Vec<_> = before
        .sessions_from(None)
        .filter(|session| session.phase.occupies() == Some(server))
        .map(|session| (session.spec.kind, session.spec.owner.clone()))
        .collect();
    let limits = found.facts.limits;
    match spec.kind {
        SessionKind::Console => assert!(limits.console_sessions && there.is_empty(), "console needs an empty server"),
        SessionKind::Virtual => {
            assert!(there.iter().all(|(kind, _)| *kind == SessionKind::Virtual), "virtual beside console");
            assert!(limits.virtual_sessions_max.is_none_or(|max| there.len() < max as usize), "beyond the limit");
            let same_owner = there.iter().filter(|(_, owner)| *owner == spec.owner).count();
            assert!(limits.sessions_per_owner_max.is_none_or(|max| same_owner < max as usize), "beyond owner's limit");
        }
    }
}

fn run(steps: &[Step]) -> (Fleet, Vec<(Stamp, Option<Command>)>) {
    let mut fleet = Fleet::default();
    let mut history = Vec::new();
    let mut at = 1_000;
    for (number, step) in steps.iter().enumerate() {
        if let Step::Wait(millis) = step {
            at += millis;
        }
        at += 1;
        let stamp = Stamp { index: LogIndex(number as u64 + 1), at: Timestamp(at) };
        let command = command_of(&fleet, step);
        let mut events = fleet.advance(stamp);
        assert_eq!(violations(&fleet), [], "after time moved on before {step:?}");
        let before = fleet.clone();
        if let Some(command) = &command {
            let applied = fleet.apply(stamp, command.clone());
            // The first placement of a command sees the state as it was before.
            if let (Command::CreateSession { spec, .. }, Outcome::Created { .. }) = (command, &applied.outcome)
                && let Some(Event::SessionPlaced { server, .. }) =
                    applied.events.iter().find(|event| matches!(event, Event::SessionPlaced { .. }))
            {
                check_placement(&before, spec, server);
            }
            events.extend(applied.events);
        }
        assert_eq!(violations(&fleet), [], "after {step:?}");
        history.push((stamp, command));
    }
    (fleet, history)
}

fn image(fleet: &Fleet) -> Vec<u8> {
    let mut bytes = Vec::new();
    fleet.write_image(&mut bytes).expect("memory");
    bytes
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn invariants_hold_after_every_step_and_replay_gives_equal_bytes(
        steps in proptest::collection::vec(any_step(), 1..120),
        cut in any::<prop::sample::Index>(),
    ) {
        let (fleet, history) = run(&steps);

        // Replay of the encoded log.
        let mut replayed = Fleet::default();
        // The same from a snapshot taken somewhere on the way.
        let cut = cut.index(history.len());
        let mut restored: Option<Fleet> = None;
        for (number, (stamp, command)) in history.iter().enumerate() {
            let command = command.as_ref().map(|command| {
                decode_command(&encode_command(command).expect("small")).expect("just written")
            });
            for fleet in [Some(&mut replayed), restored.as_mut()].into_iter().flatten() {
                fleet.advance(*stamp);
                if let Some(command) = &command {
                    fleet.apply(*stamp, command.clone());
                }
            }
            if number == cut {
                let bytes = image(&replayed);
                restored = Some(Fleet::read_image(&mut bytes.as_slice()).expect("just written"));
            }
        }
        prop_assert!(replayed == fleet, "the replay differs");
        prop_assert!(image(&replayed) == image(&fleet), "the replay's bytes differ");
        let restored = restored.expect("the cut is within the history");
        prop_assert!(restored == fleet, "what was restored at entry {} differs", cut);
        prop_assert!(image(&restored) == image(&fleet), "the bytes of what was restored at entry {} differ", cut);
    }

    #[test]
    fn random_bytes_are_no_command_and_no_snapshot_and_never_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let _ = decode_command(&bytes);
        let _ = Fleet::read_image(&mut bytes.as_slice());
        let mut headed = vec![b'C', 1, 0];
        headed.extend_from_slice(&bytes);
        let _ = decode_command(&headed);
        headed[0] = b'I';
        let _ = Fleet::read_image(&mut headed.as_slice());
    }
}
