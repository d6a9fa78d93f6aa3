//! A judge that never condemned anybody proves nothing.

#![allow(clippy::unwrap_used)]

use super::*;

const MAX: usize = 10;

fn span(sent: u64, answered: u64) -> Span {
    Span { sent: Moment(sent), answered: Moment(answered) }
}

fn create(sent: u64, name: &str, outcome: Outcome<String>) -> Event {
    Event::Create { span: span(sent, sent + 1), name: name.to_owned(), owner: "ann".to_owned(), outcome }
}

fn acknowledged(sent: u64, name: &str) -> Event {
    create(sent, name, Outcome::Acknowledged(format!("id-{name}")))
}

fn delete(sent: u64, name: &str, outcome: Outcome<()>) -> Event {
    Event::Delete { span: span(sent, sent + 1), session: format!("id-{name}"), outcome }
}

fn look(sent: u64, name: &str, found: Option<&str>) -> Event {
    Event::Look { span: span(sent, sent + 1), session: format!("id-{name}"), found: found.map(str::to_owned) }
}

fn kill(sent: u64) -> Event {
    Event::AgentKilled { span: span(sent, sent + 1), server: "server".to_owned() }
}

fn seen(name: &str, state: &str) -> Seen {
    Seen {
        id: format!("id-{name}"),
        name: name.to_owned(),
        owner: "ann".to_owned(),
        state: state.to_owned(),
        reason: None,
        server: Some("server".to_owned()),
    }
}

/// Sessions with exactly the desktops that they should have.
fn observed(sessions: Vec<Seen>) -> Observed {
    let live = sessions.iter().filter(|session| session.state == "READY").map(|session| session.id.clone()).collect();
    let desktops = vec![Desktops { server: "server".to_owned(), live, made_again: BTreeSet::new() }];
    Observed { sessions, desktops }
}

fn verdict(events: &[Event], sessions: Vec<Seen>) -> Vec<Violation> {
    judge(events, &observed(sessions), MAX)
}

#[test]
fn what_the_history_says_is_accepted() {
    let events = [
        acknowledged(0, "a"),
        acknowledged(2, "b"),
        delete(4, "b", Outcome::Acknowledged(())),
        look(6, "a", Some("CREATING")),
        look(8, "b", Some("DELETING")),
        create(10, "c", Outcome::Refused("no server".to_owned())),
        create(12, "d", Outcome::Unknown("broken".to_owned())),
        create(14, "e", Outcome::Unknown("broken".to_owned())),
        delete(16, "b", Outcome::Refused("unknown session".to_owned())),
    ];
    assert_eq!(verdict(&events, vec![seen("a", "READY"), seen("b", "DELETED"), seen("e", "READY")]), []);
}

#[test]
fn a_lost_create_is_caught() {
    let lost = Violation::Lost { id: "id-a".to_owned(), name: "a".to_owned() };
    assert_eq!(verdict(&[acknowledged(0, "a")], vec![]), std::slice::from_ref(&lost));
    let events = [acknowledged(0, "a"), look(2, "a", None)];
    assert_eq!(verdict(&events, vec![seen("a", "READY")]), [lost], "lost for a while is lost");
    let events = [acknowledged(0, "a"), look(1, "a", None)];
    assert_eq!(verdict(&events, vec![seen("a", "READY")]), [], "not acknowledged yet when it was looked for");
}

#[test]
fn a_doubled_create_is_caught() {
    let twin = Seen { id: "id-b".to_owned(), ..seen("a", "READY") };
    let ids = vec!["id-a".to_owned(), "id-b".to_owned()];
    let doubled = [Violation::Doubled { name: "a".to_owned(), ids }];
    assert_eq!(verdict(&[acknowledged(0, "a")], vec![seen("a", "READY"), twin.clone()]), doubled);
    let in_doubt = [create(0, "a", Outcome::Unknown("broken".to_owned()))];
    assert_eq!(verdict(&in_doubt, vec![seen("a", "READY"), twin]), doubled);
}

#[test]
fn an_undone_delete_is_caught() {
    let undone = |state: &str| Violation::DeleteUndone { id: "id-a".to_owned(), state: state.to_owned() };
    let events = [acknowledged(0, "a"), delete(2, "a", Outcome::Acknowledged(()))];
    assert_eq!(verdict(&events, vec![seen("a", "READY")]), [undone("READY")]);
    let events = [events.to_vec(), vec![look(4, "a", Some("READY"))]].concat();
    assert_eq!(verdict(&events, vec![seen("a", "DELETED")]), [undone("READY")], "undone for a while is undone");
}

