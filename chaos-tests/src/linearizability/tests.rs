//! A checker that has never refused a history proves nothing; one that agrees
//! with trying everything does.

use proptest::prelude::*;

use super::*;
use session::{Input, Output, Session};

/// Some order of the calls, without any cleverness.
fn brute_force<M: Sequential>(model: &M, calls: &[Call<M::Input, M::Output>]) -> bool {
    fn from<M: Sequential>(model: &M, state: &M::State, left: &[&Call<M::Input, M::Output>]) -> bool {
        if left.iter().all(|call| call.answer.is_none()) {
            return true;
        }
        (0..left.len()).any(|next| {
            let call = left[next];
            let comes_too_late = left.iter().any(|other| other.end() < call.sent);
            let rest: Vec<_> = left.iter().enumerate().filter(|(place, _)| *place != next).map(|(_, c)| *c).collect();
            let output = call.answer.as_ref().map(|(_, output)| output);
            !comes_too_late && model.step(state, &call.input, output).iter().any(|state| from(model, state, &rest))
        })
    }
    from(model, &model.initial(), &calls.iter().collect::<Vec<_>>())
}

/// A register: the simplest object that can go wrong.
struct Register;

#[derive(Debug, Clone, PartialEq, Eq)]
enum Ask {
    Read,
    Write(u8),
    /// Writes if the old value is the first one; answers whether it did.
    Swap(u8, u8),
}

impl Sequential for Register {
    type State = u8;
    type Input = Ask;
    type Output = u8;

    fn initial(&self) -> u8 {
        0
    }

    fn step(&self, state: &u8, input: &Ask, output: Option<&u8>) -> Vec<u8> {
        match (input, output) {
            (Ask::Read, Some(seen)) if seen == state => vec![*state],
            (Ask::Write(value), _) => vec![*value],
            (Ask::Swap(old, new), None) if old == state => vec![*new],
            (Ask::Swap(old, new), Some(1)) if old == state => vec![*new],
            (Ask::Swap(old, _), Some(0)) if old != state => vec![*state],
            (Ask::Read | Ask::Swap(..), None) => vec![*state],
            _ => Vec::new(),
        }
    }
}

fn span(sent: u64, answered: u64) -> Span {
    Span { sent: Moment(sent), answered: Moment(answered) }
}

fn call<I, O>(sent: u64, answered: u64, input: I, output: O) -> Call<I, O> {
    Call::answered(span(sent, answered), input, output)
}

fn pending<I, O>(sent: u64, input: I) -> Call<I, O> {
    Call::unknown(Moment(sent), input)
}

fn is_refused<M: Sequential>(model: &M, calls: &[Call<M::Input, M::Output>]) -> bool {
    matches!(check(model, calls), Err(Flaw::Unexplained { .. }))
}

fn seen(state: &str) -> Output {
    Output::Seen(Some(state.to_owned()))
}

#[test]
fn a_good_history_is_accepted() {
    let calls = [
        call(0, 3, Input::Create, Output::Done),
        call(1, 2, Input::Look, Output::Seen(None)),
        call(4, 5, Input::Look, seen("CREATING")),
        call(6, 9, Input::Delete, Output::Done),
        call(7, 8, Input::Look, seen("READY")),
        call(10, 11, Input::Look, seen("DELETED")),
        call(12, 13, Input::Delete, Output::Refused),
    ];
    assert_eq!(check(&Session, &calls), Ok(()));
    assert_eq!(check(&Session, &[]), Ok(()));
}

#[test]
fn a_lost_create_is_refused() {
    let calls = [call(0, 1, Input::Create, Output::Done), call(2, 3, Input::Look, Output::Seen(None))];
    assert!(is_refused(&Session, &calls));
}

#[test]
fn a_stale_read_is_refused() {
    let made = call(0, 1, Input::Create, Output::Done);
    let ready = call(2, 3, Input::Look, seen("READY"));
    assert!(is_refused(&Session, &[made.clone(), ready.clone(), call(4, 5, Input::Look, seen("CREATING"))]));
    let deleted = call(4, 5, Input::Delete, Output::Done);
    assert!(is_refused(&Session, &[made, ready, deleted, call(6, 7, Input::Look, seen("READY"))]));
}

