//! How the ends of a connection authenticate, and what with: keys, certificates, authorities.

use super::{LocalRound, Policy, RemoteRound};
use crate::{
    certificate::{Certificate, CertificateError, KEY_HASH_LEN, check_anchor},
    env::UnixMillis,
    secret::Secret,
    signature::{Constraint, KeyKind},
};
use serde::{Deserialize, Serialize};

/// How both ends of a connection authenticate. The default is with pre-shared keys.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Authentication {
    /// How we do.
    pub local: LocalAuth,
    /// How the peer does.
    pub remote: RemoteAuth,
    /// Further rounds in which we do (RFC 4739), in their order.
    pub more_local: Vec<LocalRound>,
    /// Further rounds in which the peer does.
    pub more_remote: Vec<RemoteRound>,
    /// When our certificate is sent.
    pub send_cert: SendCert,
    /// Whether the peer is told which authorities are trusted.
    pub send_certreq: bool,
    /// Post-quantum pre-shared keys (RFC 8784), if any are to be used.
    pub ppk: Option<PpkUse>,
}

/// How post-quantum pre-shared keys are used (RFC 8784).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PpkUse {
    /// The one that we name when we initiate.
    pub id: Option<Vec<u8>>,
    /// Whether peers that have none are refused.
    pub required: bool,
}

/// A post-quantum pre-shared key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ppk {
    /// Unique name.
    pub name: String,
    /// The identities by which peers name it.
    pub ids: Vec<Vec<u8>>,
    /// The key.
    pub secret: Secret,
}

/// How we authenticate.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum LocalAuth {
    /// With a pre-shared key.
    #[default]
    Psk,
    /// With a signature.
    Pubkey {
        /// Which signatures we make.
        constraint: Constraint,
        /// Our certificates and raw public keys, the preferred one first; never empty.
        credentials: Vec<Credential>,
    },
}

/// A certificate of ours, or a raw public key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Credential {
    /// What peers are shown.
    pub shown: Shown,
    /// DER of the certificate's subject; empty without one.
    pub subject: Vec<u8>,
    /// The kind of its key.
    pub key: KeyKind,
    /// The name of its private key.
    pub private_key: String,
    /// The names by which a CERTREQ may ask for it: those of its issuers, as far as they are known.
    pub issuers: Vec<[u8; KEY_HASH_LEN]>,
}

/// What a peer is shown of a credential.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Shown {
    /// The certificate, and those between it and an authority, in DER.
    Chain(Vec<Vec<u8>>),
    /// DER of the SubjectPublicKeyInfo (RFC 7670).
    RawKey(Vec<u8>),
}

/// How the peer authenticates.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum RemoteAuth {
    /// With a pre-shared key.
    #[default]
    Psk,
    /// With a signature.
    Pubkey {
        /// Which signatures are accepted.
        constraint: Constraint,
        /// The authorities that may have issued its certificate; empty for all of the policy.
        authorities: Vec<Authority>,
        /// The certificates that are accepted, whoever issued them; empty for any that an authority issued.
        certificates: Vec<Vec<u8>>,
        /// The public keys that are accepted without a certificate (RFC 7670), as SubjectPublicKeyInfo in DER.
        raw_keys: Vec<Vec<u8>>,
        /// What is made of revocations.
        revocation: RevocationPolicy,
    },
}

/// What is made of lists of revoked certificates.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum RevocationPolicy {
    /// A current list has to say that no certificate of the chain is revoked.
    Strict,
    /// It has to for those certificates that name a place where there is a list.
    IfUri,
    /// Only what is known to be revoked is refused.
    #[default]
    Relaxed,
}

/// When our certificate is sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum SendCert {
    /// Always.
    Always,
    /// When the peer sent a CERTREQ.
    #[default]
    IfAsked,
    /// Never: the peer has it.
    Never,
}

/// A certification authority.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Authority {
    /// Unique name.
    pub name: String,
    /// Its certificate in DER.
    pub certificate: Vec<u8>,
    /// DER of its subject.
    pub subject: Vec<u8>,
    /// DER of its issuer.
    pub issuer: Vec<u8>,
    /// What CERTREQ payloads name it by.
    pub key_hash: [u8; KEY_HASH_LEN],
    /// When its certificate begins.
    pub not_before: UnixMillis,
    /// When its certificate ends.
    pub not_after: UnixMillis,
    /// Where lists of what it revoked are, besides those that certificates name (`http://` or `file:`).
    pub crl_uris: Vec<String>,
    /// Where its responders are, besides those that certificates name (OCSP, `http://`).
    pub ocsp_uris: Vec<String>,
}

