//! Certificates and TLS of members.

use arc_swap::ArcSwap;
use rustls::{
    ClientConfig, DigitallySignedStruct, RootCertStore, ServerConfig, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject},
    server::WebPkiClientVerifier,
    version::TLS13,
};
use std::{fmt, sync::Arc};
use zeroize::Zeroizing;

/// What a member proves itself with, in PEM.
#[derive(Clone)]
pub struct Credentials {
    /// The certificate of the cluster's authority.
    pub authority: Vec<u8>,
    /// The member's certificate (with intermediate ones, if any). It names the member as a DNS name.
    pub certificate: Vec<u8>,
    /// Its private key.
    pub key: Zeroizing<Vec<u8>>,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Credentials")
    }
}

/// Why credentials cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// Something in them is not PEM, or not what it should be.
    #[error("{0}: {1}")]
    Unreadable(&'static str, String),
    /// They do not fit together.
    #[error("TLS: {0}")]
    Tls(String),
    /// The certificate is another member's.
    #[error("the certificate does not name this member, {0:?}")]
    WrongName(String),
}

/// TLS with the latest credentials. Connections that there are stay as they were made. Clones are the same.
#[derive(Clone)]
pub(crate) struct Tls {
    member: Arc<str>,
    sides: Arc<ArcSwap<Sides>>,
}

/// Both sides.
pub(crate) struct Sides {
    pub(crate) server: Arc<ServerConfig>,
    pub(crate) client: Arc<ClientConfig>,
    /// Of a client that does not know the name of whom it calls, only that the authority gave it one.
    pub(crate) stranger: Arc<ClientConfig>,
}

impl Tls {
    /// As they are now.
    pub(crate) fn sides(&self) -> Arc<Sides> {
        self.sides.load_full()
    }

    /// Connections that are made from now on have these credentials.
    pub(crate) fn renew(&self, credentials: &Credentials) -> Result<(), TlsError> {
        let sides = credentials.sides(&self.member)?;
        self.sides.store(Arc::new(sides));
        Ok(())
    }
}

impl Credentials {
    /// TLS with these credentials, until there are others.
    pub(crate) fn tls(&self, name: &str) -> Result<Tls, TlsError> {
        Ok(Tls {
            member: name.into(),
            sides: Arc::new(ArcSwap::from_pointee(self.sides(name)?)),
        })
    }

    /// Makes the settings of both sides: TLS 1.3 only, both sides with certificates.
    fn sides(&self, name: &str) -> Result<Sides, TlsError> {
        let tls = |e: &dyn fmt::Display| TlsError::Tls(e.to_string());
        let mut roots = RootCertStore::empty();
        for certificate in certificates("authority", &self.authority)? {
            roots.add(certificate).map_err(|e| tls(&e))?;
        }
        let roots = Arc::new(roots);
        let chain = certificates("certificate", &self.certificate)?;
        let own = chain
            .first()
            .ok_or_else(|| TlsError::Unreadable("certificate", "there is none".into()))?;
        if !names(own, name) {
            return Err(TlsError::WrongName(name.to_owned()));
        }
        let key = || {
            PrivateKeyDer::from_pem_slice(&self.key)
                .map_err(|e| TlsError::Unreadable("key", e.to_string()))
        };
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let verifier =
            WebPkiClientVerifier::builder_with_provider(Arc::clone(&roots), Arc::clone(&provider))
                .build()
                .map_err(|e| tls(&e))?;
        let mut server = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&[&TLS13])
            .map_err(|e| tls(&e))?
            .with_client_cert_verifier(verifier)
            .with_single_cert(chain.clone(), key()?)
            .map_err(|e| tls(&e))?;
        let mut client = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&[&TLS13])
            .map_err(|e| tls(&e))?
            .with_root_certificates(Arc::clone(&roots))
            .with_client_auth_cert(chain.clone(), key()?)
            .map_err(|e| tls(&e))?;
        let verifier = WebPkiServerVerifier::builder_with_provider(roots, Arc::clone(&provider))
            .build()
            .map_err(|e| tls(&e))?;
        let mut stranger = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&TLS13])
            .map_err(|e| tls(&e))?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(AnyMember(verifier)))
            .with_client_auth_cert(chain, key()?)
            .map_err(|e| tls(&e))?;
        stranger.alpn_protocols = vec![b"h2".to_vec()];
        server.alpn_protocols = vec![b"h2".to_vec()];
        client.alpn_protocols = vec![b"h2".to_vec()];
        Ok(Sides {
            server: Arc::new(server),
            client: Arc::new(client),
            stranger: Arc::new(stranger),
        })
    }
}

/// Believes whoever has a certificate of the authority for some name: who joins knows addresses only. What it then says is worth as much as the
/// word of a member.
#[derive(Debug)]
struct AnyMember(Arc<WebPkiServerVerifier>);

impl ServerCertVerifier for AnyMember {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let unnamed = || rustls::Error::General("the certificate has no name".into());
        let certificate = webpki::EndEntityCert::try_from(end_entity).map_err(|_| unnamed())?;
        let name = certificate.valid_dns_names().next().ok_or_else(unnamed)?;
        let name = ServerName::try_from(name).map_err(|_| unnamed())?;
        self.0
            .verify_server_cert(end_entity, intermediates, &name, ocsp, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0
            .verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0
            .verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}

fn certificates(what: &'static str, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    CertificateDer::pem_slice_iter(pem)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|e| TlsError::Unreadable(what, e.to_string()))
}

/// Whether a certificate names this member.
pub(crate) fn names(certificate: &CertificateDer<'_>, member: &str) -> bool {
    let Ok(name) = ServerName::try_from(member) else {
        return false;
    };
    webpki::EndEntityCert::try_from(certificate)
        .is_ok_and(|c| c.verify_is_valid_for_subject_name(&name).is_ok())
}
