//! The kubeconfig of the administrator: where the server is, whom to trust, who asks. Pure.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use outrigger_certs::Issued;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// The kubeconfig as YAML; all that it needs is in it.
pub(crate) fn kubeconfig(server: &str, authority_pem: &str, client: &Issued) -> String {
    let [authority, certificate, key] =
        [authority_pem, &client.certificate_pem, &client.key_pem].map(|pem| STANDARD.encode(pem));
    format!(
        "apiVersion: v1\n\
         kind: Config\n\
         clusters:\n\
         - name: outrigger\n\
         \x20 cluster:\n\
         \x20   server: {server}\n\
         \x20   certificate-authority-data: {authority}\n\
         users:\n\
         - name: admin\n\
         \x20 user:\n\
         \x20   client-certificate-data: {certificate}\n\
         \x20   client-key-data: {key}\n\
         contexts:\n\
         - name: outrigger\n\
         \x20 context:\n\
         \x20   cluster: outrigger\n\
         \x20   user: admin\n\
         \x20   namespace: default\n\
         current-context: outrigger\n"
    )
}

/// The URL under which this machine reaches a server that listens here.
pub(crate) fn server_url(listen: SocketAddr) -> String {
    let ip = match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    format!("https://{}", SocketAddr::new(ip, listen.port()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls() {
        let check =
            |listen: &str, expect: &str| assert_eq!(server_url(listen.parse().expect("an address")), expect);
        check("127.0.0.1:7443", "https://127.0.0.1:7443");
        check("0.0.0.0:1", "https://127.0.0.1:1");
        check("[::]:1", "https://[::1]:1");
        check("10.1.2.3:443", "https://10.1.2.3:443");
    }

    #[test]
    fn it_is_yaml_that_kubectl_reads() {
        let client = Issued {
            certificate_pem: "C".to_owned(),
            key_pem: "K".to_owned(),
        };
        let text = kubeconfig("https://127.0.0.1:1", "A", &client);
        let config: kube::config::Kubeconfig =
            kube::config::Kubeconfig::from_yaml(&text).expect("a kubeconfig");
        let cluster = config
            .clusters
            .first()
            .and_then(|c| c.cluster.clone())
            .expect("a cluster");
        assert_eq!(cluster.server.as_deref(), Some("https://127.0.0.1:1"));
        assert_eq!(cluster.certificate_authority_data.as_deref(), Some("QQ=="));
        assert_eq!(config.current_context.as_deref(), Some("outrigger"));
    }
}
