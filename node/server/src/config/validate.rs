//! The document as a whole: references, defaults that depend on others, and what contradicts itself.

use super::{
    Config, Problem, Severity,
    credentials::Known,
    document::{self, Dataplane, Document},
    values::{PoolRange, Proposals, Text},
};
use evergate_ike::config::{Policy, Pool, Retransmit};
use std::{
    ops::{Range, RangeInclusive},
    path::Path,
};
use toml::Spanned;

/// Longest name of anything, in characters.
const MAX_NAME: usize = 64;

/// Turns a document into a configuration.
pub(super) fn validate(
    document: Document,
    text: &str,
    directory: &Path,
) -> Result<Config, Vec<Problem>> {
    let mut check = Check {
        text,
        directory,
        plane: None,
        clustered: document.cluster.is_some(),
        problems: Vec::new(),
    };
    check.local(&document);
    let gateways = check.gateways(document.gateways.0);
    check.place(document.member.as_ref());
    let cluster = check.cluster(document.cluster, document.member.as_ref(), &gateways);
    let pools = check.pools(document.pools.0);
    let (secrets, private_keys) = check.secrets(document.secrets.0);
    let authorities = check.authorities(document.authorities.0);
    let ppks = check.ppks(document.ppks.0);
    let known = Known {
        keys: &private_keys,
        ppks: &ppks,
        authorities: &authorities,
    };
    // A file of policy alone is for members of any kind.
    let planes = document.member.is_some() || document.dataplane.is_some();
    let plane = document.dataplane.as_ref().map(Spanned::get_ref);
    check.plane = planes.then(|| plane.cloned().unwrap_or_default());
    let connections = check.connections(document.connections.0, &pools, &secrets, &known);
    let retransmit = check.retransmit(document.retransmit);
    let mut problems = check.problems;
    problems.sort_by_key(|p| (p.line, p.column));
    if problems.iter().any(|p| p.severity == Severity::Error) {
        return Err(problems);
    }
    Ok(Config {
        member: document.member.map(Spanned::into_inner),
        cluster,
        dataplane: document
            .dataplane
            .map(Spanned::into_inner)
            .unwrap_or_default(),
        limits: document.limits.map(Spanned::into_inner).unwrap_or_default(),
        policy: Policy {
            connections,
            secrets,
            ppks,
            private_keys,
            authorities,
            pools,
            retransmit,
            gateways,
        },
        warnings: problems,
    })
}

pub(super) struct Check<'a> {
    text: &'a str,
    pub(super) directory: &'a Path,
    /// The data plane of the member whose file it is.
    pub(super) plane: Option<Dataplane>,
    /// Whether there are other members, which may have others.
    pub(super) clustered: bool,
    problems: Vec<Problem>,
}

impl Check<'_> {
    pub(super) fn error(&mut self, span: Range<usize>, message: impl Into<String>) {
        self.problem(span, Severity::Error, message);
    }

    pub(super) fn problem(
        &mut self,
        span: Range<usize>,
        severity: Severity,
        message: impl Into<String>,
    ) {
        let problem = Problem::at(self.text, span, severity, message);
        self.problems.push(problem);
    }

    /// Every wait stays below a day.
    fn retransmit(&mut self, given: Option<Spanned<document::Retransmit>>) -> Retransmit {
        const LONGEST: f64 = 86_400.0;
        let default = Retransmit::default();
        let Some(given) = given else {
            return default;
        };
        let span = given.span();
        let given = given.into_inner();
        let timeout = given.timeout.map_or(default.timeout, |t| t.0);
        let base = given
            .base
            .unwrap_or(f64::from(default.growth_percent) / 100.0);
        let tries = given.tries.unwrap_or(default.tries);
        let longest = timeout.as_secs_f64() * base.powf(f64::from(tries));
        if timeout.is_zero() || !(1.0..=10.0).contains(&base) || tries > 100 || longest >= LONGEST {
            let what = "these times cannot be used, expected a timeout above zero, a base from 1 to 10, \
                        up to 100 tries, and no wait of a day or more";
            self.error(span, what);
            return default;
        }
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "between 100 and 1000"
        )]
        let growth_percent = (base * 100.0).round() as u32;
        Retransmit {
            timeout,
            growth_percent,
            tries,
        }
    }

    pub(super) fn name(&mut self, name: &Spanned<String>, what: &str) {
        let n = name.get_ref();
        if n.is_empty() || n.chars().count() > MAX_NAME || n.chars().any(char::is_control) {
            let message = format!(
                "{n:?} is no name for a {what}, expected 1 to {MAX_NAME} printable characters"
            );
            self.error(name.span(), message);
        }
    }

    fn pools(&mut self, pools: Vec<(Spanned<String>, document::Pool)>) -> Vec<Pool> {
        let mut done: Vec<Pool> = Vec::new();
        for (name, pool) in pools {
            self.name(&name, "pool");
            let span = pool.addrs.span();
            let Text(PoolRange { first, last }) = pool.addrs.into_inner();
            let overlaps = |p: &&Pool| {
                p.first.is_ipv4() == first.is_ipv4() && p.first <= last && first <= p.last
            };
            if let Some(other) = done.iter().find(overlaps) {
                let message = format!(
                    "the addresses overlap with those of pool {:?}, expected each address in one pool",
                    other.name
                );
                self.error(span, message);
            }
            done.push(Pool {
                name: name.into_inner(),
                first,
                last,
                dns: pool.dns.into_iter().map(|t| t.0).collect(),
            });
        }
        done
    }

    /// A number that must be in a range.
    pub(super) fn within<T: Copy + PartialOrd + std::fmt::Display>(
        &mut self,
        given: Option<Spanned<T>>,
        name: &str,
        range: RangeInclusive<T>,
        default: T,
    ) -> T {
        let Some(given) = given else {
            return default;
        };
        if !range.contains(given.get_ref()) {
            let (low, high) = (range.start(), range.end());
            let what = format!("{name} is out of range, expected {low} to {high}");
            self.error(given.span(), what);
        }
        given.into_inner()
    }

    /// Proposals, each text of which may stand for several.
    pub(super) fn proposals<P>(
        &mut self,
        given: Option<Spanned<Vec<Text<Proposals<P>>>>>,
        default: impl FnOnce() -> Vec<P>,
    ) -> Vec<P> {
        let lists = self.list(given, || vec![Proposals(default())], "proposal");
        lists.into_iter().flat_map(|list| list.0).collect()
    }

    /// A list that has a default, but must not be empty.
    pub(super) fn list<T>(
        &mut self,
        given: Option<Spanned<Vec<Text<T>>>>,
        default: impl FnOnce() -> Vec<T>,
        what: &str,
    ) -> Vec<T> {
        let Some(list) = given else {
            return default();
        };
        if list.get_ref().is_empty() {
            self.error(
                list.span(),
                format!("the list is empty, expected at least one {what}"),
            );
        }
        list.into_inner().into_iter().map(|t| t.0).collect()
    }
}
