"""From a bare machine to one that can run a router: packages, users and folders, the firewall, the code.

Steps as those of a worker's machine are (`infra.bootstrap.step`). What then runs on it is
`infra.provider.router_there`'s.
"""
