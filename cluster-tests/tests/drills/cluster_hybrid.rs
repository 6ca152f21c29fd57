//! The active member dies in the middle of an additional key exchange (RFC 9370), and another one brings it to its end.

use crate::cluster_exchanges::{By, During, at_failpoint_with};
use evergate_cluster_tests::Result;
use evergate_cluster_tests::connection::Connection;

/// ML-KEM as an additional key exchange, for both SAs.
fn hybrid(c: &mut Connection) {
    c.proposals = vec!["aes256gcm16-prfsha384-x25519-ke1_mlkem768".into()];
    c.esp = vec!["aes256gcm16-x25519-ke1_mlkem768".into()];
}

macro_rules! failpoints {
    ($($name:ident: $by:expr, $during:ident, $point:literal;)*) => {$(
        #[test]
        fn $name() -> Result<()> {
            at_failpoint_with($by, During::$during, $point, hybrid)
        }
    )*};
}

failpoints! {
    the_peers_intermediate_after_commit: By::Peer, Establish, "after-commit:IKE_INTERMEDIATE:1";
    own_intermediate_after_commit: By::Member, Establish, "after-commit:IKE_INTERMEDIATE:1";
    the_peers_ike_follow_up_before_commit: By::Peer, RekeyIke, "before-commit:IKE_FOLLOWUP_KE:1";
    own_follow_up_after_commit: By::Member, RekeyChild, "after-commit:IKE_FOLLOWUP_KE:1";
}
