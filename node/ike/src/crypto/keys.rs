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

/// The keys of an IKE SA. A key that encrypts is followed by its salt and, if it is not of an AEAD, by the integrity key
/// (SK_ai, SK_ar).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IkeKeys {
    /// Derives keys of Child SAs and of the next IKE SA.
    pub d: Secret,
    /// Encrypts what the initiator sends (key, salt, integrity key).
    pub ei: Secret,
    /// Encrypts what the responder sends (key, salt, integrity key).
    pub er: Secret,
    /// Authenticates the initiator; empty once that is done.
    pub pi: Secret,
    /// Authenticates the responder; empty once that is done.
    pub pr: Secret,
}

/// The keys of a Child SA, each a key, its salt and, without an AEAD, its integrity key.
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
        let share = suite.prf.nonce_share();
        let nonces = [exchanged.nonce_i, exchanged.nonce_r]
            .map(|nonce| &nonce[..nonce.len().min(share)])
            .concat();
        let seed = suite.prf.compute(&nonces, &[shared.expose()]);
        Self::expand(suite, &seed, exchanged)
    }

    /// Keys of an IKE SA that replaces one whose SK_d is `old_d` and whose PRF is `old_prf`
    /// (RFC 7296 §2.18); `shared` are the secrets of all its key exchanges (RFC 9370 §2.2.4).
    pub fn rekeyed(
        suite: IkeSuite,
        old_prf: Prf,
        old_d: &Secret,
        shared: &[&Secret],
        exchanged: Exchanged<'_>,
    ) -> Self {
        let seed = old_prf.compute(
            old_d.expose(),
            &with_secrets(shared, exchanged.nonce_i, exchanged.nonce_r),
        );
        Self::expand(suite, &seed, exchanged)
    }

    /// Keys after an additional key exchange of the initial exchanges (RFC 9370 §2.2.2): each takes the place of the ones before.
    pub fn updated(&self, suite: IkeSuite, shared: &Secret, exchanged: Exchanged<'_>) -> Self {
        Self::rekeyed(suite, suite.prf, &self.d, &[shared], exchanged)
    }

    /// What is needed of them once both ends are authenticated: the keys of AUTH are used no more.
    pub fn of_established(self) -> Self {
        Self {
            pi: Secret::default(),
            pr: Secret::default(),
            ..self
        }
    }

    /// Cuts prf+ of SKEYSEED into keys. AEADs have no SK_ai and SK_ar (RFC 5282 §7).
    fn expand(suite: IkeSuite, skeyseed: &Secret, exchanged: Exchanged<'_>) -> Self {
        let prf_len = suite.prf.output_len();
        let integrity_len = suite.cipher().integrity_key_len();
        let cipher_len = suite.cipher().material_len() - integrity_len;
        let seed: [&[u8]; 4] = [
            exchanged.nonce_i,
            exchanged.nonce_r,
            &exchanged.spi_i.to_be_bytes(),
            &exchanged.spi_r.to_be_bytes(),
        ];
        let len = 3 * prf_len + 2 * (integrity_len + cipher_len);
        let material = suite.prf.expand(skeyseed.expose(), &seed, len);
        let mut rest = material.expose();
        let d = take(&mut rest, prf_len);
        let (ai, ar) = (
            take(&mut rest, integrity_len),
            take(&mut rest, integrity_len),
        );
        let (ei, er) = (take(&mut rest, cipher_len), take(&mut rest, cipher_len));
        let joined = |e: &Secret, a: &Secret| Secret::new([e.expose(), a.expose()].concat());
        Self {
            d,
            ei: joined(&ei, &ai),
            er: joined(&er, &ar),
            pi: take(&mut rest, prf_len),
            pr: take(&mut rest, prf_len),
        }
    }
}

impl ChildKeys {
    /// Keys of a Child SA (RFC 7296 §2.17); `shared` are the secrets of its own key exchanges, if any (RFC 9370 §2.2.4).
    pub fn derive(
        suite: EspSuite,
        prf: Prf,
        d: &Secret,
        shared: &[&Secret],
        nonce_i: &[u8],
        nonce_r: &[u8],
    ) -> Self {
        let len = suite.cipher().material_len();
        let seed = with_secrets(shared, nonce_i, nonce_r);
        let material = prf.expand(d.expose(), &seed, 2 * len);
        let mut rest = material.expose();
        Self {
            initiator_to_responder: take(&mut rest, len),
            responder_to_initiator: take(&mut rest, len),
        }
    }
}

/// The secret of the first key exchange, if any, the nonces, and the secrets of the others: `SK(0) | Ni | Nr | SK(1) | …`.
fn with_secrets<'a>(shared: &[&'a Secret], nonce_i: &'a [u8], nonce_r: &'a [u8]) -> Vec<&'a [u8]> {
    let mut secrets = shared.iter().map(|s| s.expose());
    let mut parts: Vec<_> = secrets.next().into_iter().collect();
    parts.extend([nonce_i, nonce_r]);
    parts.extend(secrets);
    parts
}

impl IkeKeys {
    /// The keys with a post-quantum pre-shared key mixed in (RFC 8784 §3): those from which others come, and those of AUTH.
    pub fn with_ppk(&self, prf: Prf, ppk: &Secret) -> Self {
        let mixed = |key: &Secret| prf.expand(ppk.expose(), &[key.expose()], key.len());
        Self {
            d: mixed(&self.d),
            pi: mixed(&self.pi),
            pr: mixed(&self.pr),
            ..self.clone()
        }
    }
}

/// What AUTH covers (RFC 7296 §2.15): of the party that sent `message` (its whole IKE_SA_INIT message), got `nonce` from the other, has
/// `sk_p`, and calls itself `id_body` (the body of its ID payload after the generic header); `int_auth` is what IKE_INTERMEDIATE adds (RFC 9242 §3.3.2).
pub fn signed_octets(
    prf: Prf,
    message: &[u8],
    nonce: &[u8],
    sk_p: &Secret,
    id_body: &[u8],
    int_auth: &[u8],
) -> Vec<u8> {
    let maced_id = prf.compute(sk_p.expose(), &[id_body]);
    [message, nonce, maced_id.expose(), int_auth].concat()
}

/// The AUTH data of a pre-shared key over these octets (RFC 7296 §2.15).
pub fn psk_auth(prf: Prf, psk: &Secret, octets: &[u8]) -> Secret {
    let key = prf.compute(psk.expose(), &[b"Key Pad for IKEv2"]);
    prf.compute(key.expose(), &[octets])
}

/// Moves the first `len` bytes of `rest` into a secret of their own.
fn take(rest: &mut &[u8], len: usize) -> Secret {
    let (head, tail) = rest.split_at(len);
    *rest = tail;
    Secret::new(head.to_vec())
}