#[test]
fn a_session_whose_host_is_silent_may_be_made_elsewhere_unless_it_was_ready() {
    let made = call(0, 1, Input::Create, Output::Done);
    let unknown = call(4, 5, Input::Look, seen("UNKNOWN"));
    let creating = call(6, 7, Input::Look, seen("CREATING"));
    assert_eq!(check(&Session, &[made.clone(), unknown.clone(), creating.clone()]), Ok(()));
    let ready = call(2, 3, Input::Look, seen("READY"));
    assert!(is_refused(&Session, &[made, ready, unknown, creating]));
}

#[test]
fn a_lost_delete_and_one_without_cause_are_refused() {
    let made = call(0, 1, Input::Create, Output::Done);
    assert!(is_refused(&Session, &[made.clone(), call(2, 3, Input::Look, seen("DELETED"))]));
    assert!(is_refused(&Session, &[made.clone(), call(2, 3, Input::Delete, Output::Refused)]));
    let lost = pending(2, Input::LoseHost);
    assert_eq!(check(&Session, &[made.clone(), lost, call(4, 5, Input::Look, seen("DELETED"))]), Ok(()));
    let unasked = [pending(2, Input::EndUnasked), call(4, 5, Input::Look, seen("DELETING"))];
    let gone = [made, unasked[0].clone(), unasked[1].clone(), call(6, 7, Input::Look, seen("DELETED"))];
    assert_eq!(check(&Session, &gone), Ok(()));
    assert!(is_refused(&Session, &[&gone[..], &[call(8, 9, Input::Look, seen("READY"))]].concat()));
}

#[test]
fn a_doubled_effect_is_refused() {
    // One swap took effect twice: the value came back in between.
    let calls = [call(0, 1, Ask::Swap(0, 1), 1), call(2, 3, Ask::Write(0), 0), call(4, 5, Ask::Read, 1)];
    assert!(is_refused(&Register, &calls));
    // Nobody knows of another one: then it may be that one.
    assert_eq!(check(&Register, &[&calls[..], &[pending(2, Ask::Swap(0, 1))]].concat()), Ok(()));
}

#[test]
fn a_lost_update_is_refused() {
    let calls = [call(0, 5, Ask::Swap(0, 1), 1), call(1, 6, Ask::Swap(0, 2), 1), call(7, 8, Ask::Read, 2)];
    assert!(is_refused(&Register, &calls), "both cannot have seen the old value");
}

#[test]
fn a_call_without_an_answer_takes_effect_at_any_later_time_or_never_and_never_before() {
    let write = || pending(2, Ask::Write(1));
    for sequence in [[0, 0, 0], [0, 0, 1], [0, 1, 1]] {
        let reads = sequence.iter().zip([3, 5, 7]).map(|(value, at)| call(at, at + 1, Ask::Read, *value));
        let calls: Vec<_> = reads.chain([write()]).collect();
        assert_eq!(check(&Register, &calls), Ok(()), "{sequence:?}");
    }
    assert!(is_refused(&Register, &[call(0, 1, Ask::Read, 1), write()]), "before it was sent");
    let undone = [call(3, 4, Ask::Read, 1), call(5, 6, Ask::Read, 0), write()];
    assert!(is_refused(&Register, &undone), "and only once");
}

#[test]
fn a_closed_server_stays_closed_until_it_is_opened() {
    use server::{Input, Output, Server};
    let good = [
        call(0, 1, Input::Close, Output::Done),
        call(2, 3, Input::Look, Output::Closed(true)),
        call(4, 7, Input::Open, Output::Done),
        call(5, 6, Input::Look, Output::Closed(true)),
        call(8, 9, Input::Look, Output::Closed(false)),
    ];
    assert_eq!(check(&Server, &good), Ok(()));
    assert!(is_refused(&Server, &[good[0].clone(), call(2, 3, Input::Look, Output::Closed(false))]));
    let drained = [call(0, 1, Input::Drain, Output::Done), call(2, 3, Input::Close, Output::Done)];
    let look = call(4, 5, Input::Look, Output::Closed(true));
    assert_eq!(check(&Server, &[&drained[..], &[look]].concat()), Ok(()));
}

