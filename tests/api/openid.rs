//! OpenID tokens at the served API, with an issuer that serves discovery and keys over real HTTP. The issuer is a stand-in: it makes no
//! tokens and knows nobody; the tests sign for it, with keys that they make.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::extract::State;
use axum::http::{StatusCode, Uri};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::jwk::Jwk;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use reqwest::Method;
use serde_json::{Value, json};
use stormglass::adapters::openid::{Issuer, IssuerSettings};
use stormglass::adapters::system::SystemClock;
use stormglass::api::openid::{KEYS_KEPT, KeySet, KeySetError, OpenId, OpenIdRules};
use stormglass::domain::access::Role;
use stormglass::domain::clock::WallTime;
use stormglass::ports::Clock as _;
use tokio::sync::Notify;
use tokio::task::JoinHandle;

use super::script::NOW;
use super::{Served, problem};

const AUDIENCE: &str = "stormglass";
const PAUSE: &str = "/api/v1/clusters/main/pause";

/// A key pair of an issuer.
struct Key {
    id: &'static str,
    algorithm: Algorithm,
    signing: EncodingKey,
}

impl Key {
    fn elliptic(id: &'static str) -> Self {
        let pair = rcgen::KeyPair::generate().expect("a key");
        Self { id, algorithm: Algorithm::ES256, signing: EncodingKey::from_ec_der(&pair.serialize_der()) }
    }

    fn rsa(id: &'static str) -> Self {
        let pair = rcgen::KeyPair::generate_for(&rcgen::PKCS_RSA_SHA256).expect("a key");
        // What PKCS #8 wraps a key of 2048 bits in is 26 bytes long.
        let inner = pair.serialize_der()[26..].to_vec();
        Self { id, algorithm: Algorithm::RS256, signing: EncodingKey::from_rsa_der(&inner) }
    }

    fn public(&self) -> Value {
        let jwk = Jwk::from_encoding_key(&self.signing, self.algorithm).expect("a public key");
        let mut jwk = serde_json::to_value(jwk).expect("JSON");
        jwk["kid"] = json!(self.id);
        jwk["use"] = json!("sig");
        jwk
    }

    fn sign(&self, claims: &Value) -> String {
        let mut header = Header::new(self.algorithm);
        header.kid = Some(self.id.to_owned());
        jsonwebtoken::encode(&header, claims, &self.signing).expect("signed")
    }
}

/// What the stand-in publishes.
#[derive(Default)]
struct Published {
    url: Mutex<String>,
    /// What its description calls the issuer, if not its URL.
    other_name: Mutex<Option<String>>,
    keys: Mutex<Vec<Value>>,
    fetches: AtomicUsize,
}

/// The stand-in, and the API that believes it.
struct Scene {
    served: Served,
    judge: Arc<OpenId>,
    published: Arc<Published>,
    issuer: JoinHandle<()>,
}

async fn publish(State(published): State<Arc<Published>>, uri: Uri) -> (StatusCode, axum::Json<Value>) {
    let url = published.url.lock().expect("no panic").clone();
    let name = published.other_name.lock().expect("no panic").clone().unwrap_or_else(|| url.clone());
    match uri.path() {
        "/.well-known/openid-configuration" => {
            (StatusCode::OK, axum::Json(json!({ "issuer": name, "jwks_uri": format!("{url}/keys"), "more": 1 })))
        }
        "/keys" => {
            published.fetches.fetch_add(1, Ordering::SeqCst);
            (StatusCode::OK, axum::Json(json!({ "keys": *published.keys.lock().expect("no panic") })))
        }
        _ => (StatusCode::NOT_FOUND, axum::Json(Value::Null)),
    }
}

