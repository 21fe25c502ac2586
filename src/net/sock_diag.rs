//! Asks the kernel for the state of TCP sockets by netlink, as `ss` does.
//!
//! One question at a time on one socket. Answers carry the sequence number of their question, so a late answer to an
//! earlier question is passed over. The kernel answers while it takes the question, so nobody waits here; a timeout
//! guards against the case that it does not. After an error (except that there is no such socket) the state of the
//! conversation is not known: throw the [`SockDiag`] away and open another one.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use netlink_packet_core::{NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload};
use netlink_packet_sock_diag::SockDiagMessage;
use netlink_packet_sock_diag::constants::{AF_INET, AF_INET6, IPPROTO_TCP};
use netlink_packet_sock_diag::inet::{ExtensionFlags, InetRequest, InetResponseHeader, SocketId, StateFlags};
use netlink_sys::protocols::NETLINK_SOCK_DIAG;
use netlink_sys::{Socket, SocketAddr as NetlinkAddr};
use rustix::net::sockopt::{Timeout, set_socket_timeout};

/// Far longer than the kernel takes, which is microseconds.
const TIMEOUT: Duration = Duration::from_secs(1);

/// The kernel sends at most 32 KiB at once, so this holds every answer.
const BUFFER_BYTES: usize = 64 * 1024;

/// A conversation with the kernel.
pub(super) struct SockDiag {
    socket: Socket,
    sequence: u32,
    buffer: Vec<u8>,
}

/// A socket as the kernel shows it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Found {
    /// A `TCP_` number.
    pub(super) state: u8,
    /// No other socket ever has the same, until the machine starts anew.
    pub(super) cookie: u64,
}

/// The two families of TCP sockets. An IPv6 socket can also carry IPv4 and then shows mapped addresses.
#[derive(Debug, Clone, Copy)]
pub(super) enum Family {
    V4,
    V6,
}

impl SockDiag {
    /// Starts a conversation. Fails where netlink is not allowed.
    pub(super) fn open() -> io::Result<Self> {
        let socket = Socket::new(NETLINK_SOCK_DIAG)?;
        set_socket_timeout(&socket, Timeout::Recv, Some(TIMEOUT))?;
        set_socket_timeout(&socket, Timeout::Send, Some(TIMEOUT))?;
        // Port 0 is the kernel. After this, nobody else can answer.
        socket.connect(&NetlinkAddr::new(0, 0))?;
        Ok(Self {
            socket,
            sequence: 0,
            buffer: vec![0; BUFFER_BYTES],
        })
    }

