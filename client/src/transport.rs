//! The sockets under ureq: TCP and unix, made so that a blocked call can be cancelled from another thread.
//!
//! ureq hands a pooled connection from call to call, so a connection cannot know at birth whom it will serve. The thread
//! that makes a call therefore leaves an [`Exchange`] in a thread-local ([`enter`]) and the socket finds it there: it lets
//! the call's cancel token shut it down while it blocks, and notes how far the exchange got, which decides whether a
//! failed one may be repeated silently.
//!
//! Names are looked up only when a connection is opened, not for each request as ureq would by itself.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpStream};
#[cfg(unix)]
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use log::kv::Value;
use socket2::{Domain, SockAddr, Socket, TcpKeepalive, Type};
use ureq::config::Config;
use ureq::http::Uri;
use ureq::unversioned::resolver::{DefaultResolver, ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::{Buffers, ConnectionDetails, Connector, LazyBuffers, NextTimeout, Transport, time};
use ureq::{Error, Timeout};

use crate::cancel::{Abort, CancelToken, Watch};
use crate::clock;
use crate::leave::{Leave, Receives};
use crate::logging::{EventLog, fields};

/// Probes of an otherwise silent TCP connection: without them a waiting acquire would never notice that its server is gone.
const TCP_KEEPALIVE: Duration = Duration::from_secs(15);

/// How far one exchange got, and who may cancel it.
#[derive(Default)]
pub(crate) struct Exchange {
    cancel: Option<CancelToken>,
    trace: Option<Trace>,
    begun: Cell<bool>,
    sent: Cell<bool>,
    written: Cell<u64>,
    received: Cell<u64>,
    reused: Cell<bool>,
    leave: Option<Arc<Leave>>,
}

/// Where the low-level events of an exchange go.
#[derive(Clone)]
pub(crate) struct Trace {
    pub(crate) log: EventLog,
    pub(crate) endpoint: Arc<str>,
    pub(crate) cid: Option<String>,
}

impl Trace {
    fn event(&self, name: &str, more: &[(&'static str, Value<'_>)]) {
        let mut all = fields!(endpoint = &*self.endpoint).to_vec();
        all.extend_from_slice(more);
        self.log.emit(log::Level::Trace, self.cid.as_deref(), name, &all);
    }
}

impl Exchange {
    pub(crate) fn new(cancel: Option<CancelToken>, trace: Option<Trace>) -> Rc<Self> {
        Rc::new(Self {
            cancel,
            trace,
            ..Self::default()
        })
    }

    /// An exchange whose answer has begun to arrive; what is left is its body. With `leave`, that is what the token does to it.
    pub(crate) fn receiving(cancel: Option<CancelToken>, trace: Option<Trace>, leave: Option<Arc<Leave>>) -> Rc<Self> {
        let exchange = Rc::new(Self {
            cancel,
            trace,
            leave,
            ..Self::default()
        });
        exchange.begun.set(true);
        exchange.sent.set(true);
        exchange.received.set(1);
        exchange
    }

    fn trace_begin(&self, reused: bool, remote: Option<SocketAddr>) {
        self.reused.set(reused);
        if let (false, Some(trace)) = (self.begun.replace(true), &self.trace) {
            let remote = remote.map(|address| address.to_string());
            let mut more = fields!(reused = reused, was_idle = reused).to_vec();
            more.extend(remote.as_deref().map(|remote| ("remote", Value::from(remote))));
            trace.event("client.http.trace.got_conn", &more);
        }
    }

    fn trace_sent(&self, failure: Option<&Error>) {
        if let (false, Some(trace)) = (self.sent.replace(true), &self.trace) {
            match failure {
                None => trace.event("client.http.trace.wrote_request", &[]),
                Some(error) => trace.event("client.http.trace.wrote_request", &fields!(error = %error)),
            }
        }
    }

    fn note_received(&self, count: usize) {
        if let (0, true, Some(trace)) = (self.received.get(), 0 < count, &self.trace) {
            trace.event("client.http.trace.first_byte", &[]);
        }
        self.received.set(self.received.get() + count as u64);
    }

    /// ureq asks whether a connection is open when it takes it from the pool, before anything was received, and when it
    /// puts it back.
    fn trace_put_back(&self, open: bool) {
        if let (true, Some(trace)) = (0 < self.received.get(), &self.trace) {
            match open {
                true => trace.event("client.http.trace.put_idle", &[]),
                false => trace.event(
                    "client.http.trace.put_idle",
                    &fields!(error = "the connection is not idle"),
                ),
            }
        }
    }

    /// True when the connection had served an earlier exchange.
    pub(crate) fn reused_connection(&self) -> bool {
        self.reused.get()
    }

    /// True when no byte of the request was taken by the kernel.
    pub(crate) fn nothing_written(&self) -> bool {
        self.written.get() == 0
    }

    /// True when no byte of an answer arrived.
    pub(crate) fn nothing_received(&self) -> bool {
        self.received.get() == 0
    }

    fn is_left(&self) -> bool {
        self.leave.as_ref().is_some_and(|leave| leave.is_left())
    }

    fn lingers(&self, silent_since: Instant) -> bool {
        self.leave.as_ref().is_some_and(|leave| leave.linger(silent_since))
    }

    fn cancelled(&self) -> bool {
        self.cancel.as_ref().is_some_and(CancelToken::is_cancelled)
    }
}

thread_local! {
    static CURRENT: RefCell<Option<Rc<Exchange>>> = const { RefCell::new(None) };
}

/// Makes this the exchange that the sockets of this thread work for, until the guard is dropped. Exchanges nest: a body
/// that is read while it is sent may come from another call.
pub(crate) fn enter(exchange: &Rc<Exchange>) -> Entered {
    let before = CURRENT.replace(Some(Rc::clone(exchange)));
    Entered { before }
}

/// Puts the previous exchange back when dropped.
pub(crate) struct Entered {
    before: Option<Rc<Exchange>>,
}

impl Drop for Entered {
    fn drop(&mut self) {
        CURRENT.set(self.before.take());
    }
}

fn current() -> Rc<Exchange> {
    CURRENT.with_borrow(|current| current.clone()).unwrap_or_default()
}

/// Registers something blocking with the token of the current exchange.
fn watch<A: Abort + 'static>(exchange: &Exchange, blocked: &Arc<A>) -> Result<Option<Watch>, Error> {
    let Some(token) = &exchange.cancel else {
        return Ok(None);
    };
    let weak: Weak<A> = Arc::downgrade(blocked);
    match token.watch(weak) {
        Some(watch) => Ok(Some(watch)),
        None => Err(cancelled()),
    }
}

