//! The main job in one breath.

use super::fixture::{Backend, TestServer};
use super::lockd_calls::{get_public, hold};

pub fn a_lease_guards_a_state_from_acquire_to_release(backend: &dyn Backend) {
    let server = TestServer::fresh(backend);
    let held = hold(server.address, "orders/4711");
    assert_eq!((held.version, held.token), (0, 1));
    let updated = held.update("{ \"n\": 1 }").expect(200);
    assert_eq!(updated.field("new_version"), 1);
    assert_eq!(get_public(server.address, "orders/4711").status, 204);
    held.release().expect(200);
    let state = get_public(server.address, "orders/4711").expect(200);
    assert_eq!(state.body, b"{\"n\":1}");
    assert_eq!(state.header("X-Key-Version"), Some("1"));
    assert_eq!(held.update("{}").error(), (403, "lease_required".to_owned()));
}
