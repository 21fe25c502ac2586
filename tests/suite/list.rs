// Every claim of the suites; included by each backend's test target, which defines `suite!`.

suite!(smoke: a_lease_guards_a_state_from_acquire_to_release);
