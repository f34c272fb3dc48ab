"""A batch: a file of prompts in, a folder of images out, whatever happens meanwhile.

`lines` reads the input, `index` keeps what has become of each line, `folder` the files and who holds them; `makers`
are who is asked, `patience` asks again, `aside` has what nobody can make now; `run` puts them together, and `tally`
counts. Nothing of the router but its contract and its client is needed here, nor anything that an extra would have to
install.

The order of things for one line, any of which may be the last that this process does:
    ask        under a name that follows from the batch and the line: asked again, it is the same job
    save       image and sidecar, each whole or not at all
    note       one line of the index, on the disk before it counts
So what is noted is there, and what is not noted is asked for again and found.
"""

from router.client.batch.errors import BatchError, NotMadeError
from router.client.batch.lines import Defaults
from router.client.batch.makers import ByRouter, ByWorker, Maker
from router.client.batch.patience import Patience
from router.client.batch.run import run
from router.client.batch.settings import Outcome, Settings, Watcher
from router.client.batch.tally import Tally

__all__ = [
    "BatchError",
    "ByRouter",
    "ByWorker",
    "Defaults",
    "Maker",
    "NotMadeError",
    "Outcome",
    "Patience",
    "Settings",
    "Tally",
    "Watcher",
    "run",
]
