//! Certificates, private keys and authorities: read from the files that the document names, and matched with each other.

use super::{
    document,
    validate::Check,
    values::{Auth, Text},
};
use crate::credentials::read_private_key;
use evergate_ike::{
    certificate::{Certificate, MAX_RAW_KEY},
    config::{
        Authentication, Authority, Credential, LocalAuth, LocalRound, Ppk, PpkUse, PrivateKey,
        RemoteAuth, RemoteRound, SendCert, Shown,
    },
    identity::IdPattern,
    secret::Secret,
    signature::KeyKind,
};
use rustls_pki_types::{CertificateDer, SubjectPublicKeyInfoDer, pem::PemObject};
use std::{fs, io::Read, path::PathBuf};
use toml::Spanned;

/// Longest file of certificates or keys, in bytes: what is read is replicated.
const MAX_FILE: u64 = 1_048_576;

/// Longest name of a post-quantum pre-shared key, in bytes: as other identities.
const MAX_PPK_ID: usize = 2048;

/// Public keys that one connection may name for its peer: a signature is tried with each of them.
const MAX_PUBKEYS: usize = 16;

/// What connections may refer to.
pub(super) struct Known<'a> {
    pub(super) keys: &'a [PrivateKey],
    pub(super) ppks: &'a [Ppk],
    pub(super) authorities: &'a [Authority],
}

