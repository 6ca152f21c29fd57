//! What the kernel's data plane alone can do for a child: firewall marks, and the help of network cards. Runs in `cluster-tests/guest`.

use crate::kernel_plane::in_kernel;
use anyhow::{Context, ensure};
use evergate_cluster_tests::duo::{C1, Duo, Setup};
use evergate_cluster_tests::lab::Family::V4;
use evergate_cluster_tests::lab::{PROTECTED, inside};
use evergate_cluster_tests::sa::Endpoint;
use evergate_cluster_tests::strongswan::Esp;
use evergate_cluster_tests::{Result, secs, until};

/// Of the gateway's firewall: what is sent has all of these marks in one, and so has what came by the tunnel; the rule that marks what is to go into it is
/// made later.
const FIREWALL: &str = "add table inet marks ; add counter inet marks sent ; add counter inet marks received ; \
    add chain inet marks pre { type filter hook prerouting priority mangle ; } ; \
    add chain inet marks out { type filter hook output priority 0 ; } ; \
    add chain inet marks through { type filter hook forward priority 0 ; } ; \
    add rule inet marks out ip protocol esp meta mark 0x37e6 counter name sent ; \
    add rule inet marks through iifname evergate0 meta mark and 0xf00 == 0x500 counter name received";

/// What `mark_out` asks for.
const MARK: &str = "add rule inet marks pre ip saddr 10.10.2.10 meta mark set 0x700";

fn counted(duo: &Duo, name: &str) -> Result<u64> {
    let counter = ["nft", "list", "counter", "inet", "marks", name];
    let text = duo.lab.exec("gw", &counter)?;
    let (_, count) = text.split_once("packets ").context("no counter")?;
    Ok(count
        .split_whitespace()
        .next()
        .unwrap_or_default()
        .parse()?)
}

fn ping(duo: &Duo) -> Result<String> {
    let to = &inside(1)[0];
    let ping = ["ping", "-c", "1", "-W", "1", "-I", PROTECTED[0], to];
    duo.lab.exec("host", &ping)
}

/// A packet goes through and is answered, and both have their marks.
fn passes(duo: &Duo, when: &str) -> Result<()> {
    let counts = || Ok::<_, anyhow::Error>((counted(duo, "sent")?, counted(duo, "received")?));
    let before = counts()?;
    until(secs(10), when, || ping(duo).map(|_| true))?;
    let after = counts()?;
    ensure!(
        after.0 > before.0 && after.1 > before.1,
        "{when}: from {before:?} to {after:?} packets with the marks"
    );
    Ok(())
}

/// The child takes what has its mark, gives what it sends and receives others, and goes on so after a rekey and a restart. That the card is to help if it can
/// changes nothing where it cannot; that it must leaves no Child SA.
#[test]
#[ignore = "needs a kernel with ESP: runs in cluster-tests/guest"]
fn a_child_takes_what_is_marked_and_marks_what_it_sends_and_receives() -> Result<()> {
    let mut setup = Setup::new(V4).both(in_kernel);
    setup.esp = Esp::Kernel;
    // ESP to an address that is protected by itself would be led into the tunnel again, if it lost our own mark.
    setup.peer.local_ts.push("192.0.2.1/32".into());
    setup.gateway.remote_ts.push("192.0.2.1/32".into());
    setup.gateway.dataplane = "mark = \"0xe6/0xff\"\n";
    setup.gateway.actions += "\nmark_out = \"0x700/0xf00\"\nset_mark_out = \"0x3000/0xf000\"\n\
        mark_in = \"0x500/0xf00\"\nset_mark_in = \"%same/0xf00\"\nhw_offload = \"auto\"\ncopy_ecn = false";
    let mut duo = Duo::start(&setup)?;
    duo.lab.exec("gw", &["nft", FIREWALL])?;
    duo.peer.initiate(C1, C1)?;
    let first = duo.agree(1)?;
    ensure!(ping(&duo).is_err(), "a packet without the mark got through");
    ensure!(counted(&duo, "sent")? == 0, "it was sent");
    duo.lab.exec("gw", &["nft", MARK])?;
    passes(&duo, "a packet with the mark")?;
    let states = duo.lab.exec("gw", &["ip", "xfrm", "state"])?;
    ensure!(states.contains("noecn"), "{states}");
    duo.member.rekey_child(C1)?;
    ensure!(duo.agree(1)?.child.is_disjoint(&first.child));
    passes(&duo, "after a rekey")?;
    duo.member.kill9()?;
    duo.member.start_again(&[])?;
    duo.agree(1)?;
    passes(&duo, "after a restart")?;
    requires_a_card(&mut duo)?;
    duo.finish()?;
    Ok(())
}

/// The device of the lab cannot encrypt.
fn requires_a_card(duo: &mut Duo) -> Result<()> {
    let file = duo.member.dir().join("evergate.toml");
    let text = std::fs::read_to_string(&file)?;
    std::fs::write(&file, text.replace("\"auto\"", "\"crypto\""))?;
    let path = file.to_str().context("path")?;
    duo.member.ctl(&["config", "apply", path])?;
    duo.peer.rekey_child(C1)?;
    until(secs(15), "the plane refuses", || {
        let log = duo.member.log()?;
        Ok(log.contains("the network card cannot encrypt and decrypt, as hw_offload wants it to"))
    })
}