#[test]
fn the_queue_is_served_in_order() {
    use queue::{Input, Output, Queue};
    let join = |at, name: &str| call(at, at + 1, Input::Join(name.to_owned()), Output::Done);
    let look = |at, names: &[&str]| {
        call(at, at + 1, Input::Look, Output::Waiting(names.iter().map(|name| (*name).to_owned()).collect()))
    };
    let joined = [join(0, "a"), join(2, "b"), join(4, "c")];
    let history = |looks: &[queue::QueueCall]| [&joined[..], looks].concat();
    assert_eq!(check(&Queue, &history(&[look(6, &["a", "b", "c"]), look(8, &["c"]), look(10, &[])])), Ok(()));
    assert!(is_refused(&Queue, &history(&[look(6, &["a", "c"])])), "b was served before a");
    assert!(is_refused(&Queue, &history(&[look(6, &["b", "a", "c"])])), "out of order");
    assert!(is_refused(&Queue, &history(&[look(6, &["b", "c"]), look(8, &["a", "b", "c"])])), "a came back");
    assert!(is_refused(&Queue, &history(&[look(6, &["a", "b"])])), "c was lost");
    let left = call(6, 7, Input::Leave("b".to_owned()), Output::Done);
    assert_eq!(check(&Queue, &history(&[left, look(8, &["a", "c"])])), Ok(()));
}

#[test]
fn hundreds_of_calls_with_some_pending_are_quick() {
    // Eight clients at a time, and every fortieth call without an answer.
    let mut random = crate::random::Random::new(1);
    let mut value = 0;
    let calls: Vec<Call<Ask, u8>> = (0..600_u64)
        .map(|number| {
            let at = number * 10;
            let (before, after) = (random.below(40), random.below(40));
            let sent = Moment(at.saturating_sub(before));
            match random.below(40) {
                0 => Call::unknown(Moment(at), Ask::Write(200)),
                1..20 => {
                    value = u8::try_from(random.below(5)).unwrap_or_default();
                    Call { input: Ask::Write(value), sent, answer: Some((Moment(at + after), 0)) }
                }
                _ => Call { input: Ask::Read, sent, answer: Some((Moment(at + after), value)) },
            }
        })
        .collect();
    assert_eq!(check(&Register, &calls), Ok(()));
    let mut broken = calls;
    broken.push(call(7000, 7001, Ask::Read, 77));
    assert!(is_refused(&Register, &broken));
}

fn register_call() -> impl Strategy<Value = Call<Ask, u8>> {
    let ask = prop_oneof![
        Just(Ask::Read),
        (0_u8..3).prop_map(Ask::Write),
        (0_u8..3, 0_u8..3).prop_map(|(old, new)| Ask::Swap(old, new)),
    ];
    (ask, 0_u64..20, 1_u64..8, 0_u8..3, 0..5).prop_map(|(input, sent, longer, answer, luck)| {
        let answer = if matches!(input, Ask::Swap(..)) { answer % 2 } else { answer };
        Call { input, sent: Moment(sent), answer: (luck > 0).then_some((Moment(sent + longer), answer)) }
    })
}

fn session_call() -> impl Strategy<Value = Call<Input, Output>> {
    let answers = prop_oneof![
        Just((Input::Create, Output::Done)),
        Just((Input::Delete, Output::Done)),
        Just((Input::Delete, Output::Refused)),
        Just((Input::Look, Output::Seen(None))),
        prop::sample::select(vec!["CREATING", "READY", "DELETING", "DELETED"])
            .prop_map(|state| (Input::Look, seen(state))),
    ];
    (answers, 0_u64..20, 1_u64..8, 0..6).prop_map(|((input, output), sent, longer, luck)| Call {
        input,
        sent: Moment(sent),
        answer: (luck > 0).then_some((Moment(sent + longer), output)),
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_search_finds_what_trying_everything_finds(calls in prop::collection::vec(register_call(), 0..7)) {
        prop_assert_eq!(check(&Register, &calls).is_ok(), brute_force(&Register, &calls));
    }

    #[test]
    fn sessions_are_judged_as_by_trying_everything(calls in prop::collection::vec(session_call(), 0..7)) {
        prop_assert_eq!(check(&Session, &calls).is_ok(), brute_force(&Session, &calls));
    }
}
