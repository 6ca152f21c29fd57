//! The active member dies between the fragments of one message (RFC 7383), and another one brings the exchange to its end. Both sides
//! send the same fragments again, which every drill checks.

use crate::cluster_exchanges::{By, During, at_failpoint_with};
use crate::fragments::{long_identities, many_selectors};
use evergate_cluster_tests::Result;

macro_rules! failpoints {
    ($($name:ident: $by:expr, $during:ident, $point:literal;)*) => {$(
        #[test]
        fn $name() -> Result<()> {
            let change = match During::$during {
                During::Establish => long_identities,
                _ => many_selectors,
            };
            at_failpoint_with($by, During::$during, $point, change)
        }
    )*};
}

failpoints! {
    the_peers_auth_in_the_middle_of_the_request: By::Peer, Establish, "request-arrived:IKE_AUTH:2";
    the_peers_auth_before_the_response: By::Peer, Establish, "after-commit:IKE_AUTH:1";
    the_peers_auth_in_the_middle_of_the_response: By::Peer, Establish, "response-sent:IKE_AUTH:1";
    own_auth_in_the_middle_of_the_request: By::Member, Establish, "request-sent:IKE_AUTH:2";
    the_peers_rekey_in_the_middle_of_the_request: By::Peer, RekeyChild, "request-arrived:CREATE_CHILD_SA:2";
    the_peers_rekey_in_the_middle_of_the_response: By::Peer, RekeyChild, "response-sent:CREATE_CHILD_SA:1";
    own_rekey_in_the_middle_of_the_request: By::Member, RekeyChild, "request-sent:CREATE_CHILD_SA:1";
}