/// The same for one that reads, which may be a stream to be left.
fn watch_reader(exchange: &Exchange, stream: &Arc<Stream>) -> Result<Option<Watch>, Error> {
    let Some(leave) = &exchange.leave else {
        return watch(exchange, stream);
    };
    let connection: Weak<Stream> = Arc::downgrade(stream);
    leave.reads(connection);
    if leave.is_over() {
        return Err(cancelled());
    }
    let Some(token) = &exchange.cancel else {
        return Ok(None);
    };
    let weak: Weak<Leave> = Arc::downgrade(leave);
    let watch = token.watch(weak);
    if watch.is_none() {
        leave.leave();
    }
    Ok(watch)
}

/// Not one of the kinds that ureq takes for the end of a body: a cut-off body must not look like a complete one.
fn cancelled() -> Error {
    Error::Io(io::Error::other("cancelled"))
}

/// Opens connections to one endpoint.
#[derive(Debug)]
pub(crate) enum SocketConnector {
    /// To the host of the request's URI.
    Tcp,
    /// To this unix socket, whatever the URI says.
    Unix(PathBuf),
}

impl<In: Transport> Connector<In> for SocketConnector {
    type Out = SocketTransport;

    fn connect(&self, details: &ConnectionDetails, _: Option<In>) -> Result<Option<SocketTransport>, Error> {
        let exchange = current();
        let limit = Limit::new(details.timeout);
        let stream = match self {
            SocketConnector::Tcp => connect_host(&exchange, details, &limit)?,
            SocketConnector::Unix(path) => connect_unix(&exchange, path, &limit)?,
        };
        let buffers = LazyBuffers::new(details.config.input_buffer_size(), details.config.output_buffer_size());
        Ok(Some(SocketTransport {
            remote: stream.remote(),
            stream: Arc::new(stream),
            buffers,
            served: false,
            read_timeout: None,
            write_timeout: None,
        }))
    }
}

/// A time limit that is asked for what is left of it.
struct Limit {
    until: Option<Instant>,
    reason: Timeout,
}

impl Limit {
    fn new(timeout: NextTimeout) -> Self {
        let until = match timeout.after {
            time::Duration::Exact(span) => clock::now().checked_add(span),
            time::Duration::NotHappening => None,
        };
        Self {
            until,
            reason: timeout.reason,
        }
    }

    /// What is left; `None` without a limit.
    fn left(&self) -> Result<Option<Duration>, Error> {
        match self.until.map(|until| until.saturating_duration_since(clock::now())) {
            Some(left) if left.is_zero() => Err(Error::Timeout(self.reason)),
            left => Ok(left),
        }
    }
}

