use super::*;

/// How long a test waits for what must happen. Passing tests never wait this long.
const LONG: Duration = Duration::from_secs(30);

/// A server that sends back what it receives, until it is dropped.
struct Echo {
    address: SocketAddr,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Echo {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = threads::spawn("echo", move || {
            let mut serving = Vec::new();
            for stream in listener.incoming() {
                if stopped.load(Ordering::SeqCst) {
                    break;
                }
                let stream = stream.unwrap();
                let body = move || {
                    let _ = io::copy(&mut &stream, &mut &stream);
                    let _ = stream.shutdown(Shutdown::Write);
                };
                serving.push(threads::spawn("echo-one", body).unwrap());
            }
            serving.into_iter().for_each(|one| one.join().unwrap());
        });
        Self {
            address,
            stop,
            thread: Some(thread.unwrap()),
        }
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(self.address);
        let _ = self.thread.take().unwrap().join();
    }
}

// Declaration order matters in these tests: the proxy goes before the server whose connections it holds.
fn proxy_to(echo: &Echo, config: ChaosConfig) -> ChaosProxy {
    ChaosProxy::start(echo.address, config).unwrap()
}

fn connect(proxy: &ChaosProxy) -> TcpStream {
    let stream = TcpStream::connect(proxy.address()).unwrap();
    stream.set_read_timeout(Some(LONG)).unwrap();
    stream.set_write_timeout(Some(LONG)).unwrap();
    stream
}

/// Sends all, closes the sending side, and returns what comes back.
fn echoed(proxy: &ChaosProxy, bytes: &[u8]) -> io::Result<Vec<u8>> {
    let stream = connect(proxy);
    let reader = stream.try_clone()?;
    let back = threads::spawn("reader", move || {
        let mut all = Vec::new();
        (&reader).read_to_end(&mut all).map(|_| all)
    })?;
    (&stream).write_all(bytes)?;
    stream.shutdown(Shutdown::Write)?;
    back.join().unwrap()
}

/// Whether the connection ends without a byte. A reset is an end too: what the client had sent may lie unread.
fn ends_empty(mut stream: &TcpStream) -> bool {
    match stream.read(&mut [0; 1]) {
        Ok(len) => len == 0,
        Err(error) => !is_no_end(&error),
    }
}

fn elapsed<T>(action: impl FnOnce() -> T) -> (Duration, T) {
    let clock = SystemClock::new();
    let start = clock.now();
    let result = action();
    (clock.now().since(start), result)
}

#[test]
fn without_settings_every_byte_passes_both_ways_and_ends_in_order() {
    let echo = Echo::start();
    let proxy = proxy_to(&echo, ChaosConfig::default());
    assert_ne!(proxy.address(), echo.address);
    let mut bytes = vec![0; 1_000_000];
    Rng::with_seed(7).fill(&mut bytes);
    assert!(echoed(&proxy, &bytes).unwrap() == bytes);
    assert_eq!(
        (proxy.connections(), proxy.disconnects(), proxy.dropped_chunks()),
        (1, 0, 0)
    );
}

#[test]
fn a_delay_is_added_in_each_direction() {
    let echo = Echo::start();
    let delay = Duration::from_millis(40);
    let proxy = proxy_to(
        &echo,
        ChaosConfig {
            delay_min: delay,
            delay_max: delay,
            ..ChaosConfig::default()
        },
    );
    let (took, back) = elapsed(|| echoed(&proxy, b"x").unwrap());
    assert_eq!(back, b"x");
    assert!(2 * delay <= took, "{took:?}");
}

#[test]
fn random_delays_stay_within_their_bounds() {
    let (delay_min, delay_max) = (Duration::from_millis(5), Duration::from_millis(20));
    let shared = Shared {
        upstream: "127.0.0.1:1".parse().unwrap(),
        config: ChaosConfig {
            delay_min,
            delay_max,
            ..ChaosConfig::default()
        },
        clock: SystemClock::new(),
        state: Mutex::default(),
        closing: Condvar::new(),
    };
    let draw = |seed| {
        let mut rng = Rng::with_seed(seed);
        (0..1_000).map(|_| shared.delay(1, &mut rng)).collect::<Vec<_>>()
    };
    assert!(draw(4_242).iter().all(|delay| (delay_min..=delay_max).contains(delay)));
    assert_eq!(draw(4_242), draw(4_242));
    assert_ne!(draw(4_242), draw(4_243));
}

#[test]
fn bandwidth_slows_a_transfer_down() {
    let echo = Echo::start();
    let proxy = proxy_to(
        &echo,
        ChaosConfig {
            bandwidth_bytes_per_s: 100_000,
            chunk_bytes: 1_000,
            ..ChaosConfig::default()
        },
    );
    let (took, back) = elapsed(|| echoed(&proxy, &[1; 20_000]).unwrap());
    assert_eq!(back.len(), 20_000);
    assert!(Duration::from_millis(200) <= took, "{took:?}");
}

#[test]
fn dropped_chunks_are_swallowed_and_the_connection_lives_on() {
    let echo = Echo::start();
    let all = ChaosConfig {
        drop_probability: 1.0,
        ..ChaosConfig::default()
    };
    let proxy = proxy_to(&echo, all);
    assert_eq!(echoed(&proxy, b"lost").unwrap(), b"");
    assert!(1 <= proxy.dropped_chunks());

    let some = ChaosConfig {
        seed: 1,
        drop_probability: 0.25,
        chunk_bytes: 1,
        ..ChaosConfig::default()
    };
    let survivors = || echoed(&proxy_to(&echo, some.clone()), &(0..200).collect::<Vec<u8>>()).unwrap();
    let first = survivors();
    assert!(
        (20..180).contains(&first.len()),
        "{} of 200 bytes came back",
        first.len()
    );
    assert_eq!(first, survivors(), "the same seed drops the same chunks");
}

