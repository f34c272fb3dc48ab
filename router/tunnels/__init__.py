"""Tunnels: how a router host reaches workers that listen on the loopback of machines elsewhere.

One service a router host (`python -m router.tunnels`), apart from the router, so that a router's restart cuts
nothing. One OpenSSH connection a machine, whose host key is pinned under the machine's id; through it one unix
socket here for each of its workers, which the router is told as the worker's `unix:` address. `command` says what
ssh is told (pure), `backoff` when a lost connection is tried again (pure), `connection` is one machine's life,
`service` follows the described set of machines and writes down how each is.
"""