#[test]
fn a_stranger_is_caught() {
    let stranger = Violation::Stranger { id: "id-x".to_owned(), name: "x".to_owned() };
    assert_eq!(verdict(&[], vec![seen("x", "READY")]), [stranger]);
    let other = Seen { id: "id-x".to_owned(), ..seen("a", "READY") };
    let found = verdict(&[acknowledged(0, "a")], vec![other]);
    assert!(matches!(found[..], [Violation::Lost { .. }, Violation::Stranger { .. }]), "{found:?}");
}

#[test]
fn a_refused_request_with_an_effect_is_caught() {
    for outcome in [Outcome::Refused("full".to_owned()), Outcome::NotTaken("full".to_owned())] {
        let found = verdict(&[create(0, "a", outcome)], vec![seen("a", "READY")]);
        assert!(matches!(found[..], [Violation::MadeThoughRefused { .. }]), "{found:?}");
    }
}

#[test]
fn an_end_without_cause_is_caught() {
    let ended = |found: &[Violation]| matches!(found, [Violation::EndedByNobody { .. }]);
    let found = verdict(&[acknowledged(5, "a")], vec![seen("a", "DELETED")]);
    assert!(ended(&found), "{found:?}");
    let found = verdict(&[kill(0), acknowledged(5, "a")], vec![seen("a", "DELETED")]);
    assert!(ended(&found), "the agent died before: {found:?}");
    let events = [acknowledged(5, "a"), delete(7, "a", Outcome::NotTaken("503".to_owned()))];
    let found = verdict(&events, vec![seen("a", "DELETED")]);
    assert!(ended(&found), "the delete had no effect: {found:?}");
    let events = [acknowledged(5, "a"), look(7, "a", Some("DELETING")), delete(9, "a", Outcome::Acknowledged(()))];
    let found = verdict(&events, vec![seen("a", "DELETED")]);
    assert!(ended(&found), "it ended before it was asked to: {found:?}");
    for cause in [kill(7), delete(7, "a", Outcome::Unknown("broken".to_owned()))] {
        assert_eq!(verdict(&[acknowledged(5, "a"), cause], vec![seen("a", "DELETED")]), []);
    }
}

#[test]
fn a_delete_that_is_refused_without_cause_is_caught() {
    let refused = delete(2, "a", Outcome::Refused("unknown session".to_owned()));
    let found = verdict(&[acknowledged(0, "a"), refused.clone()], vec![seen("a", "READY")]);
    assert!(matches!(found[..], [Violation::DeleteRefused { .. }]), "{found:?}");
    let earlier = delete(0, "a", Outcome::Unknown("broken".to_owned()));
    assert_eq!(verdict(&[acknowledged(0, "a"), earlier, refused], vec![seen("a", "DELETED")]), []);
}

#[test]
fn a_state_that_does_not_pass_is_caught() {
    for state in ["CREATING", "UNKNOWN"] {
        let found = verdict(&[acknowledged(0, "a")], vec![seen("a", state)]);
        assert!(matches!(found[..], [Violation::Unsettled { .. }]), "{found:?}");
        assert!(found.iter().all(Violation::may_pass));
    }
}

#[test]
fn pages_that_overlap_are_caught() {
    let events = [acknowledged(0, "a"), acknowledged(2, "b")];
    let (a, b) = (seen("a", "READY"), seen("b", "READY"));
    assert_eq!(verdict(&events, vec![a.clone(), b.clone()]), []);
    for sessions in [vec![a.clone(), a.clone(), b.clone()], vec![b, a]] {
        let found = verdict(&events, sessions);
        assert!(matches!(found[..], [Violation::PagesOverlap { .. }]), "{found:?}");
    }
}

#[test]
fn another_owner_is_caught() {
    let session = Seen { owner: "eve".to_owned(), ..seen("a", "READY") };
    let found = verdict(&[acknowledged(0, "a")], vec![session]);
    assert!(matches!(found[..], [Violation::OwnerChanged { .. }]), "{found:?}");
}