fn connect_host(exchange: &Exchange, details: &ConnectionDetails, limit: &Limit) -> Result<Stream, Error> {
    let addresses = resolve(details)?;
    let mut failure = Error::HostNotFound;
    for (index, address) in addresses.iter().enumerate() {
        // What is left is shared by the addresses that are left, so that one black hole does not eat it all.
        let untried = u32::try_from(addresses.len() - index).unwrap_or(1);
        let share = limit.left()?.map(|left| left / untried);
        match connect_tcp(exchange, *address, share) {
            Ok(stream) => return Ok(Stream::Tcp(stream)),
            Err(_) if exchange.cancelled() => return Err(cancelled()),
            Err(error) if error.kind() == io::ErrorKind::TimedOut => failure = Error::Timeout(Timeout::Connect),
            Err(error) => failure = Error::Io(error),
        }
    }
    Err(failure)
}

fn resolve(details: &ConnectionDetails) -> Result<Vec<SocketAddr>, Error> {
    let host = details.uri.host().unwrap_or_default();
    let literal = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
    if let (Ok(ip), Some(port)) = (literal, details.uri.port_u16()) {
        return Ok(vec![SocketAddr::new(ip, port)]);
    }
    let found = DefaultResolver::default().resolve(details.uri, details.config, details.timeout)?;
    Ok(found.iter().copied().collect())
}

fn connect_tcp(exchange: &Exchange, address: SocketAddr, share: Option<Duration>) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_keepalive(
        &TcpKeepalive::new()
            .with_time(TCP_KEEPALIVE)
            .with_interval(TCP_KEEPALIVE),
    )?;
    connect_watched(exchange, socket, |socket| match share {
        Some(share) => socket.connect_timeout(&address.into(), share),
        None => socket.connect(&address.into()),
    })
    .map(TcpStream::from)
}

#[cfg(unix)]
fn connect_unix(exchange: &Exchange, path: &std::path::Path, limit: &Limit) -> Result<Stream, Error> {
    let left = limit.left()?;
    let connect = || -> io::Result<UnixStream> {
        let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
        // A listener with a full backlog makes the connect wait; the write timeout bounds that.
        socket.set_write_timeout(left)?;
        let address = SockAddr::unix(path)?;
        connect_watched(exchange, socket, |socket| socket.connect(&address)).map(UnixStream::from)
    };
    match connect() {
        Ok(stream) => Ok(Stream::Unix(stream)),
        Err(_) if exchange.cancelled() => Err(cancelled()),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Err(Error::Timeout(Timeout::Connect)),
        Err(error) => Err(Error::Io(error)),
    }
}

#[cfg(not(unix))]
fn connect_unix(_: &Exchange, _: &std::path::Path, _: &Limit) -> Result<Stream, Error> {
    Err(Error::Io(io::Error::new(
        io::ErrorKind::Unsupported,
        "unix sockets are not available on this system",
    )))
}

/// Connects while the cancel token may shut the socket down.
fn connect_watched(
    exchange: &Exchange,
    socket: Socket,
    connect: impl FnOnce(&Socket) -> io::Result<()>,
) -> io::Result<Socket> {
    let socket = Arc::new(socket);
    {
        let _watch = watch(exchange, &socket).map_err(Error::into_io)?;
        connect(&socket)?;
    }
    // Only a cancelling thread can still hold the socket at this point.
    Arc::try_unwrap(socket).map_err(|_| cancelled().into_io())
}

/// Leaves the lookup to the connector: a request on a pooled connection needs none.
#[derive(Debug)]
pub(crate) struct LookupOnConnect;

impl Resolver for LookupOnConnect {
    fn resolve(&self, _: &Uri, _: &Config, _: NextTimeout) -> Result<ResolvedSocketAddrs, Error> {
        Ok(self.empty())
    }
}

enum Stream {
    Tcp(TcpStream),
    #[cfg(unix)]
    Unix(UnixStream),
}

/// Calls the same method on whichever stream it is.
macro_rules! on_stream {
    ($stream:expr, $inner:ident => $call:expr) => {
        match $stream {
            Stream::Tcp($inner) => $call,
            #[cfg(unix)]
            Stream::Unix($inner) => $call,
        }
    };
}

impl Stream {
    /// The peer's address; `None` for unix sockets.
    fn remote(&self) -> Option<SocketAddr> {
        match self {
            Stream::Tcp(stream) => stream.peer_addr().ok(),
            #[cfg(unix)]
            Stream::Unix(_) => None,
        }
    }
}

impl Abort for Stream {
    fn abort(&self) {
        // An error means that the socket is closed already.
        let _ = on_stream!(self, stream => stream.shutdown(Shutdown::Both));
    }
}

