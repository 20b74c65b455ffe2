//! Host names and what they last resolved to, so that a name server that fails or hangs makes no healthy node unreachable.
//!
//! The name of a cluster, which this product writes, never enters: that is `dns`.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::{BoxFuture, Shared};
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout};

/// An answer is used for so long before it is asked for again: a node that moved is found as soon as its connection broke.
const FRESH: Duration = Duration::from_secs(1);
/// A caller who could take an older answer waits so long for a newer one. Resolvers on the same network answer in a tenth of it.
const PATIENCE: Duration = Duration::from_millis(50);
/// Lookups at a time. Each holds one of the runtime's threads for blocking work (512 of them) until the resolver gives up, and files are
/// written on these threads as well.
const LOOKUPS_MAX: usize = 64;

/// Addresses in the resolver's order, without a port. Of a link-local one the interface belongs to it, hence no `IpAddr`.
type Addresses = Arc<[SocketAddr]>;
/// What a resolver said, or why there is no address.
type Answer = Result<Addresses, Arc<str>>;
/// Asks the resolver of this host.
type Ask = dyn Fn(String) -> BoxFuture<'static, Answer> + Send + Sync;

/// One for the process: all that is asked for again and again is the same few hosts.
static HOST_NAMES: LazyLock<HostNames> = LazyLock::new(|| HostNames::new(Arc::new(|host| ask_system(host).boxed())));

/// Where a port of a host is: at a literal address, at what its name resolved to within the last second, at what it resolves to now, or at
/// what it last resolved to if the resolver fails or is slow. Waits for the resolver without a limit only for a name that never resolved.
pub(super) async fn sockets(host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
    let mut found = HOST_NAMES.addresses(host).await?.to_vec();
    found.iter_mut().for_each(|socket| socket.set_port(port));
    Ok(found)
}

/// For HTTP clients: `ClientBuilder::dns_resolver`.
#[derive(Debug, Clone, Copy)]
pub(super) struct HostNameResolver;

impl Resolve for HostNameResolver {
    fn resolve(&self, name: Name) -> Resolving {
        Box::pin(async move {
            // The client puts the port of the URL in the place of 0.
            let found = sockets(name.as_str(), 0).await?;
            let found: Addrs = Box::new(found.into_iter());
            Ok(found)
        })
    }
}

/// The resolver of this host, as every program on it asks it: files, then name servers, as `nsswitch.conf` says.
async fn ask_system(host: String) -> Answer {
    let found = tokio::net::lookup_host((host.as_str(), 0)).await.map_err(|error| Arc::from(error.to_string()))?;
    let found: Addresses = found.collect();
    if found.is_empty() { Err(Arc::from("the name has no address")) } else { Ok(found) }
}

/// One lookup, for all who wait for it.
#[derive(Clone)]
struct Lookup {
    answer: Shared<BoxFuture<'static, Answer>>,
    since: Instant,
}

/// What is known of one name.
#[derive(Default)]
struct Known {
    addresses: Option<Addresses>,
    /// The lookup that is under way, or the last one.
    lookup: Option<Lookup>,
}

/// Host names and what they last resolved to. There is one lookup of a name at a time, whoever asks.
struct HostNames {
    ask: Arc<Ask>,
    known: Mutex<HashMap<String, Known>>,
    turns: Arc<Semaphore>,
}

impl fmt::Debug for HostNames {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("HostNames(..)")
    }
}

impl HostNames {
    fn new(ask: Arc<Ask>) -> Self {
        Self { ask, known: Mutex::default(), turns: Arc::new(Semaphore::new(LOOKUPS_MAX)) }
    }

    async fn addresses(&self, host: &str) -> io::Result<Addresses> {
        if let Ok(address) = host.parse::<IpAddr>() {
            return Ok(Arc::from([SocketAddr::new(address, 0)]));
        }
        let (lookup, last) = self.look_up(host);
        let Some(last) = last else {
            return lookup.answer.await.map_err(|problem| io::Error::other(format!("resolve {host}: {problem}")));
        };
        let left = PATIENCE.saturating_sub(lookup.since.elapsed());
        match timeout(left, lookup.answer).await {
            Ok(Ok(newer)) => Ok(newer),
            // A name server that fails now says nothing about the host.
            Ok(Err(_)) | Err(_) => Ok(last),
        }
    }

    /// The lookup to wait for, and what the name resolved to before.
    fn look_up(&self, host: &str) -> (Lookup, Option<Addresses>) {
        let mut known = self.known();
        let name = known.entry(host.to_owned()).or_default();
        if let Some(lookup) = &name.lookup {
            let is_current = match lookup.answer.clone().now_or_never() {
                None => true,
                Some(Ok(addresses)) => {
                    name.addresses = Some(addresses);
                    lookup.since.elapsed() < FRESH
                }
                // Not kept for those who have nothing else: a name that was just added is found at once.
                Some(Err(_)) => lookup.since.elapsed() < FRESH && name.addresses.is_some(),
            };
            if is_current {
                return (lookup.clone(), name.addresses.clone());
            }
        }
        // A task of its own: whoever asked may not wait to the end, and the next one asks for the same.
        let (turns, asked) = (Arc::clone(&self.turns), (self.ask)(host.to_owned()));
        let task = tokio::spawn(async move {
            let _turn = turns.acquire_owned().await;
            asked.await
        });
        let answer = task.map(|ended| ended.unwrap_or_else(|error| Err(Arc::from(error.to_string())))).boxed().shared();
        let lookup = Lookup { answer, since: Instant::now() };
        name.lookup = Some(lookup.clone());
        (lookup, name.addresses.clone())
    }