fn rules(issuer: &str) -> OpenIdRules {
    OpenIdRules {
        issuer: issuer.to_owned(),
        audience: AUDIENCE.to_owned(),
        role_claim: "realm_access.roles".to_owned(),
        roles: [
            (Role::Viewer, vec!["everybody".to_owned(), "dba".to_owned()]),
            (Role::Operator, vec!["dba".to_owned()]),
            (Role::Admin, vec!["root".to_owned()]),
        ]
        .into(),
        name_claim: "email".to_owned(),
        clusters_claim: None,
    }
}

impl Scene {
    async fn begin(keys: &[&Key]) -> Self {
        Self::begin_with(keys, |rules| rules).await
    }

    async fn begin_with(keys: &[&Key], change: impl FnOnce(OpenIdRules) -> OpenIdRules) -> Self {
        let published = Arc::new(Published::default());
        *published.keys.lock().expect("no panic") = keys.iter().map(|key| key.public()).collect();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let url = format!("http://{}", listener.local_addr().expect("bound"));
        *published.url.lock().expect("no panic") = url.clone();
        let router = axum::Router::new().fallback(publish).with_state(published.clone());
        let issuer = tokio::spawn(async move { axum::serve(listener, router).await.expect("serves") });
        let wanted = Arc::new(Notify::new());
        let judge = Arc::new(OpenId::new(change(rules(&url)), wanted.clone()));
        let source = Issuer::new(IssuerSettings { issuer: url, keys_url: None, authority: None }).expect("good");
        let taker = judge.clone();
        tokio::spawn(async move { match source.keep(&wanted, |fetched| taker.take(fetched, NOW)).await {} });
        let scene = Self {
            served: Served::begin_with(|listener| listener.into(), |known| known.with_open_id(judge.clone())),
            judge,
            published,
            issuer,
        };
        scene.until_fetched(1).await;
        scene
    }

