//! Whose certificates count: the ConfigMap `kube-system/extension-apiserver-authentication`, in which kube-apiserver
//! publishes the client CA, the front proxy's CA, its names and its headers; followed and published as one value.
//!
//! What cannot be read keeps the last good value: a mistake there must not lock everybody out, nor let anybody in. As
//! upstream, an authority that is taken away without another in its place stays.

use super::request_header::RequestHeaders;
use super::x509::{BundleError, CaBundle};
use futures::StreamExt;
use http::HeaderName;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client};
use rustls::RootCertStore;
use rustls::crypto::CryptoProvider;
use std::collections::BTreeMap;
use std::sync::Arc;
use tokio::sync::watch;

/// Where the ConfigMap is.
pub const NAMESPACE: &str = "kube-system";
/// What it is called.
pub const NAME: &str = "extension-apiserver-authentication";

/// Header names, prefixes or client names of one list. More are no configuration.
const LIST_MAX: usize = 256;

/// Whose certificates count, and for what.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ClientCas {
    /// Certificates of these name users.
    pub client: Option<CaBundle>,
    /// Certificates of these may say in headers who asks.
    pub request_header: Option<RequestHeaderCa>,
}

/// The front proxy: who it is, and in which headers it speaks.
#[derive(Debug, Clone, PartialEq)]
pub struct RequestHeaderCa {
    /// Who issues its certificates.
    pub ca: CaBundle,
    /// What they may be called. Empty: anything.
    pub allowed_names: Vec<String>,
    /// Its headers.
    pub headers: RequestHeaders,
}

/// Why it is not known whose certificates count. Who runs the control plane must act.
#[derive(Debug, thiserror::Error)]
pub enum ClientCaError {
    /// The ConfigMap is not there.
    #[error("configmap {NAMESPACE}/{NAME} does not exist: kube-apiserver publishes it when it starts")]
    Missing,
    /// It cannot be read for want of rights.
    #[error(
        "configmap {NAMESPACE}/{NAME} cannot be read: {0}; the service account needs a RoleBinding in namespace {NAMESPACE} to the Role extension-apiserver-authentication-reader"
    )]
    Forbidden(String),
    /// It cannot be read at all.
    #[error("configmap {NAMESPACE}/{NAME} cannot be read: {0}")]
    Unreadable(#[source] Box<kube::Error>),
    /// It does not say what it should.
    #[error("configmap {NAMESPACE}/{NAME}, key {key}: {cause}")]
    Malformed {
        /// The key.
        key: &'static str,
        /// What is wrong with its value.
        cause: String,
    },
}

impl ClientCas {
    /// The authorities of all, for the handshake. `None`: no certificate counts.
    #[must_use]
    pub fn roots(&self) -> Option<RootCertStore> {
        let front_proxy = self.request_header.as_ref().map(|r| &r.ca);
        let bundles: Vec<&CaBundle> = self.client.iter().chain(front_proxy).collect();
        if bundles.is_empty() {
            return None;
        }
        let mut roots = RootCertStore::empty();
        for bundle in bundles {
            let new: Vec<_> = bundle
                .roots()
                .roots
                .iter()
                .filter(|root| !roots.roots.contains(root))
                .cloned()
                .collect();
            roots.extend(new);
        }
        Some(roots)
    }

    /// What a ConfigMap says. `last` is what counted until now.
    ///
    /// # Errors
    /// When a value cannot be used; nothing of the ConfigMap counts then.
    pub fn parse(
        data: &BTreeMap<String, String>,
        last: &Self,
        provider: &Arc<CryptoProvider>,
    ) -> Result<Self, ClientCaError> {
        let client = match text(data, "client-ca-file") {
            "" => last.client.clone(),
            pem => Some(bundle("client-ca-file", pem, provider)?),
        };
        let request_header = match text(data, "requestheader-client-ca-file") {
            "" => last.request_header.clone(),
            pem => Some(RequestHeaderCa {
                ca: bundle("requestheader-client-ca-file", pem, provider)?,
                // kube-apiserver always says which names are allowed. No list at all is not "everybody".
                allowed_names: list(data, "requestheader-allowed-names")?.ok_or_else(|| {
                    let key = "requestheader-allowed-names";
                    malformed(key, "it is missing beside requestheader-client-ca-file")
                })?,
                headers: RequestHeaders {
                    username: headers(data, "requestheader-username-headers")?,
                    uid: headers(data, "requestheader-uid-headers")?,
                    group: headers(data, "requestheader-group-headers")?,
                    extra_prefixes: prefixes(data, "requestheader-extra-headers-prefix")?,
                },
            }),
        };
        Ok(Self {
            client,
            request_header,
        })
    }
}

