//! What the kernel of a host has thrown away because a queue was full: that of a socket, or that of a TUN device.
//!
//! A machine that stalls lets the queues of whoever reads too late run over: strongSwan reads plain ESP from one raw socket, with room for some 250
//! packets. What is lost so at the ends of a flow, at a peer or at the host that counts datagrams, says nothing of the member between them; and the kernel
//! says how much it was.

use crate::Result;
use anyhow::Context;
use nix::sched::{CloneFlags, setns};
use std::collections::HashMap;
use std::fs::File;
use std::path::{Path, PathBuf};

/// How many packets the queues of a host have dropped, by queue.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Counts {
    /// By the number of the socket.
    sockets: HashMap<u64, u64>,
    /// By the name of the device: packets that were routed to it and were not read in time.
    devices: HashMap<String, u64>,
}

/// How many packets were dropped since the beginning.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Dropped {
    /// By sockets that were read too late.
    pub by_sockets: u64,
    /// By TUN devices that were read too late.
    pub by_devices: u64,
}

/// The queues of one host, from when it is made.
#[derive(Debug)]
pub(crate) struct Queues {
    namespace: PathBuf,
    before: Counts,
}

impl Queues {
    /// Those of the host with this network namespace.
    pub(crate) fn of(namespace: &str) -> Result<Self> {
        let namespace = Path::new("/run/netns").join(namespace);
        let before = Counts::read(&namespace)?;
        Ok(Self { namespace, before })
    }

    /// What they have dropped by now. A socket that is gone counts as one that dropped nothing.
    pub(crate) fn dropped(&self) -> Result<Dropped> {
        let now = Counts::read(&self.namespace)?;
        Ok(Dropped {
            by_sockets: grown(&self.before.sockets, &now.sockets),
            by_devices: grown(&self.before.devices, &now.devices),
        })
    }
}

fn grown<K: std::hash::Hash + Eq>(before: &HashMap<K, u64>, now: &HashMap<K, u64>) -> u64 {
    now.iter()
        .map(|(key, count)| count.saturating_sub(before.get(key).copied().unwrap_or(0)))
        .sum()
}

impl Counts {
    /// Reads them on a thread that enters the namespace.
    fn read(namespace: &Path) -> Result<Self> {
        std::thread::scope(|scope| {
            scope
                .spawn(|| {
                    let file =
                        File::open(namespace).with_context(|| namespace.display().to_string())?;
                    setns(file, CloneFlags::CLONE_NEWNET)?;
                    let mut counts = Self::default();
                    for table in ["udp", "udp6", "raw", "raw6"] {
                        counts.add_sockets(&proc_net(table)?)?;
                    }
                    counts.add_devices(&proc_net("dev")?)?;
                    Ok(counts)
                })
                .join()
                .map_err(|_| anyhow::anyhow!("reading the queues of a host panicked"))?
        })
    }

    /// Lines of `/proc/net/udp` and its like: the tenth word is the number of the socket, the last one what it dropped.
    fn add_sockets(&mut self, table: &str) -> Result<()> {
        for line in table.lines().skip(1) {
            let words: Vec<&str> = line.split_whitespace().collect();
            let (Some(inode), Some(drops)) = (words.get(9), words.last()) else {
                anyhow::bail!("no line of a table of sockets: {line}");
            };
            let drops = drops.parse().with_context(|| line.to_owned())?;
            self.sockets
                .insert(inode.parse().with_context(|| line.to_owned())?, drops);
        }
        Ok(())
    }

    /// Lines of `/proc/net/dev`: eight words on receiving, then bytes, packets, errors and drops of sending, which for a TUN device is what its process
    /// has to read.
    fn add_devices(&mut self, table: &str) -> Result<()> {
        for line in table.lines().skip(2) {
            let (name, numbers) = line.split_once(':').with_context(|| line.to_owned())?;
            let drops = (numbers.split_whitespace().nth(11)).with_context(|| line.to_owned())?;
            let drops = drops.parse().with_context(|| line.to_owned())?;
            self.devices.insert(name.trim().to_owned(), drops);
        }
        Ok(())
    }
}

fn proc_net(table: &str) -> Result<String> {
    let path = format!("/proc/thread-self/net/{table}");
    match std::fs::read_to_string(&path) {
        // Without IPv6 the kernel has no such table.
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(String::new()),
        read => read.with_context(|| path),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drops_of_sockets_and_devices_are_read() -> Result<()> {
        let mut counts = Counts::default();
        counts.add_sockets(concat!(
            "   sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode ref pointer drops\n",
            "  412: 00000000:01F4 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 7712 2 0000000000000000 9\n",
        ))?;
        counts.add_devices(concat!(
            "Inter-|   Receive                                                |  Transmit\n",
            " face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed\n",
            "ipsec0: 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16\n",
        ))?;
        assert_eq!(counts.sockets, HashMap::from([(7712, 9)]));
        assert_eq!(counts.devices, HashMap::from([("ipsec0".to_owned(), 12)]));
        Ok(())
    }

    #[test]
    fn what_was_dropped_before_does_not_count() {
        let before = HashMap::from([(1, 5), (2, 7)]);
        let now = HashMap::from([(1, 8), (3, 4)]);
        assert_eq!(grown(&before, &now), 3 + 4);
    }
}