    /// The socket at `local` that is connected to `remote`. If there is none, the kernel falls back to the socket that
    /// listens at `local`. Nothing if there is neither.
    pub(super) fn lookup(&mut self, local: SocketAddr, remote: SocketAddr) -> io::Result<Option<Found>> {
        let (local_ip, remote_ip) = (local.ip().to_canonical(), remote.ip().to_canonical());
        let family = match (local_ip, remote_ip) {
            (IpAddr::V4(_), IpAddr::V4(_)) => AF_INET,
            (IpAddr::V6(_), IpAddr::V6(_)) => AF_INET6,
            _ => return Err(io::Error::new(io::ErrorKind::InvalidInput, "addresses of two families")),
        };
        let request = InetRequest {
            family,
            protocol: IPPROTO_TCP,
            extensions: ExtensionFlags::empty(),
            states: StateFlags::all(),
            socket_id: SocketId {
                source_port: local.port(),
                destination_port: remote.port(),
                source_address: local_ip,
                destination_address: remote_ip,
                interface_id: scope(local).or(scope(remote)).unwrap_or(0),
                cookie: [0xff; 8],
            },
        };
        let mut found = None;
        let mut take = |header: &InetResponseHeader| {
            found = Some(Found {
                state: header.state,
                cookie: u64::from_ne_bytes(header.socket_id.cookie),
            });
        };
        match self.ask(request, 0, &mut take) {
            Ok(()) => Ok(found),
            Err(error) if error.raw_os_error() == Some(rustix::io::Errno::NOENT.raw_os_error()) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Shows the remote address, how many bytes wait to be read, and the cookie of every socket of this family with this
    /// local port in one of these states, and if `remote_port` is not 0, with this remote port. Sockets that come or go meanwhile may be missed, and so may, rarely,
    /// others beside them in the kernel's table.
    pub(super) fn dump(
        &mut self,
        family: Family,
        states: StateFlags,
        local_port: u16,
        remote_port: u16,
        each: &mut dyn FnMut(SocketAddr, u32, u64),
    ) -> io::Result<()> {
        // The addresses are not used as a filter.
        let any = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
        let request = InetRequest {
            family: match family {
                Family::V4 => AF_INET,
                Family::V6 => AF_INET6,
            },
            protocol: IPPROTO_TCP,
            extensions: ExtensionFlags::empty(),
            states,
            socket_id: SocketId {
                source_port: local_port,
                destination_port: remote_port,
                source_address: any,
                destination_address: any,
                interface_id: 0,
                cookie: [0xff; 8],
            },
        };
        self.ask(request, NLM_F_DUMP, &mut |header| {
            let id = &header.socket_id;
            each(
                SocketAddr::new(id.destination_address, id.destination_port),
                header.recv_queue,
                u64::from_ne_bytes(id.cookie),
            );
        })
    }

    fn ask(&mut self, request: InetRequest, flags: u16, each: &mut dyn FnMut(&InetResponseHeader)) -> io::Result<()> {
        self.send(request, flags)?;
        self.answers(flags & NLM_F_DUMP != 0, each)
    }

    fn send(&mut self, request: InetRequest, flags: u16) -> io::Result<()> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | flags;
        header.sequence_number = self.sequence;
        let mut message = NetlinkMessage::new(header, SockDiagMessage::InetRequest(request).into());
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        self.socket.send(&bytes, 0).map(drop)
    }

    /// Takes the answer to the question sent last: one socket or an error, or for a dump any number of sockets and an end.
    fn answers(&mut self, is_dump: bool, each: &mut dyn FnMut(&InetResponseHeader)) -> io::Result<()> {
        loop {
            let size = self.receive()?;
            let mut rest = &self.buffer[..size];
            while !rest.is_empty() {
                let message = NetlinkMessage::<SockDiagMessage>::deserialize(rest).map_err(io::Error::other)?;
                let padded = (message.header.length as usize).next_multiple_of(4);
                rest = rest.get(padded..).unwrap_or_default();
                if message.header.sequence_number != self.sequence {
                    continue;
                }
                if message.header.flags & NLM_F_DUMP_INTR != 0 {
                    return Err(io::Error::other("the table of sockets changed during the answer"));
                }
                match message.payload {
                    NetlinkPayload::InnerMessage(SockDiagMessage::InetResponse(response)) => {
                        each(&response.header);
                        if !is_dump {
                            return Ok(());
                        }
                    }
                    NetlinkPayload::Done(done) if done.code == 0 => return Ok(()),
                    NetlinkPayload::Done(done) => return Err(io::Error::from_raw_os_error(done.code.saturating_abs())),
                    NetlinkPayload::Error(error) => return Err(error.to_io()),
                    NetlinkPayload::Noop => {}
                    _ => return Err(io::Error::other("an answer of another kind")),
                }
            }
        }
    }

    fn receive(&mut self) -> io::Result<usize> {
        loop {
            match self.socket.recv(&mut &mut self.buffer[..], 0) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => return result,
            }
        }
    }
}

/// A link-local address means something on one interface only, and the kernel looks it up there only.
fn scope(address: SocketAddr) -> Option<u32> {
    match address {
        SocketAddr::V6(v6) if v6.scope_id() != 0 => Some(v6.scope_id()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_late_answer_to_an_earlier_question_is_passed_over() {
        let Ok(mut diag) = SockDiag::open() else {
            eprintln!("SKIPPED: the kernel does not answer questions about sockets here");
            return;
        };
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (server, _) = listener.accept().unwrap();
        let (local, remote) = (server.local_addr().unwrap(), server.peer_addr().unwrap());

        // As if the probe had run out of time before the answers came: a dump of everything and a lookup.
        let any = SocketId::new_v4();
        let request = InetRequest {
            family: AF_INET,
            protocol: IPPROTO_TCP,
            extensions: ExtensionFlags::empty(),
            states: StateFlags::LISTEN,
            socket_id: any,
        };
        let listening = InetRequest {
            socket_id: SocketId {
                source_port: local.port(),
                source_address: local.ip(),
                cookie: [0xff; 8],
                ..SocketId::new_v4()
            },
            ..request.clone()
        };
        diag.send(listening, 0).unwrap();
        diag.send(request, NLM_F_DUMP).unwrap();

        let established = netlink_packet_sock_diag::constants::TCP_ESTABLISHED;
        let found = diag.lookup(local, remote).unwrap();
        assert_eq!(found.map(|found| found.state), Some(established));
        drop(client);
    }
}
