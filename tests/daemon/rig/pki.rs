//! Authorities and certificates made on the spot, and a TLS client that uses them.

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use tierd::rpc::pb::cache_service_client::CacheServiceClient;
use tierd::rpc::pb::node_service_client::NodeServiceClient;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};

/// An authority.
pub(crate) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

/// A certificate with its key, in PEM.
#[derive(Debug, Clone)]
pub(crate) struct Pair {
    /// The certificate.
    pub(crate) certificate: String,
    /// Its key.
    pub(crate) key: String,
}

impl Authority {
    /// A new one.
    pub(crate) fn new() -> Self {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::new([]).expect("no names");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "an authority");
        let pem = params.self_signed(&key).expect("signed").pem();
        Self { issuer: Issuer::new(params, key), pem }
    }

    /// Its own certificate.
    pub(crate) fn pem(&self) -> &str {
        &self.pem
    }

    /// A certificate with a common name, and a DNS name if one is given.
    pub(crate) fn pair(&self, common: &str, dns: Option<&str>) -> Pair {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::new(dns.map(str::to_owned).into_iter().collect::<Vec<_>>()).expect("names");
        params.distinguished_name.push(DnType::CommonName, common);
        let certificate = params.signed_by(&key, &self.issuer).expect("signed").pem();
        Pair { certificate, key: key.serialize_pem() }
    }

    /// Connects to a port of the loopback, trusting this authority alone.
    pub(crate) async fn connect(&self, port: u16, own: Option<&Pair>) -> Result<Remote, tonic::transport::Error> {
        let mut tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(&self.pem)).domain_name("localhost");
        if let Some(own) = own {
            tls = tls.identity(Identity::from_pem(&own.certificate, &own.key));
        }
        let endpoint = Endpoint::from_shared(format!("https://127.0.0.1:{port}"))?.tls_config(tls)?;
        Ok(Remote::over(endpoint.connect().await?))
    }
}

/// The services over one channel.
#[derive(Debug, Clone)]
pub(crate) struct Remote {
    /// The cache's service.
    pub(crate) cache: CacheServiceClient<Channel>,
    /// The node's service.
    pub(crate) node: NodeServiceClient<Channel>,
}

impl Remote {
    /// Over this channel.
    pub(crate) fn over(channel: Channel) -> Self {
        Self { cache: CacheServiceClient::new(channel.clone()), node: NodeServiceClient::new(channel) }
    }
}
