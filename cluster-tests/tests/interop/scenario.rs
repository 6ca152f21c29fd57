//! What is played: two configurations, and what differs from the usual course.

use crate::page::Line;
use crate::play::between_networks;
use evergate_cluster_tests::Result;
use evergate_cluster_tests::connection::Connection;
use evergate_cluster_tests::duo::{C1, Duo, Setup};
use evergate_cluster_tests::lab::Family::V4;
use evergate_cluster_tests::strongswan::Esp;

/// Which strongSwan.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Version {
    /// Debian 12's, with ESP in UDP.
    V5_9,
    /// Debian forky's, with plain ESP.
    V6_1,
}

impl Version {
    fn esp(self) -> Esp {
        match self {
            Self::V5_9 => Esp::InUdp,
            Self::V6_1 => Esp::Plain,
        }
    }
}

/// Who starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum By {
    /// strongSwan.
    Peer,
    /// The member.
    Member,
}

/// One column of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Case {
    pub(crate) version: Version,
    pub(crate) by: By,
}

impl Case {
    /// All columns, in their order.
    pub(crate) const ALL: [Self; 4] = [
        Self::of(Version::V5_9, By::Peer),
        Self::of(Version::V5_9, By::Member),
        Self::of(Version::V6_1, By::Peer),
        Self::of(Version::V6_1, By::Member),
    ];

    /// The usual setup for it.
    pub(crate) fn setup(self) -> Setup {
        Setup {
            esp: self.version.esp(),
            ..Setup::new(V4)
        }
    }

    const fn of(version: Version, by: By) -> Self {
        Self { version, by }
    }

    /// As in the name of a test.
    pub(crate) fn name(self) -> &'static str {
        match (self.version, self.by) {
            (Version::V5_9, By::Peer) => "5.9_starts",
            (Version::V5_9, By::Member) => "with_5.9",
            (Version::V6_1, By::Peer) => "6.1_starts",
            (Version::V6_1, By::Member) => "with_6.1",
        }
    }
}

/// A row of the table.
#[derive(Clone)]
pub(crate) struct Scenario {
    /// As in the name of a test.
    pub(crate) name: &'static str,
    /// What it shows, for the page.
    pub(crate) what: &'static str,
    /// Columns that are left out, and why.
    pub(crate) without: Vec<(Case, &'static str)>,
    /// The Child SAs, by name, the first with the IKE SA.
    pub(crate) children: &'static [&'static str],
    /// Whether Wireshark can open what the member's key log has.
    pub(crate) decrypted: bool,
    /// Timers rekey, so that nobody else does.
    pub(crate) by_timers: bool,
    setup: Setup,
    /// Carries datagrams both ways: none is lost.
    pub(crate) traffic: fn(&Duo) -> Result<()>,
    /// Makes hosts and starts both sides.
    pub(crate) start: fn(&Setup) -> Result<Duo>,
    /// What is looked at while the tunnel is up.
    pub(crate) look: fn(&Duo, By) -> Result<()>,
}

impl Scenario {
    /// The usual setup, and the usual course.
    pub(crate) fn new(name: &'static str, what: &'static str) -> Self {
        Self {
            name,
            what,
            without: Vec::new(),
            children: &[C1],
            decrypted: true,
            by_timers: false,
            setup: Setup::new(V4),
            traffic: between_networks,
            start: Duo::start,
            look: |_, _| Ok(()),
        }
    }

    /// Changes the connection on both sides.
    pub(crate) fn both(mut self, change: impl Fn(&mut Connection)) -> Self {
        self.setup = self.setup.both(change);
        self
    }

    /// Changes anything.
    pub(crate) fn with(mut self, change: impl Fn(&mut Setup)) -> Self {
        change(&mut self.setup);
        self
    }

    /// Looks at something while the tunnel is up.
    pub(crate) fn look(mut self, look: fn(&Duo, By) -> Result<()>) -> Self {
        self.look = look;
        self
    }

    /// Has these Child SAs.
    pub(crate) fn children(mut self, children: &'static [&'static str]) -> Self {
        self.children = children;
        self
    }

    /// Starts in another way.
    pub(crate) fn start(mut self, start: fn(&Setup) -> Result<Duo>) -> Self {
        self.start = start;
        self
    }

    /// Wireshark of Debian 12 cannot open it: it does not know the algorithm, or the addresses are not those of its table of keys.
    pub(crate) fn opaque(mut self) -> Self {
        self.decrypted = false;
        self
    }

    /// Leaves one initiator out.
    pub(crate) fn not_by(mut self, by: By, why: &'static str) -> Self {
        let cases = Case::ALL.into_iter().filter(|c| c.by == by);
        self.without.extend(cases.map(|case| (case, why)));
        self
    }

    /// Both sides rekey after so many seconds: the IKE SA, and the Child SA.
    pub(crate) fn rekeys_every(mut self, ike: u32, child: u32) -> Self {
        self.by_timers = true;
        self.both(|c| (c.rekey, c.child_rekey) = (ike, child))
    }

    /// Both sides authenticate again by themselves, make before break: nobody rekeys.
    pub(crate) fn authenticates_again(mut self) -> Self {
        self.by_timers = true;
        self.with(|s| s.peer.make_before_break = true)
    }

    /// Has traffic of another kind than between the protected networks.
    pub(crate) fn traffic(mut self, traffic: fn(&Duo) -> Result<()>) -> Self {
        self.traffic = traffic;
        self
    }

    /// Is not played here at all.
    pub(crate) fn not_here(mut self, why: &'static str) -> Self {
        self.without = Case::ALL.map(|case| (case, why)).into();
        self
    }

    /// The columns that are played.
    pub(crate) fn cases(&self) -> impl Iterator<Item = Case> {
        Case::ALL
            .into_iter()
            .filter(|case| self.without.iter().all(|(other, _)| other != case))
    }

    /// Its line of the page.
    pub(crate) fn line(&self) -> Line {
        Line {
            name: self.name,
            what: self.what,
            without: self.without.clone(),
        }
    }

    /// The setup for a column.
    pub(crate) fn setup(&self, case: Case) -> Setup {
        Setup {
            esp: case.version.esp(),
            ..self.setup.clone()
        }
    }
}
