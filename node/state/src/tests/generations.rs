//! What the next generation of a cluster begins with.

use super::*;
use evergate_ike::sa::CookieSecrets;

const ANY: Option<IpAddr> = Some(IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED));

/// The key of a Child SA of these tests.
const KEY: [u8; 36] = [1; 36];

fn lease(gateway_epoch: u32, sa: u64, who: &str) -> Command {
    Command::LeaseAddresses {
        epoch: gateway_epoch,
        sa: SaId(sa),
        gateway: GW,
        identity: identity(who),
        pools: vec!["p4".into()],
        v4: ANY,
        v6: None,
        takes_over: false,
    }
}

fn holds(state: &State, bytes: &[u8]) -> bool {
    let snapshot = state.to_snapshot();
    snapshot.windows(bytes.len()).any(|w| w == bytes)
}

/// A cluster with an SA that has an address, and another address that waits for its SA.
fn in_service() -> State {
    let mut state = taken();
    set_pools(&mut state, vec![pool("p4", "10.0.0.1", "10.0.0.9")]);
    apply(&mut state, lease(1, 1, "a"));
    let up = established(1, 1, "a", vec![child(5, true)], vec![ip("10.0.0.1")]);
    assert_eq!(apply(&mut state, put(1, vec![up])), Outcome::Applied);
    let second = Outcome::Leased(vec![ip("10.0.0.2")]);
    assert_eq!(apply(&mut state, lease(1, 2, "b")), second);
    let secret = || Secret::new(vec![0x5c; 32]);
    let secrets = CookieSecrets {
        current: secret(),
        previous: secret(),
    };
    apply(&mut state, Command::SetCookieSecrets(secrets));
    state
}

#[test]
fn an_heir_has_the_policy_and_no_sa() {
    let state = in_service();
    assert!(holds(&state, &KEY) && holds(&state, &[0x5c; 32]));
    let heir = state.heir();
    assert!(!holds(&heir, &KEY) && !holds(&heir, &[0x5c; 32]));
    assert_eq!((heir.sas().len(), heir.reservations().count()), (0, 0));
    assert_eq!(heir.leases().count(), 0);
    assert!(!heir.spi_in_use(5));
    assert_eq!(heir.policy(), state.policy());
    assert_eq!(heir.policy_version(), state.policy_version());
    assert_eq!(heir.members().count(), 0);
    assert_eq!(heir.level(), state.level());
    assert!(State::from_snapshot(&heir.to_snapshot()).unwrap() == heir);
    // To be an heir again changes nothing.
    assert!(heir.heir() == heir);
}

#[test]
fn epochs_and_addresses_go_on_in_the_next_generation() {
    let mut heir = in_service().heir();
    // What a process of the former generation says is not heard.
    let refused = apply(
        &mut heir,
        put(1, vec![established(3, 1, "c", vec![], vec![])]),
    );
    assert!(matches!(refused, Outcome::Refused(_)));
    assert_eq!(take(&mut heir, GW), Outcome::Epoch { epoch: 2 });
    // Who had an address gets it again, whoever comes first.
    let leased = |address| Outcome::Leased(vec![ip(address)]);
    assert_eq!(apply(&mut heir, lease(2, 8, "b")), leased("10.0.0.2"));
    assert_eq!(apply(&mut heir, lease(2, 9, "a")), leased("10.0.0.1"));
}