#[test]
fn desktops_that_do_not_match_are_caught() {
    let events = [acknowledged(0, "a")];
    let mut found = observed(vec![seen("a", "READY")]);
    found.desktops[0].live.clear();
    assert!(matches!(judge(&events, &found, MAX)[..], [Violation::DesktopMissing { .. }]));

    let mut found = observed(vec![seen("a", "READY")]);
    found.desktops[0].live.insert("id-x".to_owned());
    assert!(matches!(judge(&events, &found, MAX)[..], [Violation::DesktopLeft { .. }]));

    let mut found = observed(vec![seen("a", "READY")]);
    found.desktops[0].made_again.insert("id-a".to_owned());
    assert_eq!(judge(&events, &found, MAX), [Violation::DesktopTwice { id: "id-a".to_owned() }]);

    let mut found = observed(vec![seen("a", "READY")]);
    found.desktops.insert(0, Desktops { server: "other".to_owned(), ..found.desktops[0].clone() });
    let violations = judge(&events, &found, MAX);
    assert!(violations.contains(&Violation::DesktopTwice { id: "id-a".to_owned() }), "{violations:?}");
}

#[test]
fn a_server_beyond_its_limit_is_caught() {
    let names = ["a", "b"];
    let events: Vec<Event> = names.iter().zip([0, 2]).map(|(name, sent)| acknowledged(sent, name)).collect();
    let sessions = observed(names.iter().map(|name| seen(name, "READY")).collect());
    assert_eq!(judge(&events, &sessions, 2), []);
    assert!(matches!(judge(&events, &sessions, 1)[..], [Violation::OverLimit { .. }]));
}

/// Judged by both: what must be at the end, and what can be told.
fn is_told(events: &[Event], sessions: Vec<Seen>) -> bool {
    stories(events, &observed(sessions)).is_empty()
}

#[test]
fn a_good_story_is_told() {
    let events = [
        acknowledged(0, "a"),
        look(2, "a", Some("CREATING")),
        look(4, "a", Some("READY")),
        create(6, "b", Outcome::Unknown("broken".to_owned())),
        delete(8, "a", Outcome::Acknowledged(())),
        look(10, "a", Some("DELETING")),
        delete(12, "a", Outcome::Refused("unknown session".to_owned())),
    ];
    assert!(is_told(&events, vec![seen("a", "DELETED"), seen("b", "READY")]));
    assert!(is_told(&events, vec![seen("a", "DELETED")]), "nobody knows of b");
    assert!(is_told(&[acknowledged(0, "a"), kill(2)], vec![seen("a", "DELETED")]));
    let in_doubt = create(0, "a", Outcome::Unknown("broken".to_owned()));
    assert!(is_told(&[in_doubt, kill(2)], vec![seen("a", "DELETED")]));
}

#[test]
fn a_lost_write_has_no_story() {
    assert!(!is_told(&[acknowledged(0, "a")], vec![]));
    let events = [acknowledged(0, "a"), delete(2, "a", Outcome::Acknowledged(()))];
    assert!(!is_told(&events, vec![seen("a", "READY")]));
}

#[test]
fn a_stale_read_has_no_story() {
    let events = [acknowledged(0, "a"), look(2, "a", Some("READY")), look(4, "a", Some("CREATING"))];
    assert!(!is_told(&events, vec![seen("a", "READY")]), "back in time");
    let events = [acknowledged(0, "a"), look(2, "a", None)];
    assert!(!is_told(&events, vec![seen("a", "READY")]), "older than an acknowledged write");
    assert!(!is_told(&[acknowledged(0, "a"), look(2, "a", Some("DELETED"))], vec![seen("a", "DELETED")]));
}

#[test]
fn a_server_and_a_queue_that_go_back_have_no_story() {
    let door = |sent, wish| Event::Door {
        span: span(sent, sent + 1),
        server: "s".to_owned(),
        wish,
        outcome: Outcome::Acknowledged(()),
    };
    let look = |sent, closed| Event::DoorSeen { span: span(sent, sent + 1), server: "s".to_owned(), closed };
    assert!(is_told(&[door(0, server::Input::Close), look(2, true), door(4, server::Input::Open)], vec![]));
    assert!(!is_told(&[door(0, server::Input::Close), look(2, false)], vec![]));

    let queue = |sent, names: &[&str]| Event::QueueSeen {
        span: span(sent, sent + 1),
        owner: "ann".to_owned(),
        waiting: names.iter().map(|name| ((*name).to_owned(), format!("id-{name}"))).collect(),
    };
    let all = vec![seen("a", "CREATING"), seen("b", "CREATING")];
    let events = [acknowledged(0, "a"), acknowledged(2, "b"), queue(4, &["a", "b"])];
    assert!(is_told(&events, all.clone()));
    let events = [acknowledged(0, "a"), acknowledged(2, "b"), queue(4, &["b", "a"])];
    assert!(!is_told(&events, all), "the second goes before the first");
}
