"""nginx at the edge: what it is told, and how that reaches it.

`config` is its configuration, pure; `nginx` finds the program, checks and runs it; `certificate` and `certbot` are
HTTPS, by a certificate of one's own or by one that is got and renewed.
"""
