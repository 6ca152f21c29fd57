//! Who is who.

use crate::scenario::Scenario;

pub(crate) fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario::new("psk", "Pre-shared keys, names as identities"),
        Scenario::new("psk_addresses", "Pre-shared keys, addresses as identities").both(|c| {
            c.local_id.clone_from(&c.local);
            c.remote_id.clone_from(&c.remote);
        }),
        Scenario::new(
            "psk_email",
            "Pre-shared keys, e-mail addresses as identities",
        )
        .with(|s| {
            for c in [&mut s.peer, &mut s.gateway] {
                for id in [&mut c.local_id, &mut c.remote_id] {
                    *id = id.replace('.', "@") + ".test";
                }
            }
        }),
    ]
}