impl Receives for Stream {
    fn stop_waiting(&self) {
        // An error means that the socket is closed already.
        let _ = on_stream!(self, stream => stream.shutdown(Shutdown::Read));
    }
}

impl Abort for Socket {
    fn abort(&self) {
        let _ = self.shutdown(Shutdown::Both);
    }
}

/// One connection.
pub(crate) struct SocketTransport {
    stream: Arc<Stream>,
    buffers: LazyBuffers,
    /// An answer has come over this connection before.
    served: bool,
    remote: Option<SocketAddr>,
    read_timeout: Option<Duration>,
    write_timeout: Option<Duration>,
}

impl SocketTransport {
    fn set_read_timeout(&mut self, wanted: Option<Duration>) -> io::Result<()> {
        if self.read_timeout != wanted {
            on_stream!(&*self.stream, stream => stream.set_read_timeout(wanted))?;
            self.read_timeout = wanted;
        }
        Ok(())
    }

    fn set_write_timeout(&mut self, wanted: Option<Duration>) -> io::Result<()> {
        if self.write_timeout != wanted {
            on_stream!(&*self.stream, stream => stream.set_write_timeout(wanted))?;
            self.write_timeout = wanted;
        }
        Ok(())
    }

    fn write_all(&mut self, exchange: &Exchange, amount: usize, limit: &Limit) -> Result<(), Error> {
        let mut sent = 0;
        while sent < amount {
            let left = limit.left()?;
            self.set_write_timeout(left)?;
            let rest = &self.buffers.output()[sent..amount];
            match on_stream!(&*self.stream, stream => (&mut &*stream).write(rest)) {
                Ok(0) => return Err(Error::Io(io::ErrorKind::WriteZero.into())),
                Ok(count) => {
                    sent += count;
                    exchange.written.set(exchange.written.get() + count as u64);
                }
                Err(_) if exchange.cancelled() => return Err(cancelled()),
                Err(error) if is_timeout(&error) => return Err(Error::Timeout(limit.reason)),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(Error::Io(error)),
            }
        }
        Ok(())
    }
}

impl Transport for SocketTransport {
    fn buffers(&mut self) -> &mut dyn Buffers {
        &mut self.buffers
    }

    fn transmit_output(&mut self, amount: usize, timeout: NextTimeout) -> Result<(), Error> {
        let exchange = current();
        let limit = Limit::new(timeout.for_write());
        let _watch = watch(&exchange, &self.stream)?;
        exchange.trace_begin(self.served, self.remote);
        self.write_all(&exchange, amount, &limit)
            .inspect_err(|error| exchange.trace_sent(Some(error)))
    }

    fn await_input(&mut self, timeout: NextTimeout) -> Result<bool, Error> {
        let exchange = current();
        let limit = Limit::new(timeout.for_read());
        let _watch = watch_reader(&exchange, &self.stream)?;
        exchange.trace_sent(None);
        let began = clock::now();
        loop {
            let left = limit.left()?;
            self.set_read_timeout(left)?;
            let free = self.buffers.input_append_buf();
            match on_stream!(&*self.stream, stream => (&mut &*stream).read(free)) {
                Ok(0) if exchange.is_left() => {
                    if !exchange.lingers(began) {
                        return Err(cancelled());
                    }
                }
                Ok(count) => {
                    if exchange.cancelled() && exchange.leave.is_none() {
                        return Err(cancelled());
                    }
                    self.buffers.input_appended(count);
                    self.served |= 0 < count;
                    exchange.note_received(count);
                    return Ok(0 < count);
                }
                Err(_) if exchange.cancelled() => return Err(cancelled()),
                Err(error) if is_timeout(&error) => return Err(Error::Timeout(limit.reason)),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(Error::Io(error)),
            }
        }
    }

    /// A connection in the pool is good while there is nothing to read: neither bytes nobody asked for nor the end.
    fn is_open(&mut self) -> bool {
        let probe = |stream: &Stream| -> io::Result<bool> {
            on_stream!(stream, stream => stream.set_nonblocking(true))?;
            let mut byte = [0];
            let quiet = match on_stream!(stream, stream => (&mut &*stream).read(&mut byte)) {
                Ok(_) => false,
                Err(error) => error.kind() == io::ErrorKind::WouldBlock,
            };
            on_stream!(stream, stream => stream.set_nonblocking(false))?;
            Ok(quiet)
        };
        let open = probe(&self.stream).unwrap_or(false);
        current().trace_put_back(open);
        open
    }
}

fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}

impl fmt::Debug for SocketTransport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SocketTransport").field("served", &self.served).finish()
    }
}
