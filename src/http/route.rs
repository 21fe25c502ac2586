//! Method and path to endpoint: the full list in one match.

use tiny_http::Method;

use super::dequeue::Call;

/// An endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Route {
    /// `POST /v1/acquire`
    Acquire,
    /// `POST /v1/keepalive`
    Keepalive,
    /// `POST /v1/release`
    Release,
    /// `GET|POST /v1/get`
    Get,
    /// `POST /v1/update`
    Update,
    /// `POST /v1/metadata`
    Metadata,
    /// `POST /v1/remove`
    Remove,
    /// `GET|POST /v1/describe`
    Describe,
    /// `GET /v1/namespace`
    NamespaceGet,
    /// `POST|PUT /v1/namespace`
    NamespaceSet,
    /// `POST /v1/queue/enqueue`
    Enqueue,
    /// `POST /v1/queue/dequeue`, `dequeueWithState`, `subscribe`, `subscribeWithState`
    Dequeue(Call),
    /// `POST /v1/queue/ack`
    Ack,
    /// `POST /v1/queue/nack`
    Nack,
    /// `POST /v1/queue/extend`
    Extend,
    /// `POST /v1/queue/stats`
    QueueStats,
    /// `POST /v1/queue/watch`
    QueueWatch,
    /// `/healthz`, any method
    Health,
    /// `/readyz`, any method
    Ready,
}

/// Why a request has no endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoRoute {
    /// There is no such path.
    UnknownPath,
    /// The path takes other methods; this is the `Allow` header.
    WrongMethod(&'static str),
}

/// What endpoints are called where requests are counted. The last one stands for paths and methods that do not exist.
pub(super) const ROUTES: [&str; 22] = [
    "acquire",
    "keepalive",
    "release",
    "get",
    "update",
    "metadata",
    "remove",
    "describe",
    "namespace",
    "enqueue",
    "dequeue",
    "dequeue_with_state",
    "subscribe",
    "subscribe_with_state",
    "ack",
    "nack",
    "extend",
    "stats",
    "watch",
    "healthz",
    "readyz",
    "unknown",
];
/// The place of the last one.
pub(super) const UNKNOWN: usize = ROUTES.len() - 1;

impl Route {
    /// Its place in [`ROUTES`].
    pub(super) fn place(self) -> usize {
        match self {
            Route::Acquire => 0,
            Route::Keepalive => 1,
            Route::Release => 2,
            Route::Get => 3,
            Route::Update => 4,
            Route::Metadata => 5,
            Route::Remove => 6,
            Route::Describe => 7,
            Route::NamespaceGet | Route::NamespaceSet => 8,
            Route::Enqueue => 9,
            Route::Dequeue(call) => 10 + 2 * usize::from(call.subscribes) + usize::from(call.with_state),
            Route::Ack => 14,
            Route::Nack => 15,
            Route::Extend => 16,
            Route::QueueStats => 17,
            Route::QueueWatch => 18,
            Route::Health => 19,
            Route::Ready => 20,
        }
    }
}

/// Finds the endpoint of a request. A trailing slash makes another path.
pub(super) fn route(method: &Method, path: &str) -> Result<Route, NoRoute> {
    let post = |route| {
        if *method == Method::Post {
            Ok(route)
        } else {
            Err(NoRoute::WrongMethod("POST"))
        }
    };
    let read = |route| match method {
        Method::Get | Method::Post => Ok(route),
        _ => Err(NoRoute::WrongMethod("GET, POST")),
    };
    let dequeue = |subscribes, with_state| post(Route::Dequeue(Call { subscribes, with_state }));
    match path {
        "/v1/acquire" => post(Route::Acquire),
        "/v1/keepalive" => post(Route::Keepalive),
        "/v1/release" => post(Route::Release),
        "/v1/get" => read(Route::Get),
        "/v1/update" => post(Route::Update),
        "/v1/metadata" => post(Route::Metadata),
        "/v1/remove" => post(Route::Remove),
        "/v1/describe" => read(Route::Describe),
        "/v1/namespace" => match method {
            Method::Get => Ok(Route::NamespaceGet),
            Method::Post | Method::Put => Ok(Route::NamespaceSet),
            _ => Err(NoRoute::WrongMethod("GET, POST")),
        },
        "/v1/queue/enqueue" => post(Route::Enqueue),
        "/v1/queue/dequeue" => dequeue(false, false),
        "/v1/queue/dequeueWithState" => dequeue(false, true),
        "/v1/queue/subscribe" => dequeue(true, false),
        "/v1/queue/subscribeWithState" => dequeue(true, true),
        "/v1/queue/ack" => post(Route::Ack),
        "/v1/queue/nack" => post(Route::Nack),
        "/v1/queue/extend" => post(Route::Extend),
        "/v1/queue/stats" => post(Route::QueueStats),
        "/v1/queue/watch" => post(Route::QueueWatch),
        "/healthz" => Ok(Route::Health),
        "/readyz" => Ok(Route::Ready),
        _ => Err(NoRoute::UnknownPath),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_endpoint_is_counted_under_the_end_of_its_path() {
        for (place, name) in ROUTES.iter().enumerate().take(UNKNOWN) {
            let words = name.split('_').enumerate();
            let word = |(number, word): (usize, &str)| match number {
                0 => word.to_owned(),
                _ => word[..1].to_uppercase() + &word[1..],
            };
            let path: String = words.map(word).collect();
            let found = ["/", "/v1/", "/v1/queue/"]
                .iter()
                .find_map(|folder| route(&Method::Post, &format!("{folder}{path}")).ok());
            assert_eq!(found.unwrap().place(), place, "{name}");
        }
    }

    #[test]
    fn paths_are_matched_whole_and_methods_are_told() {
        assert_eq!(route(&Method::Get, "/v1/get"), Ok(Route::Get));
        assert_eq!(route(&Method::Post, "/v1/get"), Ok(Route::Get));
        assert_eq!(route(&Method::Put, "/v1/namespace"), Ok(Route::NamespaceSet));
        assert_eq!(
            route(&Method::Delete, "/v1/namespace"),
            Err(NoRoute::WrongMethod("GET, POST"))
        );
        assert_eq!(route(&Method::Get, "/v1/acquire"), Err(NoRoute::WrongMethod("POST")));
        for unknown in ["/", "/v1/acquire/", "//v1/acquire", "/v1", "/V1/acquire", "/healthz/"] {
            assert_eq!(route(&Method::Post, unknown), Err(NoRoute::UnknownPath), "{unknown}");
        }
    }
}
