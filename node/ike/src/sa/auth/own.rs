//! Our own AUTH payload (RFC 7296 §2.15, RFC 7427), and the certificates that go with it.

use super::{
    octets_of_responder,
    parked::{Answer, Request},
    payloads::Requested,
    peer::Peer,
};
use crate::{
    certificate::encoding,
    config::{Connection, Credential, LocalAuth, SendCert, Shown},
    crypto,
    sa::{
        Failure, Question,
        turn::{Refused, Turn, find_notify},
    },
    signature::{Choice, Hash},
    wire::{Auth, AuthMethod, Message, NotifyType, Payload},
};

/// Our AUTH payload, or what is needed to make it.
#[derive(Debug)]
pub(in crate::sa) enum Own {
    /// We have authenticated before (RFC 4739).
    Nothing,
    /// It is made.
    Ready(Auth),
    /// A signature is asked for.
    Signature {
        choice: Choice,
        credential: Box<Credential>,
        /// Whether the certificate goes with it.
        send: bool,
        signature: Answer<Option<Vec<u8>>>,
        /// The same by the keys without a post-quantum pre-shared key, where the peer may do without it (RFC 8784 §3).
        plain: Option<Plain>,
    },
}

/// A second signature.
#[derive(Debug)]
pub(in crate::sa) struct Plain {
    octets: Vec<u8>,
    signature: Answer<Option<Vec<u8>>>,
}

impl Own {
    pub(in crate::sa) fn is_waiting(&self) -> bool {
        matches!(
            self,
            Self::Signature {
                signature: Answer::Open,
                ..
            }
        )
    }

    /// The signature is there; or there is none.
    pub(super) fn signed(&mut self, answer: Option<Vec<u8>>) {
        let Self::Signature {
            signature, plain, ..
        } = self
        else {
            return;
        };
        match (&signature, plain) {
            (Answer::Given(_), Some(plain)) => plain.signature = Answer::Given(answer),
            _ => *signature = Answer::Given(answer),
        }
    }

    /// The question for the second signature, once the first is there.
    pub(super) fn further_question(&self) -> Option<Question> {
        match self {
            Self::Signature {
                choice,
                credential,
                signature: Answer::Given(Some(_)),
                plain:
                    Some(Plain {
                        octets,
                        signature: Answer::Open,
                    }),
                ..
            } => Some(Question::Sign {
                key: credential.private_key.clone(),
                scheme: choice.scheme,
                octets: octets.clone(),
            }),
            _ => None,
        }
    }

    /// That a second signature over these octets is wanted.
    pub(in crate::sa) fn and_plain(mut self, over: Option<Vec<u8>>) -> Self {
        if let Self::Signature { plain, .. } = &mut self {
            *plain = over.map(|octets| Plain {
                octets,
                signature: Answer::Open,
            });
        }
        self
    }

    /// What AUTH would be by the second signature.
    pub(in crate::sa) fn plain_data(&self) -> Option<Vec<u8>> {
        match self {
            Self::Signature {
                choice,
                credential,
                plain:
                    Some(Plain {
                        signature: Answer::Given(Some(signature)),
                        ..
                    }),
                ..
            } => choice.auth_data(credential.key, signature),
            _ => None,
        }
    }

    /// CERT and AUTH payloads; `None` if there is no signature.
    pub(in crate::sa) fn payloads(self) -> Option<Vec<Payload>> {
        let (choice, credential, send, signature) = match self {
            Self::Nothing => return Some(Vec::new()),
            Self::Ready(auth) => return Some(vec![Payload::Auth(auth)]),
            Self::Signature {
                choice,
                credential,
                send,
                signature,
                ..
            } => (choice, credential, send, signature.given()??),
        };
        let mut payloads = Vec::new();
        if send {
            let cert = |encoding, data| Payload::Cert { encoding, data };
            match credential.shown {
                Shown::Chain(chain) => {
                    payloads.extend(chain.into_iter().map(|der| cert(encoding::X509, der)));
                }
                Shown::RawKey(key) => payloads.push(cert(encoding::RAW_KEY, key)),
            }
        }
        payloads.push(Payload::Auth(Auth {
            method: choice.method,
            data: choice.auth_data(credential.key, &signature)?,
        }));
        Some(payloads)
    }
}

/// The hashes that an IKE_SA_INIT message announces for signatures; `None` if it does not (RFC 7427 §4).
pub(in crate::sa) fn announced_hashes(init: &[u8]) -> Option<Vec<Hash>> {
    let message = Message::parse(init).ok()?;
    let notify = find_notify(&message.payloads, NotifyType::SIGNATURE_HASH_ALGORITHMS)?;
    Some(Hash::announced(&notify.data))
}

impl Turn<'_, '_> {
    /// Our AUTH payload as responder.
    pub(super) fn own_auth_as_responder(
        &mut self,
        connection: &Connection,
        request: &Request,
        peer: &Peer,
    ) -> Result<Own, Refused> {
        let denied = |failure| Refused::new(NotifyType::AUTHENTICATION_FAILED, failure);
        let (negotiated, local_id) = (&request.mixed.negotiated, &peer.local_id);
        let octets = octets_of_responder(negotiated, &local_id.to_wire());
        match connection.local_auth(request.rounds.current()) {
            LocalAuth::Psk => {
                let remote = &peer.remote_id;
                let psk = self.env.policy.secret(local_id, remote).ok_or_else(|| {
                    denied(Failure::NoSecret {
                        local: local_id.clone(),
                        remote: remote.clone(),
                    })
                })?;
                let auth = crypto::psk_auth(negotiated.suite.prf, psk, &octets);
                Ok(Own::Ready(Auth {
                    method: AuthMethod::PSK,
                    data: auth.expose().to_vec(),
                }))
            }
            local @ LocalAuth::Pubkey { .. } => {
                let hashes = announced_hashes(&negotiated.init_request);
                let asked = Requested::of(request.first());
                let send = connection.auth.send_cert;
                self.ask_for_signature((local, send), octets, hashes.as_deref(), &asked)
                    .map_err(denied)
            }
        }
    }

    /// Asks for a signature over `octets` that the peer can verify. `asked` is what its CERTREQ payloads ask for.
    pub(in crate::sa) fn ask_for_signature(
        &mut self,
        (local, send): (&LocalAuth, SendCert),
        octets: Vec<u8>,
        hashes: Option<&[Hash]>,
        asked: &Requested,
    ) -> Result<Own, Failure> {
        let LocalAuth::Pubkey {
            constraint,
            credentials,
        } = local
        else {
            return Err(Failure::NoScheme);
        };
        let usable = || {
            credentials.iter().filter_map(|credential| {
                let choice = Choice::make(credential.key, hashes, constraint)?;
                Some((credential, choice))
            })
        };
        let (credential, choice) = usable()
            .find(|(credential, _)| asked.names(credential))
            .or_else(|| usable().find(|(credential, _)| asked.wants(credential)))
            .or_else(|| usable().next())
            .ok_or(Failure::NoScheme)?;
        let send = match send {
            SendCert::Always => true,
            SendCert::IfAsked => asked.wants(credential),
            SendCert::Never => false,
        };
        self.ask(Question::Sign {
            key: credential.private_key.clone(),
            scheme: choice.scheme,
            octets,
        });
        Ok(Own::Signature {
            choice,
            credential: Box::new(credential.clone()),
            send,
            signature: Answer::Open,
            plain: None,
        })
    }
}
