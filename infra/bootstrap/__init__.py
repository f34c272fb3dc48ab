"""From a bare machine to one that can run workers: steps, each of which looks, acts where it must, and looks again.

`step` is what a step is and how they are gone through; `machine` is what they are told. One module a step or a small
group: `facts` (what the machine is), `engine` (Docker and NVIDIA's toolkit), `firewall`, `access` (the tunnel service's
key), `image`, `weights`. A step that is already right costs one command. One that fails names the machine, what was
said last and what to try; the next deploy goes on from there. `order` puts them in order.
"""
