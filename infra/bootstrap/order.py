"""The steps of a worker's machine, in order: what costs nothing to find out comes before what takes an hour."""

from __future__ import annotations

from infra.bootstrap.access import TunnelKey
from infra.bootstrap.engine import Docker, Toolkit
from infra.bootstrap.facts import Disk, Download, Gpus
from infra.bootstrap.firewall import Firewall
from infra.bootstrap.image import Image, PodImage
from infra.bootstrap.machine import Machine
from infra.bootstrap.step import Step
from infra.bootstrap.weights import Folder, Licence, Weights

WORKER_STEPS: tuple[Step[Machine], ...] = (
    Licence(),
    PodImage(),
    Gpus(),
    Disk(),
    Download(),
    Docker(),
    Toolkit(),
    Firewall(),
    TunnelKey(),
    Folder(),
    Image(),
    Weights(),
)
