//! Which user of this machine has the other end of a connection over loopback. The kernel knows: every socket belongs to
//! the user who made it. It is asked about one socket, by its addresses (`sock_diag(7)`), in some ten microseconds, however
//! many sockets there are.

use std::io;
use std::net::{IpAddr, SocketAddr};

use rustix::io::Errno;
use rustix::net::{self, AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink};

/// The user who has the other end of a connection: `None` where that was not asked, or the kernel cannot tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PeerUser(pub Option<u32>);

/// From `linux/sock_diag.h`, `linux/netlink.h` and `netinet/in.h`.
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const NLM_F_REQUEST: u16 = 1;
const TCP: u8 = 6;
const ALL_STATES: u32 = u32::MAX;
const NO_COOKIE: [u8; 8] = [0xff; 8];
/// The lengths of `nlmsghdr` and of `inet_diag_req_v2`.
const HEADER: usize = 16;
const REQUEST: usize = 56;
/// Where in an answer `inet_diag_msg` has the user and the inode of the socket.
const UID: usize = HEADER + 64;
const INODE: usize = HEADER + 68;

/// The id of the user whose process has the other end of this connection. `None` if nobody has it any more, or if it is not
/// on this machine.
///
/// # Errors
/// If the kernel cannot be asked.
pub fn user_of_peer(ours: SocketAddr, theirs: SocketAddr) -> io::Result<Option<u32>> {
    let socket = net::socket_with(
        AddressFamily::NETLINK,
        SocketType::RAW,
        SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
        Some(netlink::SOCK_DIAG),
    )?;
    net::send(&socket, &question(ours, theirs), SendFlags::empty())?;
    // The kernel answers while the question is sent.
    let mut answer = [0; 512];
    let (length, _) = net::recv(&socket, &mut answer, RecvFlags::empty())?;
    user_in(&answer[..length])
}

/// Asks for the socket whose own address is `theirs`, and whose peer is `ours`.
fn question(ours: SocketAddr, theirs: SocketAddr) -> Vec<u8> {
    let family = match theirs.ip().to_canonical() {
        IpAddr::V4(_) => AddressFamily::INET,
        IpAddr::V6(_) => AddressFamily::INET6,
    };
    let address = |address: SocketAddr| {
        let mut bytes = [0; 16];
        match address.ip().to_canonical() {
            IpAddr::V4(ip) => bytes[..4].copy_from_slice(&ip.octets()),
            IpAddr::V6(ip) => bytes = ip.octets(),
        }
        bytes
    };
    let mut bytes = Vec::with_capacity(HEADER + REQUEST);
    bytes.extend(((HEADER + REQUEST) as u32).to_ne_bytes());
    bytes.extend(SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    bytes.extend(NLM_F_REQUEST.to_ne_bytes());
    bytes.extend([0; 8]); // sequence number and port id
    bytes.extend([family.as_raw() as u8, TCP, 0, 0]); // and no extensions, padding
    bytes.extend(ALL_STATES.to_ne_bytes());
    bytes.extend(theirs.port().to_be_bytes());
    bytes.extend(ours.port().to_be_bytes());
    bytes.extend(address(theirs));
    bytes.extend(address(ours));
    bytes.extend([0; 4]); // any interface
    bytes.extend(NO_COOKIE);
    bytes
}

/// Reads the kernel's answer.
fn user_in(answer: &[u8]) -> io::Result<Option<u32>> {
    let number = |at: usize| answer.get(at..at + 4).and_then(|b| b.try_into().ok()).map(u32::from_ne_bytes);
    let kind = answer.get(4..6).and_then(|b| b.try_into().ok()).map(u16::from_ne_bytes);
    match (kind, number(UID), number(INODE)) {
        // A socket without an inode is nobody's any more: its process has closed it, and its user reads as 0, root.
        (Some(SOCK_DIAG_BY_FAMILY), Some(_), Some(0)) => Ok(None),
        (Some(SOCK_DIAG_BY_FAMILY), Some(user), Some(_)) => Ok(Some(user)),
        // An error: a header, and the negative number of the error.
        _ => match number(HEADER).map(|error| (error as i32).wrapping_neg()) {
            Some(error) if error == Errno::NOENT.raw_os_error() => Ok(None),
            Some(error) => Err(io::Error::from_raw_os_error(error)),
            None => Err(io::ErrorKind::UnexpectedEof.into()),
        },
    }
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn the_other_end_of_a_connection_is_ours_until_it_is_closed() {
        for (listen, connect) in [("127.0.0.1:0", "127.0.0.1"), ("[::1]:0", "::1"), ("127.0.0.1:0", "::ffff:127.0.0.1")]
        {
            let Ok(listener) = TcpListener::bind(listen) else { continue };
            let port = listener.local_addr().expect("bound").port();
            let client = TcpStream::connect((connect.parse::<IpAddr>().expect("an address"), port)).expect("connects");
            let (server, theirs) = listener.accept().expect("accepts");
            let ours = server.local_addr().expect("connected");
            let us = rustix::process::geteuid().as_raw();
            assert_eq!(user_of_peer(ours, theirs).expect("the kernel answers"), Some(us), "{connect}");
            // Who closes at once after sending is nobody, and not root, as whom such a socket reads.
            drop(client);
            assert_eq!(user_of_peer(ours, theirs).expect("the kernel answers"), None, "{connect}");
            let nobody = SocketAddr::new(theirs.ip(), 1);
            assert_eq!(user_of_peer(ours, nobody).expect("the kernel answers"), None, "{connect}");
        }
    }
}
