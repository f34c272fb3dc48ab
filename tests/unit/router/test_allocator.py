"""Whether what an image took is there for the next one. In processes of their own: it holds for all of one."""

from __future__ import annotations

import subprocess
import sys
from textwrap import dedent

IMAGES = """
    import resource, threading

    def image():
        came = bytearray(b"x" * 500_000)
        came += b"x" * 500_000
        whole = bytes(came)
        answer = whole * 2

    def faults(images):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range(images):
            image()
            storing = threading.Thread(target=image)
            storing.start()
            storing.join()
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    faults(3)
    print(faults(20))
"""
FEW = 400
"""What twenty threads touch anew, each with its stack; the buffers are 1,200 pages an image."""


def faults_after(begun_with: str) -> int:
    program = f"{begun_with}\n{dedent(IMAGES)}"
    return int(subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout)


def test_an_image_takes_no_new_pages_from_the_kernel() -> None:
    kept = faults_after("from router.allocator import keep_freed_memory\nassert keep_freed_memory()")
    assert kept < FEW < faults_after("")
