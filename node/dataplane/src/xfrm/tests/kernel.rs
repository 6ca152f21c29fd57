use super::*;
use crate::Mark;
use crate::namespace::in_namespace;
use crate::xfrm::flows::{Direction, Flow};

const OURS: Tag = Tag {
    if_id: 0xe6,
    mark: Mark {
        value: 0xe6,
        mask: u32::MAX,
    },
};
const OTHERS: Tag = Tag {
    if_id: 7,
    mark: Mark {
        value: 7,
        mask: u32::MAX,
    },
};

fn policy(direction: Direction) -> PolicyId {
    PolicyId {
        flow: Flow::everything(true),
        direction,
    }
}

#[test]
fn policies_are_replaced_and_removed_and_those_of_others_stay() {
    in_namespace(|| {
        let (mut ours, mut others) = (Kernel::open(OURS).unwrap(), Kernel::open(OTHERS).unwrap());
        let trap = Rule::Trap(1);
        others
            .set_policy(policy(Direction::Out), Some(&trap))
            .unwrap();
        for reqids in [vec![5], vec![5, 6], vec![1, 2, 3, 4, 5, 6, 7, 8]] {
            let rule = Rule::Receive(reqids);
            for direction in [Direction::In, Direction::Forward] {
                ours.set_policy(policy(direction), Some(&rule)).unwrap();
            }
        }
        for rule in [&Rule::Closed, &trap, &Rule::Closed] {
            ours.set_policy(policy(Direction::Out), Some(rule)).unwrap();
        }
        ours.set_policy(policy(Direction::In), None).unwrap();
        ours.set_policy(policy(Direction::In), None).unwrap();
        assert_eq!(ours.remove_policies().unwrap(), 2);
        assert_eq!(ours.remove_policies().unwrap(), 0);
        assert_eq!(others.remove_policies().unwrap(), 1);
    });
}

#[test]
fn a_state_that_is_not_there_has_nothing_to_say() {
    in_namespace(|| {
        let mut kernel = Kernel::open(OURS).unwrap();
        let id = StateId {
            destination: [192, 0, 2, 1].into(),
            spi: 0x1234,
        };
        assert!(kernel.state(id).unwrap().is_none());
        assert!(kernel.end_state(id).unwrap().is_none());
        kernel.remove_state(id).unwrap();
        assert!(kernel.states().unwrap().is_empty());
    });
}

#[test]
fn policies_of_single_peers_are_hashed_unless_somebody_has_chosen() {
    in_namespace(|| {
        let mut kernel = Kernel::open(OURS).unwrap();
        thresholds::choose(&mut kernel).unwrap();
        let (ipv4, ipv6) = kernel.thresholds().unwrap().expect("it tells");
        assert_eq!((ipv4.local, ipv4.remote), (0, 32));
        assert_eq!((ipv6.local, ipv6.remote), (0, 128));
        let mut theirs = (ipv4, ipv6);
        theirs.0.remote = 24;
        kernel.set_thresholds(theirs).unwrap();
        thresholds::choose(&mut kernel).unwrap();
        assert_eq!(kernel.thresholds().unwrap(), Some(theirs));
    });
}
