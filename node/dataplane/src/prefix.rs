//! Prefixes with values, found by what contains them and by what they contain, however many there are.

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use std::{collections::BTreeMap, net::IpAddr};

/// Values by prefix. Host bits of keys do not count.
///
/// What takes time grows with the logarithm of the number of prefixes, and with the number of results.
#[derive(Clone, Debug)]
pub struct PrefixMap<V> {
    entries: BTreeMap<IpNet, V>,
    /// How many there are of each length: only lengths that there are need looking up.
    v4: [u32; 33],
    v6: [u32; 129],
}

impl<V> Default for PrefixMap<V> {
    fn default() -> Self {
        Self {
            entries: BTreeMap::new(),
            v4: [0; 33],
            v6: [0; 129],
        }
    }
}

impl<V> PrefixMap<V> {
    /// Sets the value of a prefix; yields the one before.
    pub fn insert(&mut self, prefix: IpNet, value: V) -> Option<V> {
        let before = self.entries.insert(prefix.trunc(), value);
        if before.is_none() {
            *self.count(prefix) += 1;
        }
        before
    }

    /// The value of a prefix, made if there is none.
    pub fn or_default(&mut self, prefix: IpNet) -> &mut V
    where
        V: Default,
    {
        if self.get(prefix).is_none() {
            self.insert(prefix, V::default());
        }
        self.entries.entry(prefix.trunc()).or_default()
    }

    /// Takes a prefix out.
    pub fn remove(&mut self, prefix: IpNet) -> Option<V> {
        let before = self.entries.remove(&prefix.trunc());
        if before.is_some() {
            *self.count(prefix) -= 1;
        }
        before
    }

    /// The value of this very prefix.
    pub fn get(&self, prefix: IpNet) -> Option<&V> {
        self.entries.get(&prefix.trunc())
    }

    /// The value of this very prefix, to be changed.
    pub fn get_mut(&mut self, prefix: IpNet) -> Option<&mut V> {
        self.entries.get_mut(&prefix.trunc())
    }

    /// The prefixes that contain this one, itself included, the narrowest first.
    pub fn around(&self, prefix: IpNet) -> impl Iterator<Item = (IpNet, &V)> {
        let longest = prefix.prefix_len();
        (0..=longest).rev().filter_map(move |len| {
            let there = match prefix {
                IpNet::V4(_) => self.v4.get(usize::from(len)),
                IpNet::V6(_) => self.v6.get(usize::from(len)),
            };
            there.filter(|count| **count > 0)?;
            let wider = IpNet::new(prefix.addr(), len).ok()?.trunc();
            self.entries.get_key_value(&wider).map(|(p, v)| (*p, v))
        })
    }

    /// The prefixes that this one contains, itself included, in order.
    pub fn within(&self, prefix: IpNet) -> impl Iterator<Item = (IpNet, &V)> {
        // Of those at the same address the wider ones come first, so that all in this range are within.
        let last = IpNet::from(prefix.broadcast());
        self.entries
            .range(prefix.trunc()..=last)
            .map(|(p, v)| (*p, v))
    }

    /// All prefixes, in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (IpNet, &V)> {
        self.entries.iter().map(|(p, v)| (*p, v))
    }

    /// How many prefixes there are.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    fn count(&mut self, prefix: IpNet) -> &mut u32 {
        let len = usize::from(prefix.prefix_len());
        match prefix {
            IpNet::V4(_) => &mut self.v4[len],
            IpNet::V6(_) => &mut self.v6[len],
        }
    }
}

impl<V> FromIterator<(IpNet, V)> for PrefixMap<V> {
    fn from_iter<T: IntoIterator<Item = (IpNet, V)>>(all: T) -> Self {
        let mut map = Self::default();
        for (prefix, value) in all {
            map.insert(prefix, value);
        }
        map
    }
}

/// The narrowest prefix that contains both addresses; `None` if they are of different families.
pub(crate) fn covering(first: IpAddr, last: IpAddr) -> Option<IpNet> {
    let len = |zeros: u32| u8::try_from(zeros).expect("at most 128");
    let net: IpNet = match (first, last) {
        (IpAddr::V4(a), IpAddr::V4(b)) => {
            let same = (u32::from(a) ^ u32::from(b)).leading_zeros();
            Ipv4Net::new(a, len(same)).ok()?.into()
        }
        (IpAddr::V6(a), IpAddr::V6(b)) => {
            let same = (u128::from(a) ^ u128::from(b)).leading_zeros();
            Ipv6Net::new(a, len(same)).ok()?.into()
        }
        _ => return None,
    };
    Some(net.trunc())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    fn names<'a>(found: impl Iterator<Item = (IpNet, &'a ())>) -> Vec<String> {
        found.map(|(p, ())| p.to_string()).collect()
    }

    #[test]
    fn containing_and_contained_prefixes_are_found() {
        let all = [
            "0.0.0.0/0",
            "10.0.0.0/8",
            "10.1.0.0/16",
            "10.1.0.0/24",
            "10.1.0.0/32",
            "10.1.255.255/32",
            "10.2.0.0/16",
            "::/0",
            "fd00::/8",
            "255.255.255.255/32",
        ];
        let mut map: PrefixMap<()> = all.iter().map(|p| (net(p), ())).collect();
        assert_eq!(
            names(map.around(net("10.1.7.7/16"))),
            ["10.1.0.0/16", "10.0.0.0/8", "0.0.0.0/0"]
        );
        assert_eq!(
            names(map.within(net("10.1.7.7/16"))),
            [
                "10.1.0.0/16",
                "10.1.0.0/24",
                "10.1.0.0/32",
                "10.1.255.255/32"
            ]
        );
        assert_eq!(names(map.within(net("10.1.0.0/25"))), ["10.1.0.0/32"]);
        assert_eq!(names(map.within(net("0.0.0.0/0"))).len(), 8);
        assert_eq!(names(map.around(net("fd01::/64"))), ["fd00::/8", "::/0"]);
        assert_eq!(map.remove(net("10.0.0.0/8")), Some(()));
        assert_eq!(map.remove(net("10.0.0.0/8")), None);
        assert_eq!(map.insert(net("10.2.3.4/16"), ()), Some(()));
        assert_eq!(
            names(map.around(net("10.1.0.0/16"))),
            ["10.1.0.0/16", "0.0.0.0/0"]
        );
        assert_eq!(map.len(), 9);
    }

    #[test]
    fn a_range_lies_in_its_covering_prefix() {
        let of = |a: &str, b: &str| covering(a.parse().unwrap(), b.parse().unwrap());
        assert_eq!(of("10.1.0.0", "10.1.255.255"), Some(net("10.1.0.0/16")));
        assert_eq!(of("10.0.0.255", "10.0.1.0"), Some(net("10.0.0.0/23")));
        assert_eq!(of("127.0.0.1", "128.0.0.1"), Some(net("0.0.0.0/0")));
        assert_eq!(of("fd00::1", "fd00::1"), Some(net("fd00::1/128")));
        assert_eq!(of("10.0.0.1", "fd00::1"), None);
    }
}
