"""Machines for tests: a network, a process table and a disk of their own, a real sshd, a real firewall; systemd, Docker
and NVIDIA's tools are stand-ins that really run what they are told to run.
"""