    fn known(&self) -> MutexGuard<'_, HashMap<String, Known>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    /// A resolver that answers as it is told to at that moment, and counts what it is asked.
    #[derive(Default)]
    struct Resolver {
        says: Mutex<Option<Answer>>,
        asked: AtomicUsize,
    }

    impl Resolver {
        fn names() -> (Arc<Self>, HostNames) {
            let resolver = Arc::new(Self::default());
            let ask = {
                let resolver = Arc::clone(&resolver);
                move |_host: String| {
                    resolver.asked.fetch_add(1, Ordering::Relaxed);
                    let resolver = Arc::clone(&resolver);
                    async move {
                        let answer = resolver.says.lock().expect("no panic").clone();
                        match answer {
                            Some(answer) => answer,
                            None => std::future::pending().await,
                        }
                    }
                    .boxed()
                }
            };
            (resolver, HostNames::new(Arc::new(ask)))
        }

        fn say(&self, answer: Option<Answer>) {
            *self.says.lock().expect("no panic") = answer;
        }

        fn asked(&self) -> usize {
            self.asked.load(Ordering::Relaxed)
        }
    }

    fn at(address: &str) -> Addresses {
        Arc::from([SocketAddr::new(address.parse().expect("an address"), 0)])
    }

    async fn after(time: Duration) {
        tokio::time::sleep(time).await;
    }

    #[tokio::test(start_paused = true)]
    async fn an_address_is_never_asked_for() {
        let (resolver, names) = Resolver::names();
        for literal in ["10.0.0.5", "::1"] {
            assert_eq!(names.addresses(literal).await.expect("a literal"), at(literal));
        }
        assert_eq!(resolver.asked(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_is_asked_for_again_after_a_second() {
        let (resolver, names) = Resolver::names();
        resolver.say(Some(Ok(at("10.0.0.5"))));
        for _ in 0..3 {
            assert_eq!(names.addresses("db1").await.expect("known"), at("10.0.0.5"));
        }
        assert_eq!(resolver.asked(), 1);
        resolver.say(Some(Ok(at("10.0.0.6"))));
        after(FRESH).await;
        assert_eq!(names.addresses("db1").await.expect("known"), at("10.0.0.6"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_resolver_that_fails_or_hangs_takes_no_known_host_away() {
        let (resolver, names) = Resolver::names();
        resolver.say(Some(Ok(at("10.0.0.5"))));
        names.addresses("db1").await.expect("known");

        for trouble in [Some(Err(Arc::from("server failure"))), None] {
            after(FRESH).await;
            resolver.say(trouble);
            let start = Instant::now();
            for _ in 0..100 {
                assert_eq!(names.addresses("db1").await.expect("what it was"), at("10.0.0.5"));
            }
            assert!(start.elapsed() <= PATIENCE * 2, "{:?}", start.elapsed());
        }
        assert_eq!(resolver.asked(), 3, "a lookup that hangs is not begun again for each caller");
    }

    #[tokio::test(start_paused = true)]
    async fn what_comes_late_counts_for_the_next_caller() {
        let asked = Arc::new(AtomicUsize::new(0));
        let ask = {
            let asked = Arc::clone(&asked);
            move |_host: String| {
                let turn = asked.fetch_add(1, Ordering::Relaxed);
                async move {
                    after(PATIENCE * 4 * u32::try_from(turn).expect("few")).await;
                    Ok(at(if turn == 0 { "10.0.0.5" } else { "10.0.0.6" }))
                }
                .boxed()
            }
        };
        let names = HostNames::new(Arc::new(ask));
        names.addresses("db1").await.expect("known");
        after(FRESH).await;
        assert_eq!(names.addresses("db1").await.expect("what it was"), at("10.0.0.5"));
        after(PATIENCE * 4).await;
        assert_eq!(names.addresses("db1").await.expect("what came"), at("10.0.0.6"));
        assert_eq!(asked.load(Ordering::Relaxed), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn a_name_that_was_never_known_is_told_why_and_asked_for_again() {
        let (resolver, names) = Resolver::names();
        resolver.say(Some(Err(Arc::from("no such name"))));
        let problem = names.addresses("db9").await.expect_err("unknown").to_string();
        assert_eq!(problem, "resolve db9: no such name");
        resolver.say(Some(Ok(at("10.0.0.9"))));
        assert_eq!(names.addresses("db9").await.expect("it was added"), at("10.0.0.9"));
    }

    #[tokio::test]
    async fn the_resolver_of_this_host_is_asked() {
        let found = sockets("localhost", 5432).await.expect("every host knows itself");
        assert!(found.iter().all(|socket| socket.ip().is_loopback() && socket.port() == 5432), "{found:?}");
        // Reserved for names that do not exist (RFC 6761).
        assert!(sockets("stormglass.invalid", 5432).await.is_err());
    }
}
