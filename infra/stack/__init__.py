"""stacks/*.yaml, typed: what a deployment is made of, and what is wrong with a file that does not say it.

Reading and checking only. Which offer each machine takes is `infra.planning.placement`'s, which resources come of it
`infra.planning.program`'s. `words` is what settings are made of, `router`, `machines` and `pools` are the parts of a
file, `whole` is the file; `description` is YAML with its lines, `reading` makes the one of the other.
"""

from infra.stack.machines import OwnHost
from infra.stack.pools import Fallback, Pool, Serverless
from infra.stack.reading import json_schema, load, parse, with_model
from infra.stack.router import Bucket, Tls
from infra.stack.whole import REPOSITORY, TINY, StackDescription, first_port_setting
from infra.stack.words import SIZE, CloudName, Device, resolve

__all__ = [
    "REPOSITORY",
    "SIZE",
    "TINY",
    "Bucket",
    "CloudName",
    "Device",
    "Fallback",
    "OwnHost",
    "Pool",
    "Serverless",
    "StackDescription",
    "Tls",
    "first_port_setting",
    "json_schema",
    "load",
    "parse",
    "resolve",
    "with_model",
]
