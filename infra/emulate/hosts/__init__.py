"""Machines without hardware, for what an emulated provider rents out and for the tests.

Each has a network, a process table and a disk of its own, a real sshd and a real firewall; systemd, Docker and
NVIDIA's tools are stand-ins that really run what they are told to run. They take root.
"""