/// A private key of ours.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PrivateKey {
    /// Unique name.
    pub name: String,
    /// The kind of key.
    pub kind: KeyKind,
    /// The key itself, PKCS #8 in DER.
    pub pkcs8: Secret,
    /// DER of the SubjectPublicKeyInfo of its public key.
    pub spki: Vec<u8>,
}

impl Authentication {
    /// Whether either end signs, in any round.
    pub fn has_signatures(&self) -> bool {
        let locals = self.more_local.iter().map(|r| &r.auth);
        let remotes = self.more_remote.iter().map(|r| &r.auth);
        locals.chain([&self.local]).any(|l| *l != LocalAuth::Psk)
            || remotes.chain([&self.remote]).any(|r| *r != RemoteAuth::Psk)
    }
}

impl Authority {
    /// An authority with this certificate.
    ///
    /// # Errors
    /// If it is not a certificate of an authority.
    pub fn new(name: String, certificate: &Certificate) -> Result<Self, CertificateError> {
        if !certificate.is_ca || !certificate.may_certify {
            return Err(CertificateError::Issuer(
                "the certificate is not of a certification authority".to_owned(),
            ));
        }
        check_anchor(&certificate.der)?;
        Ok(Self {
            name,
            certificate: certificate.der.clone(),
            subject: certificate.subject.clone(),
            issuer: certificate.issuer.clone(),
            key_hash: certificate.key_hash(),
            not_before: certificate.not_before,
            not_after: certificate.not_after,
            crl_uris: Vec::new(),
            ocsp_uris: Vec::new(),
        })
    }

    /// Whether its certificate is valid at a time.
    pub fn is_valid(&self, now: UnixMillis) -> bool {
        self.not_before <= now && now <= self.not_after
    }
}

impl Policy {
    /// The post-quantum pre-shared key that a peer names so.
    pub fn ppk(&self, id: &[u8]) -> Option<&Secret> {
        let named = |ppk: &&Ppk| ppk.ids.iter().any(|own| own == id);
        self.ppks.iter().find(named).map(|ppk| &ppk.secret)
    }

    /// The private key of this name.
    pub fn private_key(&self, name: &str) -> Option<&PrivateKey> {
        self.private_keys.iter().find(|k| k.name == name)
    }

    /// The authorities at which paths may end: those whose own issuer is not among them. The others are links of chains that peers may leave out.
    pub fn anchors(&self) -> impl Iterator<Item = &Authority> {
        let all = &self.authorities;
        all.iter().filter(move |a| {
            a.subject == a.issuer || !all.iter().any(|other| other.subject == a.issuer)
        })
    }
}

impl RemoteAuth {
    /// Whether the peer may show a certificate.
    pub fn takes_certificates(&self, policy: &Policy) -> bool {
        match self {
            Self::Psk => false,
            Self::Pubkey {
                certificates,
                raw_keys,
                ..
            } => {
                raw_keys.is_empty() || !certificates.is_empty() || !self.anchors(policy).is_empty()
            }
        }
    }

    /// Whether the peer may show a raw public key (RFC 7670).
    pub fn takes_raw_keys(&self) -> bool {
        matches!(self, Self::Pubkey { raw_keys, .. } if !raw_keys.is_empty())
    }

    /// The authorities that are trusted for this peer, in a policy.
    pub fn anchors<'a>(&'a self, policy: &'a Policy) -> Vec<&'a Authority> {
        match self {
            Self::Psk => Vec::new(),
            Self::Pubkey { certificates, .. } if !certificates.is_empty() => Vec::new(),
            Self::Pubkey { authorities, .. } if !authorities.is_empty() => {
                authorities.iter().collect()
            }
            // Who names keys does not trust all authorities besides.
            Self::Pubkey { raw_keys, .. } if !raw_keys.is_empty() => Vec::new(),
            Self::Pubkey { .. } => policy.anchors().collect(),
        }
    }
}
