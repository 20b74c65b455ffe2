//! Who may use which route: every route with every token.

use stormglass::api::routes::{Access, Endpoint, ROUTES};
use stormglass::domain::access::Role;

use super::{AGENT, ROLES, Served, problem, secret};

#[tokio::test]
async fn without_a_known_token_only_open_routes_answer() {
    let served = Served::begin();
    for route in ROUTES {
        for token in [None, Some("wrong"), Some("")] {
            let request = served.valid(route);
            let request = match token {
                Some(token) => request.bearer_auth(token),
                None => request,
            };
            let answer = request.send().await.expect("an answer");
            if route.access == Access::Open {
                assert_eq!(answer.status().as_u16(), 200, "{}", route.path);
            } else {
                problem(answer, 401).await;
            }
        }
    }
}

#[tokio::test]
async fn each_role_may_do_what_its_routes_ask_for_and_no_more() {
    let served = Served::begin();
    for route in ROUTES {
        for role in ROLES {
            let answer = served.valid(route).bearer_auth(secret(role)).send().await.expect("an answer");
            let may = match route.access {
                Access::Open => true,
                Access::Agents => false,
                Access::AtLeast(needed) => role >= needed,
            };
            if may {
                assert_eq!(answer.status().as_u16(), route.status, "{} as {}", route.path, role.label());
            } else {
                let detail = problem(answer, 403).await.detail;
                assert!(route.access == Access::Agents || detail.contains(role.label()), "{detail}");
            }
        }
    }
}

#[tokio::test]
async fn the_agents_token_reports_and_does_nothing_else() {
    let served = Served::begin();
    for route in ROUTES {
        let answer = served.valid(route).bearer_auth(AGENT).send().await.expect("an answer");
        if matches!(route.access, Access::Open | Access::Agents) {
            assert_eq!(answer.status().as_u16(), 200, "{}", route.path);
        } else {
            problem(answer, 403).await;
        }
    }
}

/// The table itself: what a mistake in it would cost is too much to be found by the routes agreeing with it.
#[test]
fn the_table_of_access_is_as_meant() {
    for route in ROUTES {
        let meant = match route.endpoint {
            Endpoint::Health | Endpoint::Ready | Endpoint::Metrics | Endpoint::OpenApi => Access::Open,
            Endpoint::Heartbeat | Endpoint::ProxyHeartbeat => Access::Agents,
            Endpoint::Dashboard => Access::Open,
            Endpoint::Audit | Endpoint::Tokens | Endpoint::TokenCreate | Endpoint::TokenRevoke => {
                Access::AtLeast(Role::Admin)
            }
            // Who defines a cluster has the controller run what its sequences say.
            Endpoint::ClusterAdd | Endpoint::ClusterRemove => Access::AtLeast(Role::Admin),
            Endpoint::Backup | Endpoint::Drill => Access::AtLeast(Role::Backup),
            _ if route.is_mutation() => Access::AtLeast(Role::Operator),
            _ => Access::AtLeast(Role::Viewer),
        };
        assert_eq!(route.access, meant, "{}", route.path);
        assert_eq!(route.method.name() == "POST", route.is_mutation() || meant == Access::Agents, "{}", route.path);
    }
    assert!(ROUTES.iter().filter(|route| route.is_mutation()).count() >= 10);
}

#[tokio::test]
async fn tokens_come_in_two_headers() {
    let served = Served::begin();
    let ask = || served.request(reqwest::Method::GET, "/api/v1/clusters");
    let viewer = secret(Role::Viewer);
    for (header, value, status) in [
        ("x-api-token", viewer.clone(), 200),
        ("authorization", format!("bearer {viewer}"), 200),
        ("authorization", format!("Basic {viewer}"), 401),
        ("authorization", viewer.clone(), 401),
        ("x-api-token", format!("{viewer}x"), 401),
    ] {
        let answer = ask().header(header, &value).send().await.expect("an answer");
        assert_eq!(answer.status().as_u16(), status, "{header}: {value}");
    }
}