#[test]
fn a_reset_hits_the_connection_and_not_its_chunks() {
    let echo = Echo::start();
    let proxy = proxy_to(
        &echo,
        ChaosConfig {
            reset_probability: 1.0,
            ..ChaosConfig::default()
        },
    );
    let error = (&connect(&proxy)).read(&mut [0; 1]).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    assert!(echoed(&proxy, b"x").is_err());

    // Per connection: one that survived the draw survives any number of chunks.
    let half = ChaosConfig {
        seed: 3,
        reset_probability: 0.5,
        chunk_bytes: 1,
        ..ChaosConfig::default()
    };
    let proxy = proxy_to(&echo, half);
    let whole = (0..20)
        .filter_map(|_| echoed(&proxy, &[1; 100]).ok())
        .collect::<Vec<_>>();
    assert!((1..20).contains(&whole.len()), "{} of 20 survived", whole.len());
    assert!(whole.iter().all(|back| back.len() == 100));
}

#[test]
fn only_the_first_connections_are_cut_when_their_number_is_limited() {
    let echo = Echo::start();
    let after = Duration::from_millis(60);
    let proxy = proxy_to(
        &echo,
        ChaosConfig {
            disconnect_after: Some(after),
            disconnects_max: 1,
            ..ChaosConfig::default()
        },
    );
    let (took, ended) = elapsed(|| ends_empty(&connect(&proxy)));
    assert!(ended);
    assert!(after <= took, "cut too early: {took:?}");
    let second = connect(&proxy);
    // An idle wait longer than the time that cut the first one: the second must still be whole.
    second.set_read_timeout(Some(3 * after)).unwrap();
    assert!(is_no_end(&(&second).read(&mut [0; 1]).unwrap_err()));
    second.set_read_timeout(Some(LONG)).unwrap();
    (&second).write_all(b"y").unwrap();
    let mut back = [0; 1];
    (&second).read_exact(&mut back).unwrap();
    assert_eq!((&back, proxy.disconnects(), proxy.connections()), (b"y", 1, 2));
}

#[test]
fn every_connection_is_cut_when_their_number_is_not_limited() {
    let echo = Echo::start();
    let proxy = proxy_to(
        &echo,
        ChaosConfig {
            disconnect_after: Some(Duration::from_millis(20)),
            ..ChaosConfig::default()
        },
    );
    for _ in 0..3 {
        assert!(ends_empty(&connect(&proxy)));
    }
}

/// Cutting must not wait for a peer that stopped reading: a blocked write used to be the way to outlive one's time.
#[test]
fn a_connection_is_cut_although_nobody_reads() {
    let echo = Echo::start();
    let proxy = proxy_to(
        &echo,
        ChaosConfig {
            disconnect_after: Some(Duration::from_millis(100)),
            ..ChaosConfig::default()
        },
    );
    let stream = connect(&proxy);
    let block = [0; 65_536];
    while (&stream).write_all(&block).is_ok() {}
    assert!(matches!((&stream).write(&block), Err(error) if !is_no_end(&error)));
}

#[test]
fn a_client_sees_an_end_and_no_refusal_when_the_server_is_down() {
    let gone = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let proxy = ChaosProxy::start(gone, ChaosConfig::default()).unwrap();
    assert!(ends_empty(&connect(&proxy)));
}

#[test]
fn closing_cuts_connections_joins_threads_and_may_be_repeated() {
    let echo = Echo::start();
    let proxy = proxy_to(
        &echo,
        ChaosConfig {
            // One pump sleeps this long; closing must not wait for it.
            delay_min: 20 * LONG,
            delay_max: 20 * LONG,
            ..ChaosConfig::default()
        },
    );
    let stream = connect(&proxy);
    (&stream).write_all(b"x").unwrap();
    let idle = connect(&proxy);
    // A connection that is not served yet would end without having to be cut.
    let clock = SystemClock::new();
    let until = clock.now().after(LONG);
    while proxy.shared.state.lock().open.len() < 2 {
        assert!(clock.now() < until, "the connections are not served");
        std::thread::yield_now();
    }
    proxy.close();
    assert!(ends_empty(&stream) && ends_empty(&idle));
    assert_eq!(Arc::strong_count(&proxy.shared), 1, "a thread still holds the proxy");
    proxy.close();
    assert!(TcpStream::connect(proxy.address()).is_err());
}

#[test]
fn settings_without_sense_are_refused() {
    let upstream = "127.0.0.1:1".parse().unwrap();
    let bad = [
        ChaosConfig {
            delay_min: Duration::from_millis(2),
            delay_max: Duration::from_millis(1),
            ..ChaosConfig::default()
        },
        ChaosConfig {
            drop_probability: 1.5,
            ..ChaosConfig::default()
        },
        ChaosConfig {
            reset_probability: f64::NAN,
            ..ChaosConfig::default()
        },
        ChaosConfig {
            chunk_bytes: 0,
            ..ChaosConfig::default()
        },
    ];
    for config in bad {
        let error = ChaosProxy::start(upstream, config.clone())
            .err()
            .map(|error| error.kind());
        assert_eq!(error, Some(io::ErrorKind::InvalidInput), "{config:?}");
    }
}

#[test]
fn a_random_seed_is_told() {
    let echo = Echo::start();
    assert_ne!(proxy_to(&echo, ChaosConfig::default()).seed(), 0);
    let fixed = ChaosConfig {
        seed: 9,
        ..ChaosConfig::default()
    };
    assert_eq!(proxy_to(&echo, fixed).seed(), 9);
}
