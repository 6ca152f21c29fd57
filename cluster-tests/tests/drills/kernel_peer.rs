//! strongSwan whose ESP is the kernel's, as most peers have it. Few kernels of test machines can do that: these drills run in `cluster-tests/guest`.

use crate::establish::both_families;
use evergate_cluster_tests::Result;
use evergate_cluster_tests::duo::{C1, Duo, Setup};
use evergate_cluster_tests::lab::Family::{self, V4, V6};
use evergate_cluster_tests::sa::Endpoint;
use evergate_cluster_tests::strongswan::Esp;

/// A tunnel by the peer, rekeyed by the member, and the other way round.
fn tunnel(outer: Family, encap: bool, child: &str) -> Result<()> {
    let mut setup = Setup::new(outer).both(|c| {
        c.encap = encap;
        c.esp = vec![child.into()];
    });
    setup.esp = Esp::Kernel;
    let duo = Duo::start(&setup)?;
    duo.peer.initiate(C1, C1)?;
    let first = duo.agree(1)?;
    both_families(&duo)?;
    duo.member.rekey_child(C1)?;
    duo.agree_on(1, |now| now.child.is_disjoint(&first.child))?;
    both_families(&duo)?;
    duo.member.terminate(C1)?;
    duo.member.initiate(C1, C1)?;
    let again = duo.agree(1)?;
    duo.peer.rekey_child(C1)?;
    duo.agree_on(1, |now| now.child.is_disjoint(&again.child))?;
    both_families(&duo)?;
    let found = duo.finish()?;
    assert_eq!((found.esp_in_udp > 0, found.esp_plain > 0), (encap, !encap));
    Ok(())
}

#[test]
#[ignore = "needs a kernel with ESP: runs in cluster-tests/guest"]
fn tunnel_in_udp() -> Result<()> {
    tunnel(V4, true, "aes256gcm16")
}

#[test]
#[ignore = "needs a kernel with ESP: runs in cluster-tests/guest"]
fn tunnel_in_plain_esp() -> Result<()> {
    tunnel(V6, false, "aes128-sha256")
}
