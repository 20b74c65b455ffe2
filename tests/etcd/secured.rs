//! etcd that asks everybody for a certificate: a controller's is good, and without one nothing is written.

use stormglass::adapters::store::etcd::{EtcdSettings, EtcdStore, EtcdTls};

use super::contract;
use super::server::Etcd;
use super::support::Authority;
use super::{candidate, elected};

#[tokio::test]
async fn a_controllers_certificate_leads_and_without_one_nobody_reads() {
    let etcd = Etcd::secured(1, Authority::new()).await;
    let term = elected(&candidate(&etcd, "c1")).await;
    contract::write_everything(term.store().as_ref()).await;
    contract::find_everything(&EtcdStore::reader(&etcd.settings()).expect("good settings")).await;
    let settings = etcd.settings();
    let tls = settings.tls.clone().expect("configured");
    let stranger = Authority::new();
    stranger.issue("c1", "controller");
    let read = |file: &str| std::fs::read(stranger.path(file)).expect("a file");
    for identity in [None, Some((read("c1.crt"), read("c1.key")))] {
        let settings = EtcdSettings { tls: Some(EtcdTls { identity, ..tls.clone() }), ..settings.clone() };
        let read = EtcdStore::reader(&settings).expect("good settings").is_empty().await;
        read.expect_err("etcd refuses who shows no certificate of its authority");
    }
}
