//! TLS of the TCP listener, read again when its files change. A new pair that does not work changes nothing: the old one goes
//! on, and the log says why.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use crate::config::TlsConfig;
use crate::rpc::chain;
use crate::rpc::listen::RpcError;

/// How often the files are looked at: three calls of `stat`.
const LOOK_INTERVAL: Duration = Duration::from_secs(2);
/// Largest PEM file: a bundle of all public authorities has 250 KiB.
const PEM_BYTES_MAX: u64 = 4 << 20;

/// What is in force, and what it was read from.
#[derive(Debug)]
pub(crate) struct Tls {
    config: TlsConfig,
    current: RwLock<Arc<ServerConfig>>,
    /// Of the files before they were first read.
    loaded: Stamps,
}

/// What tells a file from the one that was read: certificates are replaced by renames, by writes, and by links that turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    inode: (u64, u64),
    bytes: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

type Stamps = [Option<Stamp>; 3];

impl Tls {
    /// Reads the files.
    ///
    /// # Errors
    ///
    /// [`RpcError::TlsFile`] or [`RpcError::Tls`].
    pub(crate) fn load(config: &TlsConfig) -> Result<Self, RpcError> {
        let loaded = stamps(config);
        Ok(Self { current: RwLock::new(Arc::new(read(config)?)), config: config.clone(), loaded })
    }

    /// What makes the next handshake.
    pub(crate) fn acceptor(&self) -> TlsAcceptor {
        let current = self.current.read().unwrap_or_else(PoisonError::into_inner);
        TlsAcceptor::from(Arc::clone(&current))
    }

    /// Follows the files until `stop`.
    pub(crate) async fn follow(self: Arc<Self>, stop: CancellationToken) {
        let mut seen = self.loaded;
        while stop.run_until_cancelled(tokio::time::sleep(LOOK_INTERVAL)).await.is_some() {
            let this = Arc::clone(&self);
            let looked = tokio::task::spawn_blocking(move || {
                // Before they are read: what changes in between is noticed by the next look.
                let found = stamps(&this.config);
                if seen != found {
                    this.replace();
                }
                found
            });
            match looked.await {
                Ok(found) => seen = found,
                Err(error) => tracing::warn!(%error, "looking at the certificate failed"),
            }
        }
    }

    /// Puts what the files hold now in force, if it works.
    fn replace(&self) {
        match read(&self.config) {
            Ok(config) => {
                *self.current.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(config);
                tracing::info!(certificate = %self.config.certificate.display(), "certificate read, in force for new connections");
            }
            Err(error) => tracing::warn!(%error, "the new certificate does not work, the old one goes on"),
        }
    }
}

fn stamps(config: &TlsConfig) -> Stamps {
    let stamp = |path: Option<&PathBuf>| {
        let found = fs::metadata(path?).ok()?;
        Some(Stamp {
            inode: (found.dev(), found.ino()),
            bytes: found.len(),
            modified: (found.mtime(), found.mtime_nsec()),
            changed: (found.ctime(), found.ctime_nsec()),
        })
    };
    [stamp(Some(&config.certificate)), stamp(Some(&config.key)), stamp(config.client_ca.as_ref())]
}

/// Reads the files and looks whether they fit together.
fn read(config: &TlsConfig) -> Result<ServerConfig, RpcError> {
    let certificates = certificates(&config.certificate)?;
    let key = PrivateKeyDer::from_pem_slice(&bytes(&config.key)?).map_err(|error| unusable(&config.key, &error))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let failed = |error: &dyn std::error::Error| RpcError::Tls { detail: chain(error) };
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider)).with_safe_default_protocol_versions();
    let builder = builder.map_err(|error| failed(&error))?;
    let builder = match &config.client_ca {
        None => builder.with_no_client_auth(),
        Some(path) => {
            let mut roots = RootCertStore::empty();
            for authority in self::certificates(path)? {
                roots.add(authority).map_err(|error| unusable(path, &error))?;
            }
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build();
            builder.with_client_cert_verifier(verifier.map_err(|error| unusable(path, &error))?)
        }
    };
    let mut server = builder.with_single_cert(certificates, key).map_err(|error| failed(&error))?;
    // The second for the node pack, which speaks nothing newer.
    server.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(server)
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, RpcError> {
    let bytes = bytes(path)?;
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
    let all = all.map_err(|error| unusable(path, &error))?;
    if all.is_empty() {
        return Err(RpcError::Tls { detail: format!("{} holds no certificate", path.display()) });
    }
    Ok(all)
}

fn bytes(path: &Path) -> Result<Vec<u8>, RpcError> {
    use std::io::Read;
    let mut bytes = Vec::new();
    let read = fs::File::open(path).and_then(|file| file.take(PEM_BYTES_MAX).read_to_end(&mut bytes));
    read.map_err(|source| RpcError::TlsFile { path: path.to_owned(), source })?;
    Ok(bytes)
}

fn unusable(path: &Path, error: &dyn std::error::Error) -> RpcError {
    RpcError::Tls { detail: format!("{}: {}", path.display(), chain(error)) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{CertifiedKey, generate_simple_self_signed};

    fn pair() -> (String, String) {
        let CertifiedKey { cert, signing_key } = generate_simple_self_signed(["localhost".to_owned()]).expect("made");
        (cert.pem(), signing_key.serialize_pem())
    }

    fn config(dir: &tempfile::TempDir) -> TlsConfig {
        let path = |name: &str| dir.path().join(name);
        TlsConfig { certificate: path("cert"), key: path("key"), client_ca: None, client_role: None }
    }

    #[test]
    fn a_missing_file_is_named_and_a_key_of_another_certificate_is_refused() {
        let dir = tempfile::tempdir().expect("a folder");
        let config = config(&dir);
        let error = read(&config).expect_err("nothing there").to_string();
        assert!(error.contains(&config.certificate.display().to_string()), "{error}");
        let ((certificate, key), (_, other)) = (pair(), pair());
        fs::write(&config.certificate, certificate).expect("written");
        fs::write(&config.key, other).expect("written");
        assert!(matches!(read(&config), Err(RpcError::Tls { .. })));
        fs::write(&config.key, key).expect("written");
        assert!(read(&config).is_ok());
        let strict = TlsConfig { client_ca: Some(config.key.clone()), ..config };
        let error = read(&strict).expect_err("a key is no authority").to_string();
        assert!(error.contains("holds no certificate") && !error.contains("PRIVATE"), "{error}");
    }

    #[test]
    fn a_file_that_is_replaced_is_noticed_also_when_its_size_and_time_are_the_same() {
        let dir = tempfile::tempdir().expect("a folder");
        let config = config(&dir);
        let ((certificate, key), (another, _)) = (pair(), pair());
        fs::write(&config.certificate, certificate).expect("written");
        fs::write(&config.key, key).expect("written");
        let before = Tls::load(&config).expect("good").loaded;
        assert_eq!(stamps(&config), before);
        let modified = fs::metadata(&config.certificate).and_then(|found| found.modified()).expect("there");
        let beside = dir.path().join("beside");
        fs::write(&beside, another).expect("written");
        fs::File::options().write(true).open(&beside).and_then(|file| file.set_modified(modified)).expect("set");
        fs::rename(&beside, &config.certificate).expect("renamed");
        assert_ne!(stamps(&config), before);
    }
}
