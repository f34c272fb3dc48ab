"""From a description to resources: `placement` (which offer each machine takes) and `program` (what resources come
of it) are pure, `planner` is the shell around both, and `code` the digest by which an upgrade is a change.
"""
