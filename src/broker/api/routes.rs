//! What can be called, and who may: one table, from which the router is made.
//! A route that is not in it does not exist, and one without a demand cannot
//! be written down.

use axum::Router;
use axum::extract::{Request, State};
use axum::http::Method;
use axum::middleware::{self, Next};
use axum::response::Response;
use axum::routing::{MethodRouter, get, post, put};

use super::auth::caller_of;
use super::error::Error;
use super::lanes::Lane;
use super::{ApiState, connection, permissions, screenshots, servers, sessions, v1};
use crate::domain::audit::Actor;
use crate::domain::client::{Grant, Scope};

/// Who may call a route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Demand {
    /// What the caller must be allowed.
    pub scope: Scope,
    /// Whether callers that are bound to an owner may, too: the handler sees
    /// to it that they see and change that owner's sessions alone.
    pub owners: bool,
    /// Which places its requests take.
    pub lane: Lane,
}

impl Demand {
    const fn of(scope: Scope) -> Self {
        let lane = if matches!(scope, Scope::Read) { Lane::Reading } else { Lane::Changing };
        Self { scope, owners: false, lane }
    }

    const fn owners_too(scope: Scope) -> Self {
        Self { owners: true, ..Self::of(scope) }
    }

    const fn on(self, lane: Lane) -> Self {
        Self { lane, ..self }
    }

    fn check(self, grant: &Grant) -> Result<(), Error> {
        if !grant.scopes.has(self.scope) {
            return Err(Error::ScopeMissing { scope: self.scope.as_str() });
        }
        if grant.owner.is_some() && !self.owners {
            return Err(Error::OwnersSessionsOnly);
        }
        Ok(())
    }
}

/// A route that wants an access token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// Its method.
    pub method: Method,
    /// Its path, with `{…}` for what varies.
    pub path: &'static str,
    /// Who may call it.
    pub demand: Demand,
}

/// A route and who serves it.
type Served = (Method, &'static str, Demand, MethodRouter<ApiState>);

fn table() -> Vec<Served> {
    use Scope::{Read, Servers, Sessions};
    let (own, all) = (Demand::owners_too, Demand::of);
    vec![
        (Method::POST, "/describeSessions", own(Read), post(sessions::describe)),
        (Method::POST, "/describeServers", all(Read), post(servers::describe)),
        (Method::POST, "/createSessions", own(Sessions), post(sessions::create)),
        (Method::POST, "/deleteSessions", own(Sessions), post(sessions::delete)),
        (Method::PUT, "/sessionPermissions", own(Sessions), put(permissions::update)),
        (Method::GET, "/sessionConnectionData/{sessionId}/{user}", own(Sessions), get(connection::get)),
        (Method::POST, "/getSessionScreenshots", own(Sessions).on(Lane::Pictures), post(screenshots::take)),
        (Method::POST, "/openServers", all(Servers), post(servers::open)),
        (Method::POST, "/closeServers", all(Servers), post(servers::close)),
        (Method::GET, "/v1/events", all(Read), get(v1::events)),
        (Method::POST, "/v1/placement:explain", all(Read), post(v1::explain)),
        (Method::GET, "/v1/queue", all(Read), get(v1::queue)),
        (Method::GET, "/v1/servers", all(Read), get(v1::servers)),
        (Method::POST, "/v1/servers:drain", all(Servers), post(v1::drain)),
        (Method::GET, "/v1/sessions", own(Read), get(v1::sessions)),
    ]
}

/// All routes that want an access token.
pub fn routes() -> Vec<Route> {
    table().into_iter().map(|(method, path, demand, _)| Route { method, path, demand }).collect()
}

/// The routes, each of which looks at what its caller may do.
pub(super) fn router(api: &ApiState) -> Router<ApiState> {
    table().into_iter().fold(Router::new(), |router, (_, path, demand, served)| {
        router.route(path, served.route_layer(middleware::from_fn_with_state((api.clone(), demand), admit)))
    })
}

/// Lets those through who may, as long as there are places.
async fn admit(
    State((api, demand)): State<(ApiState, Demand)>,
    request: Request,
    next: Next,
) -> Result<Response, Error> {
    let caller = caller_of(request.extensions())?;
    if let Err(error) = demand.check(&caller.grant) {
        api.note(&request, Actor::Client(caller.client.clone()), &format!("refused: {error}"));
        return Err(error);
    }
    // All who need not say who they are count as one client.
    let client = api.settings.authorization.then_some(&caller.client);
    let place = api.lanes.enter(demand.lane, client)?;
    Ok(place.keep_for(next.run(request).await))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_route_stands_once_in_the_table() {
        let mut routes: Vec<_> = routes().into_iter().map(|route| (route.path, route.method.to_string())).collect();
        let count = routes.len();
        routes.sort();
        routes.dedup();
        assert_eq!(routes.len(), count);
    }

    #[test]
    fn what_changes_something_wants_more_than_reading() {
        let asks = ["/describeSessions", "/describeServers", "/v1/placement:explain"];
        for route in routes().into_iter().filter(|route| route.method != Method::GET && !asks.contains(&route.path)) {
            assert!(matches!(route.demand.scope, Scope::Sessions | Scope::Servers), "{route:?}");
        }
    }
}
