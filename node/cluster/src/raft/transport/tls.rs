//! Certificates and TLS of members.

use rustls::{
    ClientConfig, RootCertStore, ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
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

/// Both sides of TLS.
#[derive(Clone)]
pub(crate) struct Tls {
    pub(crate) server: Arc<ServerConfig>,
    pub(crate) client: Arc<ClientConfig>,
}

impl Credentials {
    /// Makes the settings of both sides: TLS 1.3 only, both sides with certificates.
    pub(crate) fn tls(&self, name: &str) -> Result<Tls, TlsError> {
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
        let mut client = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&TLS13])
            .map_err(|e| tls(&e))?
            .with_root_certificates(roots)
            .with_client_auth_cert(chain, key()?)
            .map_err(|e| tls(&e))?;
        server.alpn_protocols = vec![b"h2".to_vec()];
        client.alpn_protocols = vec![b"h2".to_vec()];
        Ok(Tls {
            server: Arc::new(server),
            client: Arc::new(client),
        })
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
