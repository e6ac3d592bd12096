//! Which address the node is known by, where nobody says.

use std::net::{IpAddr, Ipv4Addr};

use tokio::net::UdpSocket;

/// An address of the range for documentation (RFC 5737): nothing is sent to it, it only asks the
/// routing table for the way out.
const OUTSIDE: (&str, u16) = ("192.0.2.1", 9);

/// The address that the route to the server uses. Towards a server on this host that would be
/// loopback, which says nothing: then the one that the way out uses.
pub(crate) async fn towards(server: &str, port: u16) -> IpAddr {
    let to_server = source_address((server, port))
        .await
        .filter(|ip| !ip.is_loopback());
    match to_server {
        Some(ip) => ip,
        None => source_address(OUTSIDE)
            .await
            .unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST)),
    }
}

/// The address by which other hosts are likely to reach this one: the one that the way out uses.
pub async fn own_address() -> IpAddr {
    towards(OUTSIDE.0, OUTSIDE.1).await
}

/// A connected UDP socket has the source address of its route; nothing is sent.
async fn source_address(target: (&str, u16)) -> Option<IpAddr> {
    for target in tokio::net::lookup_host(target).await.ok()? {
        let any = if target.is_ipv4() {
            "0.0.0.0:0"
        } else {
            "[::]:0"
        };
        let Ok(socket) = UdpSocket::bind(any).await else {
            continue;
        };
        if socket.connect(target).await.is_ok() {
            let ip = socket.local_addr().ok()?.ip();
            return (!ip.is_unspecified()).then_some(ip);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_server_on_this_host_gives_the_address_of_the_way_out() {
        let outside = source_address(OUTSIDE).await;
        let expected = outside.unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST));
        assert_eq!(towards("127.0.0.1", 8080).await, expected);
        assert_eq!(towards("no such host.invalid", 8080).await, expected);
    }
}