impl Check<'_> {
    /// What a file holds, certificates and keys or a secret.
    pub(super) fn file(&mut self, file: &Spanned<PathBuf>) -> Option<Vec<u8>> {
        let path = self.directory.join(file.get_ref());
        let mut bytes = Vec::new();
        let read = fs::File::open(&path)
            .and_then(|f| {
                // At once: a vector that grows would leave parts of a secret behind.
                let len = f.metadata()?.len().min(MAX_FILE);
                bytes.reserve_exact(usize::try_from(len).unwrap_or_default() + 1);
                f.take(MAX_FILE + 1).read_to_end(&mut bytes)
            })
            .map_err(|e| format!("cannot read {}: {e}", path.display()));
        let read = read.and_then(|len| match len {
            len if len as u64 > MAX_FILE => Err(format!(
                "{} is longer than {MAX_FILE} bytes",
                path.display()
            )),
            _ => Ok(bytes),
        });
        read.map_err(|e| self.error(file.span(), e)).ok()
    }

    /// All certificates of a file, in PEM, or the one in DER.
    fn certificates(&mut self, file: &Spanned<PathBuf>) -> Vec<Certificate> {
        let Some(bytes) = self.file(file) else {
            return Vec::new();
        };
        let pem = bytes.windows(11).any(|w| w == b"-----BEGIN ");
        let ders: Result<Vec<Vec<u8>>, String> = if pem {
            CertificateDer::pem_slice_iter(&bytes)
                .map(|c| c.map(|c| c.to_vec()).map_err(|e| e.to_string()))
                .collect()
        } else {
            Ok(vec![bytes])
        };
        let parsed = ders.and_then(|ders| {
            let all = ders.iter().map(|der| Certificate::parse(der));
            let all: Vec<Certificate> = all.collect::<Result<_, _>>().map_err(|e| e.to_string())?;
            match all.is_empty() {
                true => Err("there is none".to_owned()),
                false => Ok(all),
            }
        });
        parsed.unwrap_or_else(|e| {
            let path = self.directory.join(file.get_ref());
            self.error(
                file.span(),
                format!("the certificate in {} cannot be used: {e}", path.display()),
            );
            Vec::new()
        })
    }

    /// A public key: its SubjectPublicKeyInfo in PEM or DER.
    fn public_key(&mut self, file: &Spanned<PathBuf>) -> Option<(Vec<u8>, KeyKind)> {
        let bytes = self.file(file)?;
        let der = match SubjectPublicKeyInfoDer::from_pem_slice(&bytes) {
            Ok(key) => key.to_vec(),
            Err(_) => bytes,
        };
        let kind = KeyKind::of(&der).filter(|_| der.len() <= MAX_RAW_KEY);
        if kind.is_none() {
            let what = format!(
                "{} is no public key that can be used, expected a SubjectPublicKeyInfo (BEGIN PUBLIC KEY) of an RSA, ECDSA or Ed25519 key",
                file.get_ref().display()
            );
            self.error(file.span(), what);
        }
        Some((der, kind?))
    }

    pub(super) fn authorities(
        &mut self,
        authorities: Vec<(Spanned<String>, Spanned<document::Authority>)>,
    ) -> Vec<Authority> {
        let mut done = Vec::new();
        for (name, authority) in authorities {
            self.name(&name, "authority");
            let document::Authority {
                cacert,
                crl_uris,
                ocsp_uris,
            } = authority.into_inner();
            for certificate in self.certificates(&cacert) {
                let authority = self.authority(name.get_ref(), &certificate, &cacert);
                done.extend(authority.map(|a| Authority {
                    crl_uris: crl_uris.iter().map(|uri| uri.0.0.clone()).collect(),
                    ocsp_uris: ocsp_uris.iter().map(|uri| uri.0.0.clone()).collect(),
                    ..a
                }));
            }
        }
        done
    }

    fn authority(
        &mut self,
        name: &str,
        certificate: &Certificate,
        file: &Spanned<PathBuf>,
    ) -> Option<Authority> {
        Authority::new(name.to_owned(), certificate)
            .map_err(|e| {
                let what = format!("{} is no authority: {e}", file.get_ref().display());
                self.error(file.span(), what);
            })
            .ok()
    }

    /// A private key, with the passphrase that it may need.
    pub(super) fn private_key(
        &mut self,
        name: &Spanned<String>,
        file: &Spanned<PathBuf>,
        passphrase: Option<&Secret>,
    ) -> Option<PrivateKey> {
        let bytes = zeroize::Zeroizing::new(self.file(file)?);
        read_private_key(name.get_ref(), &bytes, passphrase)
            .map_err(|e| {
                let what = format!(
                    "{} is no private key that can be used: {e}",
                    file.get_ref().display()
                );
                self.error(file.span(), what);
            })
            .ok()
    }

    /// How the ends of a connection authenticate.
    pub(super) fn authentication(
        &mut self,
        name: &Spanned<String>,
        locals: &[document::Local],
        remotes: &[document::RemoteEnd],
        (send_cert, send_certreq): (Option<Text<SendCert>>, bool),
        known: &Known<'_>,
    ) -> Authentication {
        let mut local = locals.iter().map(|l| LocalRound {
            id: l.id.as_ref().map(|id| id.0.clone()),
            auth: self.local_auth(name, l, known),
        });
        let first_local = local.next().map(|l| l.auth).unwrap_or_default();
        let more_local = local.collect();
        let mut remote = remotes.iter().map(|r| RemoteRound {
            id: r.id.as_ref().map_or(IdPattern::Any, |id| id.0.clone()),
            auth: self.remote_auth(name, r, known),
        });
        let first_remote = remote.next().map(|r| r.auth).unwrap_or_default();
        let more_remote = remote.collect();
        Authentication {
            local: first_local,
            remote: first_remote,
            more_local,
            more_remote,
            send_cert: send_cert.map_or(SendCert::IfAsked, |t| t.0),
            send_certreq,
            ppk: None,
        }
    }

    /// Post-quantum pre-shared keys.
    pub(super) fn ppks(
        &mut self,
        ppks: Vec<(Spanned<String>, Spanned<document::Ppk>)>,
    ) -> Vec<Ppk> {
        let mut done: Vec<Ppk> = Vec::new();
        for (name, ppk) in ppks {
            self.name(&name, "post-quantum pre-shared key");
            let span = ppk.span();
            let ppk = ppk.into_inner();
            let ids: Vec<Vec<u8>> = ppk.ids.into_iter().map(String::into_bytes).collect();
            let bad = |id: &Vec<u8>| {
                id.is_empty() || id.len() > MAX_PPK_ID || done.iter().any(|p| p.ids.contains(id))
            };
            if ids.is_empty() || ids.iter().any(bad) {
                let what = format!(
                    "these ids cannot be used, expected texts of 1 to {MAX_PPK_ID} bytes that no other key has"
                );
                self.error(span.clone(), what);
            }
            let secret = self.secret(ppk.secret, ppk.secret_file, span);
            done.extend(secret.map(|secret| Ppk {
                name: name.into_inner(),
                ids,
                secret,
            }));
        }
        done
    }

    /// Which post-quantum pre-shared key a connection uses.
    pub(super) fn ppk_use(
        &mut self,
        id: Option<Spanned<String>>,
        required: bool,
        known: &Known<'_>,
    ) -> Option<PpkUse> {
        if let Some(id) = &id
            && !known
                .ppks
                .iter()
                .any(|p| p.ids.iter().any(|i| i == id.get_ref().as_bytes()))
        {
            let what = format!(
                "there is no key {:?}, expected a [ppks.NAME] table with that id",
                id.get_ref()
            );
            self.error(id.span(), what);
        }
        let used = id.is_some() || required || !known.ppks.is_empty();
        used.then(|| PpkUse {
            id: id.map(|id| id.into_inner().into_bytes()),
            required,
        })
    }

    fn local_auth(
        &mut self,
        name: &Spanned<String>,
        local: &document::Local,
        known: &Known<'_>,
    ) -> LocalAuth {
        let Some(Auth::Pubkey(constraint)) = local.auth.as_ref().map(|t| t.0.clone()) else {
            for (key, files) in [("certs", &local.certs), ("pubkeys", &local.pubkeys)] {
                for file in files {
                    let what = format!("{key} are for signatures, expected auth = \"pubkey\"");
                    self.error(file.span(), what);
                }
            }
            return LocalAuth::Psk;
        };
        if local.certs.is_empty() && local.pubkeys.is_empty() {
            let what = "we are to sign, and there is no certificate, expected certs or pubkeys";
            self.error(name.span(), what);
        }
        let mut credentials = Vec::new();
        for file in &local.certs {
            credentials.extend(self.credential(file, known));
        }
        for file in &local.pubkeys {
            credentials.extend(self.raw_key(file, known));
        }
        LocalAuth::Pubkey {
            constraint,
            credentials,
        }
    }

    /// The first certificate of a file, with its key and those between it and an authority.
    fn credential(&mut self, file: &Spanned<PathBuf>, known: &Known<'_>) -> Option<Credential> {
        let mut certificates = self.certificates(file).into_iter();
        let own = certificates.next()?;
        let key = self.private_key_of(&own.spki, file, known)?;
        if !own.may_sign {
            let what = format!(
                "the key usage of {} does not allow signatures",
                file.get_ref().display()
            );
            self.error(file.span(), what);
        }
        let beside: Vec<Certificate> = certificates.collect();
        let (chain, issuers) = chain(&own, &beside, known.authorities);
        Some(Credential {
            shown: Shown::Chain(chain),
            subject: own.subject,
            key: key.kind,
            private_key: key.name.clone(),
            issuers,
        })
    }

    /// A public key of ours, without a certificate.
    fn raw_key(&mut self, file: &Spanned<PathBuf>, known: &Known<'_>) -> Option<Credential> {
        let (spki, kind) = self.public_key(file)?;
        let private_key = self.private_key_of(&spki, file, known)?.name.clone();
        Some(Credential {
            shown: Shown::RawKey(spki),
            subject: Vec::new(),
            key: kind,
            private_key,
            issuers: Vec::new(),
        })
    }

    /// The private key of a public one, which a file holds.
    fn private_key_of<'k>(
        &mut self,
        spki: &[u8],
        file: &Spanned<PathBuf>,
        known: &Known<'k>,
    ) -> Option<&'k PrivateKey> {
        let key = known.keys.iter().find(|k| k.spki == spki);
        if key.is_none() {
            let what = format!(
                "no private key belongs to {}, expected a [secrets.NAME] table with its file",
                file.get_ref().display()
            );
            self.error(file.span(), what);
        }
        key
    }

    fn remote_auth(
        &mut self,
        name: &Spanned<String>,
        remote: &document::RemoteEnd,
        known: &Known<'_>,
    ) -> RemoteAuth {
        let Some(Auth::Pubkey(constraint)) = remote.auth.as_ref().map(|t| t.0.clone()) else {
            let named = remote.certs.iter().chain(&remote.cacerts);
            for file in named.chain(&remote.pubkeys) {
                self.error(
                    file.span(),
                    "certificates and public keys are for signatures, expected auth = \"pubkey\"",
                );
            }
            return RemoteAuth::Psk;
        };
        let mut authorities = Vec::new();
        for file in &remote.cacerts {
            for certificate in self.certificates(file) {
                authorities.extend(self.authority(name.get_ref(), &certificate, file));
            }
        }
        let mut certificates = Vec::new();
        for file in &remote.certs {
            certificates.extend(self.certificates(file).into_iter().map(|c| c.der));
        }
        if remote.pubkeys.len() > MAX_PUBKEYS {
            let what = format!("these are too many pubkeys, expected up to {MAX_PUBKEYS}");
            self.error(remote.pubkeys[MAX_PUBKEYS].span(), what);
        }
        let keys = remote.pubkeys.iter().take(MAX_PUBKEYS);
        let keys = keys.filter_map(|file| self.public_key(file));
        let raw_keys: Vec<Vec<u8>> = keys.map(|(spki, _)| spki).collect();
        let none = certificates.is_empty() && authorities.is_empty() && remote.pubkeys.is_empty();
        if none && known.authorities.is_empty() {
            let what = format!(
                "connection {:?} trusts no certificate, expected [authorities.NAME], or cacerts, certs or pubkeys of its remote",
                name.get_ref()
            );
            self.error(name.span(), what);
        }
        RemoteAuth::Pubkey {
            constraint,
            authorities,
            certificates,
            raw_keys,
            revocation: remote.revocation.as_ref().map(|t| t.0).unwrap_or_default(),
        }
    }
}

/// A certificate, and those after it on the way to a root, which is left out; and the names of its issuers.
fn chain(
    own: &Certificate,
    beside: &[Certificate],
    authorities: &[Authority],
) -> (
    Vec<Vec<u8>>,
    Vec<[u8; evergate_ike::certificate::KEY_HASH_LEN]>,
) {
    let (mut chain, mut issuers) = (vec![own.der.clone()], Vec::new());
    let (mut subject, mut issuer) = (own.subject.clone(), own.issuer.clone());
    while subject != issuer && chain.len() <= evergate_ike::certificate::MAX_DEPTH {
        let known = authorities.iter().find(|a| a.subject == issuer);
        let found = beside
            .iter()
            .find(|c| c.subject == issuer)
            .cloned()
            .or_else(|| Certificate::parse(&known?.certificate).ok());
        let Some(found) = found else {
            break;
        };
        issuers.push(found.key_hash());
        if !found.is_self_issued() {
            chain.push(found.der);
        }
        (subject, issuer) = (found.subject, found.issuer);
    }
    (chain, issuers)
}
