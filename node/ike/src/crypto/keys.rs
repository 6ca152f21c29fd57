//! Key schedule (RFC 7296 §2.14, §2.15, §2.17, §2.18).

use super::{EspSuite, IkeSuite, Prf};
use crate::secret::Secret;
use serde::{Deserialize, Serialize};

/// The nonces and SPIs that go into every derivation, in the initiator's and responder's order.
#[derive(Clone, Copy)]
pub struct Exchanged<'a> {
    /// Nonce of the exchange's initiator.
    pub nonce_i: &'a [u8],
    /// Nonce of the exchange's responder.
    pub nonce_r: &'a [u8],
    /// SPI of the (new) IKE SA's initiator.
    pub spi_i: u64,
    /// SPI of the (new) IKE SA's responder.
    pub spi_r: u64,
}

/// The keys of an IKE SA. Keys of AEADs end with their salt.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IkeKeys {
    /// Derives keys of Child SAs and of the next IKE SA.
    pub d: Secret,
    /// Encrypts what the initiator sends (key and salt).
    pub ei: Secret,
    /// Encrypts what the responder sends (key and salt).
    pub er: Secret,
    /// Authenticates the initiator.
    pub pi: Secret,
    /// Authenticates the responder.
    pub pr: Secret,
}

/// The keys of a Child SA, each a key and its salt.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChildKeys {
    /// For packets from the exchange's initiator to its responder.
    pub initiator_to_responder: Secret,
    /// For packets from the exchange's responder to its initiator.
    pub responder_to_initiator: Secret,
}

impl IkeKeys {
    /// Keys of a new IKE SA from IKE_SA_INIT (RFC 7296 §2.14).
    pub fn initial(suite: IkeSuite, shared: &Secret, exchanged: Exchanged<'_>) -> Self {
        let nonces = [exchanged.nonce_i, exchanged.nonce_r].concat();
        let seed = suite.prf.compute(&nonces, &[shared.expose()]);
        Self::expand(suite, &seed, exchanged)
    }

    /// Keys of an IKE SA that replaces one whose SK_d is `old_d` and whose PRF is `old_prf`
    /// (RFC 7296 §2.18).
    pub fn rekeyed(
        suite: IkeSuite,
        old_prf: Prf,
        old_d: &Secret,
        shared: &Secret,
        exchanged: Exchanged<'_>,
    ) -> Self {
        let seed = old_prf.compute(
            old_d.expose(),
            &[shared.expose(), exchanged.nonce_i, exchanged.nonce_r],
        );
        Self::expand(suite, &seed, exchanged)
    }

    /// Cuts prf+ of SKEYSEED into keys. AEADs have no SK_ai and SK_ar (RFC 5282 §7).
    fn expand(suite: IkeSuite, skeyseed: &Secret, exchanged: Exchanged<'_>) -> Self {
        let prf_len = suite.prf.output_len();
        let cipher_len = suite.encryption.key_len() + suite.encryption.salt_len();
        let seed: [&[u8]; 4] = [
            exchanged.nonce_i,
            exchanged.nonce_r,
            &exchanged.spi_i.to_be_bytes(),
            &exchanged.spi_r.to_be_bytes(),
        ];
        let material = suite
            .prf
            .expand(skeyseed.expose(), &seed, 3 * prf_len + 2 * cipher_len);
        let mut rest = material.expose();
        Self {
            d: take(&mut rest, prf_len),
            ei: take(&mut rest, cipher_len),
            er: take(&mut rest, cipher_len),
            pi: take(&mut rest, prf_len),
            pr: take(&mut rest, prf_len),
        }
    }
}

impl ChildKeys {
    /// Keys of a Child SA (RFC 7296 §2.17); `shared` is the secret of its own key exchange, if any.
    pub fn derive(
        suite: EspSuite,
        prf: Prf,
        d: &Secret,
        shared: Option<&Secret>,
        nonce_i: &[u8],
        nonce_r: &[u8],
    ) -> Self {
        let len = suite.encryption.key_len() + suite.encryption.salt_len();
        let shared = shared.map_or(&[][..], Secret::expose);
        let material = prf.expand(d.expose(), &[shared, nonce_i, nonce_r], 2 * len);
        let mut rest = material.expose();
        Self {
            initiator_to_responder: take(&mut rest, len),
            responder_to_initiator: take(&mut rest, len),
        }
    }
}

/// The AUTH data of a pre-shared key (RFC 7296 §2.15): of the party that sent `message` (its whole
/// IKE_SA_INIT message), got `nonce` from the other, has `sk_p`, and calls itself `id_body` (the body
/// of its ID payload after the generic header).
pub fn psk_auth(
    prf: Prf,
    psk: &Secret,
    message: &[u8],
    nonce: &[u8],
    sk_p: &Secret,
    id_body: &[u8],
) -> Secret {
    let key = prf.compute(psk.expose(), &[b"Key Pad for IKEv2"]);
    let maced_id = prf.compute(sk_p.expose(), &[id_body]);
    prf.compute(key.expose(), &[message, nonce, maced_id.expose()])
}

/// Moves the first `len` bytes of `rest` into a secret of their own.
fn take(rest: &mut &[u8], len: usize) -> Secret {
    let (head, tail) = rest.split_at(len);
    *rest = tail;
    Secret::new(head.to_vec())
}