/// What counts when the server starts.
///
/// # Errors
/// When the ConfigMap cannot be read or understood.
pub async fn initial(client: &Client, provider: &Arc<CryptoProvider>) -> Result<ClientCas, ClientCaError> {
    let config_maps = Api::<ConfigMap>::namespaced(client.clone(), NAMESPACE);
    let config_map = config_maps.get(NAME).await.map_err(|error| match &error {
        kube::Error::Api(status) if status.code == 404 => ClientCaError::Missing,
        kube::Error::Api(status) if status.code == 403 => ClientCaError::Forbidden(status.message.clone()),
        _ => ClientCaError::Unreadable(Box::new(error)),
    })?;
    ClientCas::parse(
        &config_map.data.unwrap_or_default(),
        &ClientCas::default(),
        provider,
    )
}

/// Follows the ConfigMap and publishes what counts. Ends when nobody listens any more.
pub async fn run(client: Client, provider: Arc<CryptoProvider>, publish: watch::Sender<Arc<ClientCas>>) {
    let config_maps = Api::<ConfigMap>::namespaced(client, NAMESPACE);
    let config = watcher::Config::default().fields(&format!("metadata.name={NAME}"));
    let mut events = watcher(config_maps, config).default_backoff().boxed();
    loop {
        let event = tokio::select! {
            event = events.next() => event,
            () = publish.closed() => return,
        };
        match event {
            Some(Ok(Event::Apply(config_map) | Event::InitApply(config_map))) => {
                take(&config_map.data.unwrap_or_default(), &provider, &publish);
            }
            Some(Ok(Event::Delete(_))) => {
                tracing::warn!("configmap {NAMESPACE}/{NAME} was deleted; what it said last still counts");
            }
            Some(Ok(Event::Init | Event::InitDone)) => {}
            Some(Err(error)) => {
                tracing::warn!(%error, "configmap {NAMESPACE}/{NAME} cannot be followed, trying again");
            }
            None => return,
        }
    }
}

fn take(
    data: &BTreeMap<String, String>,
    provider: &Arc<CryptoProvider>,
    publish: &watch::Sender<Arc<ClientCas>>,
) {
    let last = Arc::clone(&publish.borrow());
    match ClientCas::parse(data, &last, provider) {
        Ok(next) if next != *last => {
            tracing::info!(
                client_ca = next.client.is_some(),
                request_header_ca = next.request_header.is_some(),
                "other certificate authorities count from now on"
            );
            publish.send_replace(Arc::new(next));
        }
        Ok(_) => {}
        Err(error) => tracing::error!(%error, "what it said last still counts"),
    }
}

fn text<'a>(data: &'a BTreeMap<String, String>, key: &str) -> &'a str {
    data.get(key).map_or("", |text| text.trim())
}

fn malformed(key: &'static str, cause: impl ToString) -> ClientCaError {
    ClientCaError::Malformed {
        key,
        cause: cause.to_string(),
    }
}

fn bundle(key: &'static str, pem: &str, provider: &Arc<CryptoProvider>) -> Result<CaBundle, ClientCaError> {
    CaBundle::parse(pem, provider).map_err(|e: BundleError| malformed(key, e))
}

/// A JSON list of texts (or null); `None` when the key is not there.
fn list(data: &BTreeMap<String, String>, key: &'static str) -> Result<Option<Vec<String>>, ClientCaError> {
    let text = text(data, key);
    if text.is_empty() {
        return Ok(None);
    }
    let list: Option<Vec<String>> = serde_json::from_str(text).map_err(|e| malformed(key, e))?;
    let list = list.unwrap_or_default();
    if list.len() > LIST_MAX {
        return Err(malformed(key, format!("more than {LIST_MAX} values")));
    }
    Ok(Some(list))
}

fn headers(data: &BTreeMap<String, String>, key: &'static str) -> Result<Vec<HeaderName>, ClientCaError> {
    let names = list(data, key)?.unwrap_or_default();
    let header = |name: &String| {
        HeaderName::from_bytes(name.trim().as_bytes())
            .map_err(|_| malformed(key, format!("{name:?} is no header")))
    };
    names.iter().map(header).collect()
}

/// An empty prefix would take every header for an attribute of the user.
fn prefixes(data: &BTreeMap<String, String>, key: &'static str) -> Result<Vec<String>, ClientCaError> {
    let prefixes = headers(data, key)?;
    Ok(prefixes.iter().map(|prefix| prefix.as_str().to_owned()).collect())
}