    async fn until_fetched(&self, count: usize) {
        let waited = tokio::time::timeout(Duration::from_secs(20), async {
            while self.published.fetches.load(Ordering::SeqCst) < count {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        });
        waited.await.expect("the keys are fetched");
        // Served is not yet taken in.
        tokio::time::sleep(Duration::from_millis(100)).await;
    }

    fn url(&self) -> String {
        self.published.url.lock().expect("no panic").clone()
    }

    /// Claims of an operator, with others in their place.
    fn claims(&self, change: Value) -> Value {
        let mut claims = json!({
            "iss": self.url(),
            "aud": [AUDIENCE, "account"],
            "sub": "7f3c",
            "email": "ann@example.org",
            "email_verified": true,
            "exp": seconds(NOW) + 300,
            "nbf": seconds(NOW),
            "realm_access": { "roles": ["everybody", "dba", "offline_access"] },
        });
        for (name, value) in change.as_object().expect("an object") {
            claims[name] = value.clone();
        }
        claims
    }

    async fn post(&self, token: &str) -> reqwest::Response {
        let request = self.served.request(Method::POST, PAUSE).bearer_auth(token).json(&json!({}));
        request.send().await.expect("an answer")
    }

    async fn refused(&self, token: &str, says: &str) {
        let detail = problem(self.post(token).await, 401).await.detail;
        assert!(detail.contains(says), "{says:?} is not in {detail:?}");
        assert!(!detail.contains(token), "a token is no matter for a message");
    }
}

fn seconds(at: WallTime) -> i64 {
    at.0 / 1_000_000
}

fn part(value: &Value) -> String {
    URL_SAFE_NO_PAD.encode(value.to_string())
}

#[tokio::test]
async fn a_token_of_the_issuer_has_the_most_privileged_role_that_its_claim_gives() {
    let (rsa, elliptic) = (Key::rsa("r"), Key::elliptic("e"));
    let scene = Scene::begin(&[&rsa, &elliptic]).await;
    for key in [&rsa, &elliptic] {
        let answer = scene.post(&key.sign(&scene.claims(json!({})))).await;
        assert_eq!(answer.status().as_u16(), 200, "{}", key.id);
        let row = scene.served.script.rows().last().expect("audited").clone();
        assert_eq!((row.who.as_str(), row.outcome.as_str()), ("oidc:ann@example.org", "accepted: paused"));
    }
    for (roles, status) in [(json!("dba"), 200), (json!(["root"]), 200), (json!("everybody"), 403)] {
        let token = elliptic.sign(&scene.claims(json!({ "realm_access": { "roles": roles } })));
        assert_eq!(scene.post(&token).await.status().as_u16(), status, "{roles}");
        let read = scene.served.request(Method::GET, "/api/v1/clusters").header("x-api-token", &token);
        assert_eq!(read.send().await.expect("an answer").status().as_u16(), 200, "{roles}");
        let audit = scene.served.request(Method::GET, "/api/v1/audit").bearer_auth(&token);
        let status = if roles == json!(["root"]) { 200 } else { 403 };
        assert_eq!(audit.send().await.expect("an answer").status().as_u16(), status, "{roles}");
    }
    // Tokens of this program count beside them, and agents have none of the issuer's.
    assert_eq!(scene.post(&super::secret(Role::Operator)).await.status().as_u16(), 200);
    let heartbeat = scene.served.request(Method::POST, "/api/v1/clusters/main/heartbeat");
    let token = elliptic.sign(&scene.claims(json!({ "realm_access": { "roles": ["root"] } })));
    problem(heartbeat.bearer_auth(token).send().await.expect("an answer"), 401).await;
}

#[tokio::test]
async fn a_token_without_a_role_is_refused_by_name_and_told_which_claim_was_looked_at() {
    let key = Key::elliptic("e");
    let scene = Scene::begin(&[&key]).await;
    for claim in [json!({ "roles": ["guest", "x"] }), json!({}), json!({ "roles": 7 }), json!("dba")] {
        let token = key.sign(&scene.claims(json!({ "realm_access": claim })));
        let detail = problem(scene.post(&token).await, 403).await.detail;
        assert!(detail.contains("realm_access.roles") && detail.contains("ann@example.org"), "{detail}");
        let row = scene.served.script.rows().last().expect("audited").clone();
        assert!(row.who == "oidc:ann@example.org" && row.outcome.starts_with("refused (403): "), "{row:?}");
    }
}

#[tokio::test]
async fn what_is_not_of_the_issuer_for_us_and_for_now_is_refused_and_says_why() {
    let (key, strange) = (Key::elliptic("e"), Key::elliptic("e"));
    let scene = Scene::begin(&[&key]).await;
    let now = seconds(NOW);
    for (change, says) in [
        (json!({ "exp": now - 31 }), "has expired"),
        (json!({ "exp": 0 }), "has expired"),
        (json!({ "exp": -1.5e300 }), "has expired"),
        (json!({ "exp": null }), "never expires"),
        (json!({ "exp": (now + 300).to_string() }), "is no number"),
        (json!({ "nbf": now + 31 }), "not valid yet"),
        (json!({ "nbf": "soon" }), "is no number"),
        (json!({ "iss": "https://elsewhere.example.org" }), "not of the issuer"),
        (json!({ "iss": null }), "not of the issuer"),
        (json!({ "aud": "another" }), "not for the audience"),
        (json!({ "aud": [] }), "not for the audience"),
        (json!({ "aud": null }), "not for the audience"),
        (json!({ "aud": { "stormglass": true } }), "not for the audience"),
        (json!({ "email": "" }), "names nobody"),
        (json!({ "email": ["ann@example.org"] }), "names nobody"),
        (json!({ "email": "ann\nforged" }), "names nobody"),
        (json!({ "email": "x".repeat(201) }), "names nobody"),
        (json!({ "email_verified": false }), "was not verified"),
    ] {
        scene.refused(&key.sign(&scene.claims(change)), says).await;
    }
    // Within the leeway.
    for change in
        [json!({ "exp": now - 29 }), json!({ "nbf": now + 29 }), json!({ "nbf": null }), json!({ "aud": AUDIENCE })]
    {
        let answer = scene.post(&key.sign(&scene.claims(change.clone()))).await;
        assert_eq!(answer.status().as_u16(), 200, "{change}");
    }
    scene.refused(&strange.sign(&scene.claims(json!({}))), "signature").await;
    let good = key.sign(&scene.claims(json!({})));
    let (signed, signature) = good.rsplit_once('.').expect("three parts");
    let (head, _) = signed.split_once('.').expect("three parts");
    let other = part(&scene.claims(json!({ "email": "root@example.org" })));
    scene.refused(&format!("{head}.{other}.{signature}"), "signature").await;
    scene.refused(&format!("{signed}."), "signature").await;
}

#[tokio::test]
async fn no_signature_and_no_shared_secret_counts_whatever_a_token_says_of_itself() {
    let (rsa, elliptic) = (Key::rsa("r"), Key::elliptic("e"));
    let scene = Scene::begin(&[&rsa, &elliptic]).await;
    let claims = part(&scene.claims(json!({ "realm_access": { "roles": ["root"] } })));
    for none in ["none", "None", "NONE", ""] {
        let head = part(&json!({ "alg": none, "kid": "e", "typ": "JWT" }));
        scene.refused(&format!("{head}.{claims}."), "does not count here").await;
    }
    // The public key in the place of a secret: as it is published, and as the bytes that it stands for.
    let public = elliptic.public();
    let point = [b"\x04".to_vec(), decoded(&public["x"]), decoded(&public["y"])].concat();
    for secret in [public.to_string().into_bytes(), point, decoded(&rsa.public()["n"])] {
        let mut header = Header::new(Algorithm::HS256);
        header.kid = Some("e".to_owned());
        let claims = scene.claims(json!({ "realm_access": { "roles": ["root"] } }));
        let token = jsonwebtoken::encode(&header, &claims, &EncodingKey::from_secret(&secret)).expect("signed");
        scene.refused(&token, "\"HS256\", which does not count here").await;
    }
    // A key says itself which signatures it makes.
    let confused = Key { id: "r", algorithm: Algorithm::ES256, signing: elliptic.signing.clone() };
    scene.refused(&confused.sign(&scene.claims(json!({}))), "does not count here").await;
    let crit = part(&json!({ "alg": "ES256", "kid": "e", "crit": ["b64"], "b64": false }));
    scene.refused(&format!("{crit}.{claims}.AAAA"), "extensions").await;
    for garbage in ["ey..", "eyJ.eyJ.eyJ", "ey\u{fc}.a.b", "eyJhbGciOiJFUzI1NiJ9.AAAA.AAAA"] {
        let request = scene.served.request(Method::POST, PAUSE).header("x-api-token", garbage.as_bytes());
        problem(request.send().await.expect("an answer"), 401).await;
    }
    assert!(scene.served.script.rows().iter().all(|row| row.outcome.starts_with("refused (401): ")));
}

fn decoded(text: &Value) -> Vec<u8> {
    URL_SAFE_NO_PAD.decode(text.as_str().expect("a text")).expect("base64url")
}

#[tokio::test]
async fn a_new_key_is_looked_for_once_in_a_while_and_an_outage_of_the_issuer_admits_whom_it_admitted() {
    let (old, new, never) = (Key::elliptic("old"), Key::elliptic("new"), Key::elliptic("never"));
    let scene = Scene::begin(&[&old]).await;
    *scene.published.keys.lock().expect("no panic") = vec![old.public(), new.public()];
    // Several at once ask one question.
    let token = new.sign(&scene.claims(json!({})));
    let answers = tokio::join!(scene.post(&token), scene.post(&token), scene.post(&token));
    for answer in [answers.0, answers.1, answers.2] {
        assert_eq!(answer.status().as_u16(), 200);
    }
    assert_eq!(scene.published.fetches.load(Ordering::SeqCst), 2);
    for _ in 0..5 {
        scene.refused(&never.sign(&scene.claims(json!({}))), "no key \"never\"").await;
    }
    assert_eq!(scene.published.fetches.load(Ordering::SeqCst), 2, "not asked again so soon");

    scene.issuer.abort();
    assert!(scene.judge.take(Err("the issuer is down".to_owned()), NOW).is_err());
    for key in [&old, &new] {
        assert_eq!(scene.post(&key.sign(&scene.claims(json!({})))).await.status().as_u16(), 200, "{}", key.id);
    }
    // For a day.
    let late = |length: Duration| {
        let now = NOW.plus(length);
        scene.judge.judge(&old.sign(&scene.claims(json!({ "exp": seconds(now) + 300 }))), now)
    };
    assert!(late(KEYS_KEPT - Duration::from_secs(1)).is_ok());
    let refused = late(KEYS_KEPT + Duration::from_secs(1)).expect_err("too old").to_string();
    assert!(refused.contains("do not count any more"), "{refused}");
}

#[tokio::test]
async fn before_the_first_keys_nobody_is_admitted_and_what_describes_another_issuer_is_no_key() {
    let key = Key::elliptic("e");
    let scene = Scene::begin(&[&key]).await;
    let judge = OpenId::new(rules(&scene.url()), Arc::new(Notify::new()));
    let refused = judge.judge(&key.sign(&scene.claims(json!({}))), NOW).expect_err("no key yet").to_string();
    assert!(refused.contains("were not fetched yet"), "{refused}");

    let fetch = |settings: IssuerSettings| async move { Issuer::new(settings).expect("good").fetch().await };
    let settings = |keys_url: Option<&str>| IssuerSettings {
        issuer: scene.url(),
        keys_url: keys_url.map(str::to_owned),
        authority: None,
    };
    fetch(settings(None)).await.expect("found");
    fetch(settings(Some(&format!("{}/keys", scene.url())))).await.expect("found");
    let missing = fetch(settings(Some(&format!("{}/gone", scene.url())))).await.expect_err("404");
    assert!(missing.contains("404"), "{missing}");
    let plain = fetch(settings(Some("http://idp.example.org/keys"))).await.expect_err("no TLS");
    assert!(plain.contains("prove nothing"), "{plain}");
    *scene.published.other_name.lock().expect("no panic") = Some("https://idp.example.org".to_owned());
    let other = fetch(settings(None)).await.expect_err("another issuer");
    assert!(other.contains("describes the issuer \"https://idp.example.org\""), "{other}");
}

#[tokio::test]
async fn names_and_clusters_come_from_the_claims_that_the_configuration_names() {
    let key = Key::elliptic("e");
    let change = |rules: OpenIdRules| OpenIdRules {
        role_claim: "https://stormglass.example.org/roles".to_owned(),
        name_claim: "sub".to_owned(),
        clusters_claim: Some("clusters".to_owned()),
        ..rules
    };
    let scene = Scene::begin_with(&[&key], change).await;
    let token = |clusters: Value| {
        let claims = json!({ "https://stormglass.example.org/roles": "dba", "clusters": clusters });
        key.sign(&scene.claims(claims))
    };
    assert_eq!(scene.post(&token(json!(["main", "orders"]))).await.status().as_u16(), 200);
    assert_eq!(scene.served.script.rows().last().expect("audited").who, "oidc:7f3c");
    let other = problem(scene.post(&token(json!("orders"))).await, 403).await.detail;
    assert!(other.contains("not for cluster main"), "{other}");
    // A token that names no cluster is good for none, not for all.
    for none in [json!([]), json!(null), json!(["Not A Name"]), json!({})] {
        let detail = problem(scene.post(&token(none)).await, 403).await.detail;
        assert!(detail.contains("for no cluster"), "{detail}");
    }
}

/// A process that ends with the test.
struct Process(std::process::Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test]
async fn the_program_believes_the_issuer_that_its_configuration_names() {
    let key = Key::rsa("r");
    let scene = Scene::begin(&[&key]).await;
    let home = tempfile::tempdir().expect("a directory");
    let free = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port").local_addr().expect("bound");
    let configuration = home.path().join("controller.toml");
    let text = format!(
        "[controller]\nname = \"c\"\nlisten = \"{free}\"\ndata_directory = \"{home}\"\n\
         [cluster]\nname = \"main\"\n[authentication]\nagent_token = \"env:AGENT_TOKEN\"\n\
         [authentication.oidc]\nissuer = \"{issuer}\"\naudience = \"{AUDIENCE}\"\nname_claim = \"email\"\n\
         role_claim = \"realm_access.roles\"\n[authentication.oidc.roles]\nviewer = [\"everybody\"]\n\
         [[node]]\nname = \"n1\"\nsite = \"a\"\nagent = \"http://127.0.0.1:1\"\n",
        home = home.path().display(),
        issuer = scene.url(),
    );
    std::fs::write(&configuration, text).expect("written");
    let program = std::process::Command::new(env!("CARGO_BIN_EXE_stormglass"))
        .args(["controller", "--config"])
        .arg(&configuration)
        .env("AGENT_TOKEN", "agent-secret")
        .stdin(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn()
        .expect("built");
    let _process = Process(program);
    let now = SystemClock::new().expect("a clock").wall();
    let token = key.sign(&scene.claims(json!({ "exp": seconds(now) + 300, "nbf": seconds(now) })));
    let ask =
        |token: String| scene.served.client.get(format!("http://{free}/api/v1/clusters")).bearer_auth(token).send();
    let admitted = tokio::time::timeout(Duration::from_secs(60), async {
        while !ask(token.clone()).await.is_ok_and(|answer| answer.status().is_success()) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    admitted.await.expect("the keys are fetched after the start");
    let old = key.sign(&scene.claims(json!({ "exp": seconds(now) - 3600 })));
    assert!(problem(ask(old).await.expect("an answer"), 401).await.detail.contains("has expired"));
    let pause = scene.served.client.post(format!("http://{free}{PAUSE}")).bearer_auth(token).json(&json!({}));
    let refused = problem(pause.send().await.expect("an answer"), 403).await.detail;
    assert!(refused.contains("oidc:ann@example.org") && refused.contains("has the role viewer"), "{refused}");
}

#[test]
fn of_a_key_set_only_public_keys_for_signatures_are_taken() {
    let key = Key::elliptic("e");
    let with = |name: &str, value: &str| {
        let mut public = key.public();
        public[name] = json!(value);
        public
    };
    let useless = [
        json!({ "kty": "oct", "kid": "s", "alg": "HS256", "k": "c2VjcmV0" }),
        json!({ "kty": "new", "kid": "n" }),
        json!("a key"),
        with("use", "enc"),
        with("alg", "ECDH-ES"),
        with("alg", "RS256"),
        with("crv", "secp256k1"),
    ];
    let set = |keys: &[Value]| KeySet::parse(json!({ "keys": keys }).to_string().as_bytes()).map(drop);
    for one in &useless {
        assert_eq!(set(std::slice::from_ref(one)), Err(KeySetError::NoKey), "{one}");
    }
    let mut all = useless.to_vec();
    all.push(key.public());
    assert_eq!(set(&all), Ok(()));
    assert_eq!(set(&[]), Err(KeySetError::NoKey));
    assert!(matches!(set(&vec![key.public(); 101]), Err(KeySetError::Malformed(_))));
    for text in ["", "[]", "{}", "{\"keys\":{}}", "<html>"] {
        assert!(matches!(KeySet::parse(text.as_bytes()), Err(KeySetError::Malformed(_))), "{text}");
    }
}
