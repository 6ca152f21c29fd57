//! `[secrets]`: shared ones, and private keys.

use super::{document, validate::Check, values::Text};
use evergate_ike::{
    config::{PrivateKey, SharedSecret},
    secret::Secret,
};
use std::{ops::Range, path::PathBuf};
use toml::Spanned;

impl Check<'_> {
    pub(super) fn secrets(
        &mut self,
        secrets: Vec<(Spanned<String>, Spanned<document::SharedSecret>)>,
    ) -> (Vec<SharedSecret>, Vec<PrivateKey>) {
        let (mut done, mut keys) = (Vec::new(), Vec::new());
        for (name, secret) in secrets {
            self.name(&name, "secret");
            let span = secret.span();
            let secret = secret.into_inner();
            if let Some(file) = &secret.file {
                keys.extend(self.key_of(&name, file, &secret, span));
                continue;
            }
            let value = self.secret(secret.secret, secret.secret_file, span);
            done.extend(value.map(|secret_value| SharedSecret {
                name: name.into_inner(),
                ids: secret.ids.into_iter().map(|t| t.0).collect(),
                secret: secret_value,
            }));
        }
        (done, keys)
    }

    /// A secret that is written there, or in a file.
    pub(super) fn secret(
        &mut self,
        secret: Option<Text<Secret>>,
        file: Option<Spanned<PathBuf>>,
        span: Range<usize>,
    ) -> Option<Secret> {
        match (secret, file) {
            (Some(Text(value)), None) => Some(value),
            (None, Some(file)) => self.secret_file(&file),
            _ => {
                self.error(span, "expected either \"secret\" or \"secret_file\"");
                None
            }
        }
    }

    /// A secret that is a private key in a file; its own secret is the passphrase.
    fn key_of(
        &mut self,
        name: &Spanned<String>,
        file: &Spanned<PathBuf>,
        secret: &document::SharedSecret,
        span: Range<usize>,
    ) -> Option<PrivateKey> {
        if !secret.ids.is_empty() {
            let what = "a private key belongs to its certificate, expected no ids";
            self.error(span.clone(), what);
        }
        let passphrase = match (&secret.secret, &secret.secret_file) {
            (None, None) => None,
            (Some(Text(value)), None) => Some(value.clone()),
            (None, Some(file)) => Some(self.secret_file(file)?),
            (Some(_), Some(_)) => {
                let what = "expected the passphrase in either \"secret\" or \"secret_file\"";
                self.error(span, what);
                return None;
            }
        };
        self.private_key(name, file, passphrase.as_ref())
    }

    /// A secret that is kept in a file of its own; one newline at the end is no part of it.
    fn secret_file(&mut self, file: &Spanned<PathBuf>) -> Option<Secret> {
        let mut bytes = self.file(file)?;
        if bytes.last() == Some(&b'\n') {
            bytes.pop();
        }
        if bytes.is_empty() {
            let path = self.directory.join(file.get_ref());
            let what = format!("{} is empty, expected a secret", path.display());
            self.error(file.span(), what);
            return None;
        }
        Some(Secret::new(bytes))
    }
}
