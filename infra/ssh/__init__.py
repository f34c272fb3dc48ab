"""SSH to machines that are set up: connections with pinned host keys, commands, files, questions to their loopback.

`target` says how a machine is reached, `keys` draws the stack's own keys, `pins` remembers host keys, `connect`
brings a connection about, and `connection` is what can be done with one. It is paramiko's, whose blocking calls run
in threads of their own (`threads`), so that any number of machines go side by side. The long-lived forwards to
workers are not made here: `router.tunnels` does that with OpenSSH; `openssh` is what is said to that by hand.
"""
