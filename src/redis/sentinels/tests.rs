use super::*;

fn address(port: u16) -> Address {
    Address { host: "redis".into(), port }
}

/// A state with these answers: how old each is (s), its epoch, and the port of the master.
fn state(answers: &[(u64, u64, u16)], now: Instant) -> State {
    let of = |(n, &(age, epoch, port)): (usize, &(u64, u64, u16))| {
        let named = Named { epoch, address: address(port) };
        (address(u16::try_from(n).unwrap()), Some((now.checked_sub(Duration::from_secs(age)).unwrap(), Ok(named))))
    };
    State { answers: answers.iter().enumerate().map(of).collect(), ..State::default() }
}

fn chosen(answers: &[(u64, u64, u16)], current: Option<u16>) -> Option<u16> {
    let now = Instant::now();
    state(answers, now).chosen(current.map(address).as_ref(), now).map(|address| address.port)
}

#[test]
fn the_highest_epoch_counts_and_then_the_most_sentinels() {
    assert_eq!(chosen(&[(0, 1, 10), (0, 1, 10), (0, 2, 20)], Some(10)), Some(20));
    assert_eq!(chosen(&[(0, 0, 10), (0, 0, 10), (0, 0, 90)], Some(90)), Some(10));
    assert_eq!(chosen(&[(0, 0, 10), (0, 0, 20)], Some(10)), Some(10), "a tie changes nothing");
    assert_eq!(chosen(&[(0, 0, 10), (0, 0, 20)], Some(20)), Some(20), "a tie changes nothing");
    assert_eq!(chosen(&[(9, 2, 20), (0, 1, 10)], None), Some(10), "an old answer does not count");
    assert_eq!(chosen(&[], Some(10)), None);
}

#[test]
fn a_lower_epoch_is_believed_after_a_minute() {
    let now = Instant::now();
    let at = |seconds: u64| now + Duration::from_secs(seconds);
    let mut state = state(&[(0, 5, 20)], now);
    assert_eq!(state.chosen(None, now), Some(address(20)));
    for (second, chosen) in [(10, None), (59, None), (61, Some(address(10)))] {
        let named = Named { epoch: 1, address: address(10) };
        state.answers = BTreeMap::from([(address(0), Some((at(second), Ok(named))))]);
        assert_eq!(state.chosen(Some(&address(20)), at(second)), chosen, "{second}");
    }
}

#[test]
fn silence_counts_unless_most_refuse() {
    let silent = || Some((Instant::now(), Err(Fault::Silent("gone".into()))));
    let refused = || Some((Instant::now(), Err(Fault::Refused("no".into()))));
    let fault = |answers: [Option<Answer>; 3]| {
        let answers = (1..).zip(answers).map(|(n, answer)| (address(n), answer)).collect();
        State { answers, ..State::default() }.fault()
    };
    assert!(matches!(fault([silent(), refused(), silent()]), Some(Fault::Silent(_))));
    assert!(matches!(fault([refused(), refused(), silent()]), Some(Fault::Refused(_))));
    assert_eq!(fault([refused(), refused(), None]), None, "the third may name it");
    let named = Some((Instant::now(), Ok(Named { epoch: 0, address: address(10) })));
    assert_eq!(fault([refused(), named, silent()]), None);
}
