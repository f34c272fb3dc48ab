"""Which addresses a webhook may connect to. Pure; asked about the very address that is then connected to.

A URL comes from whoever holds an API key, and the router stands inside the operator's network: without this, a
webhook would be a way to the cloud's metadata service, to the admin app, to the database. Names are no help (they
resolve to whatever their owner likes, and differently the next time), so addresses are judged, at connect time.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
"""Where a network without IPv4 reaches it (RFC 6052): the last 32 bits are the address that is meant."""
GLOBAL_UNICAST = ipaddress.IPv6Network("2000::/3")
REFUSED = (
    # Public by its number, and yet the inside of every Azure machine.
    ipaddress.ip_network("168.63.129.16/32"),
    # For protocols' own use; Python took some of them for global before 3.11.10. Teredo is among the second.
    ipaddress.ip_network("192.0.0.0/24"),
    ipaddress.ip_network("2001::/23"),
    # Relays to IPv4 that nobody needs any more (RFC 7526).
    ipaddress.ip_network("192.88.99.0/24"),
    # Documentation, which Python 3.11 takes for global (RFC 9637), and segment routing (RFC 9602).
    ipaddress.ip_network("3fff::/20"),
    ipaddress.ip_network("5f00::/16"),
)


def networks(text: str) -> tuple[Network, ...]:
    """`10.0.0.0/8, 127.0.0.1` as networks. Raises ValueError that quotes what is none."""
    return tuple(ipaddress.ip_network(part.strip()) for part in text.split(",") if part.strip())


def allowed(address: Address, also: Sequence[Network]) -> bool:
    """Whether a webhook may connect to `address`: it is public, or among the operator's own exceptions."""
    return listed(address, also) or public(address)


def listed(address: Address, exceptions: Sequence[Network]) -> bool:
    """Whether the operator has named this address (or the IPv4 address that it stands for)."""
    meant = (address, *_embedded(address))
    return any(one in network for one in meant for network in exceptions)


def public(address: Address) -> bool:
    """Whether the address is of the public internet, and every address that is wrapped in it too."""
    if any(address in network for network in REFUSED):
        return False
    inner = _embedded(address)
    if inner:
        return all(public(one) for one in inner)
    if isinstance(address, ipaddress.IPv6Address) and address not in GLOBAL_UNICAST:
        return False
    return address.is_global and not (address.is_multicast or address.is_reserved)


def _embedded(address: Address) -> tuple[ipaddress.IPv4Address, ...]:
    """The IPv4 addresses that an IPv6 one stands for, by any of the ways to wrap them."""
    if isinstance(address, ipaddress.IPv4Address):
        return ()
    if address.ipv4_mapped is not None:
        return (address.ipv4_mapped,)
    if address in NAT64:
        return (ipaddress.IPv4Address(int(address) & 0xFFFFFFFF),)
    return () if address.sixtofour is None else (address.sixtofour,)
